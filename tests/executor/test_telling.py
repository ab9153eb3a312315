"""What a job tells of itself: each step once, and how long starts, rescales and recoveries took."""

from __future__ import annotations

from executor import events as e
from executor.layout import StepReport
from executor.telling import Diary
from tests.executorcases import on

MAP = on(1, 1)


class Told:
    """A diary on a clock that stands, and what it told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[e.Event] = []
        self.diary = Diary("job", self.events.append, lambda: self.now)

    def after(self, seconds: float) -> Diary:
        self.now += seconds
        return self.diary

    def taken(self) -> list[e.Event]:
        events, self.events[:] = list(self.events), []
        return events

    def start(self) -> None:
        """The first step, after 3 s, 1 of which was a step."""
        self.diary.commanded()
        self.after(2).runs()
        self.after(1).first_step(1, MAP, as_wanted=True)
        self.diary.step(report(1))


def report(step: int) -> StepReport:
    return StepReport(step=step, loss=0.5, losses=(0.5,), stop=False, sent_bytes=8)


def progress(step: int, at_s: float, seconds: float) -> e.Progress:
    return e.Progress(
        job_id="job",
        at_s=at_s,
        step=step,
        loss=0.5,
        losses=(0.5,),
        seconds=seconds,
        sent_bytes=8,
    )


def test_a_start_is_told_with_its_first_step() -> None:
    told = Told()
    assert not told.diary.started
    told.start()
    assert told.taken() == [
        e.Running(job_id="job", at_s=103, step=1, worker_map=MAP, seconds=3),
        progress(1, 103, 1),
    ]
    assert told.diary.started


def test_a_step_is_told_of_once_however_often_it_is_done() -> None:
    told = Told()
    told.start()
    told.after(1).step(report(2))
    told.taken()
    assert not told.diary.is_news(2)
    told.after(5).step(report(2))
    assert told.taken() == []
    told.after(1).step(report(3))
    assert told.taken() == [progress(3, 110, 1)]


def test_a_rescale_is_told_with_its_pause_when_the_map_is_the_wanted_one() -> None:
    told = Told()
    told.start()
    told.taken()
    told.diary.commanded()
    told.after(4).first_step(2, MAP, as_wanted=False)  # still on the old map
    assert told.taken() == []
    told.diary.stands()
    told.after(0.5).runs()
    told.after(1).first_step(3, MAP, as_wanted=True)
    told.diary.first_step(3, MAP, as_wanted=True)
    assert told.taken() == [
        e.Rescaled(job_id="job", at_s=108.5, step=3, worker_map=MAP, seconds=5.5, pause_s=0.5)
    ]


def test_a_recovery_counts_from_the_first_break() -> None:
    told = Told()
    told.start()
    told.taken()
    told.diary.broke(1, "died")
    told.after(1).broke(1, "died too")
    told.diary.resumes(0)
    told.after(2).runs()
    told.after(1).first_step(1, MAP, as_wanted=True)
    told.diary.first_step(2, MAP, as_wanted=True)
    assert told.taken() == [
        e.Broken(job_id="job", at_s=103, step=1, reason="died"),
        e.Broken(job_id="job", at_s=104, step=1, reason="died too"),
        e.Recovered(job_id="job", at_s=107, step=1, resumed_at=0, worker_map=MAP, seconds=4),
    ]


def test_a_rescale_after_a_break_has_the_pause_since_then_not_that_of_an_earlier_one() -> None:
    told = Told()
    told.start()
    told.diary.stands()
    told.after(1).runs()
    told.after(50).broke(1, "died")
    told.diary.commanded()
    told.after(2).runs()
    told.after(1).first_step(2, MAP, as_wanted=True)
    (rescaled,) = [event for event in told.events if isinstance(event, e.Rescaled)]
    assert (rescaled.seconds, rescaled.pause_s) == (3, 2)
