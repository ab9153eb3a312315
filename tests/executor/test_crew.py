"""Who hangs: silence alone is no fault, only no answer, or too long in work of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from executor import messages as m
from executor.crew import Watch
from tests.executorcases import MuteWorker

LIMIT_S = 10.0


class Watched:
    """A watch over two workers, on a clock that stands."""

    def __init__(self, workers: list[MuteWorker]) -> None:
        self.now = 100.0
        self.workers = workers
        self.watch = Watch(lambda: self.now)

    def after(self, seconds: float) -> list[tuple[int, str]]:
        """Who is found to hang until then, and why, if we look twice a second."""
        hung = []
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            hung += self.watch.hung(self.workers, LIMIT_S)
        return [(handle.number, why) for handle, why in hung]

    def answer(self, number: int, phase: str, phase_s: float) -> None:
        pong = m.Pong(number=0, phase=phase, phase_s=phase_s)
        self.watch.pong(self.workers[number], pong)

    @property
    def pings(self) -> list[int]:
        return [len(worker.told) for worker in self.workers]


@pytest.fixture
def watched() -> Iterator[Watched]:
    workers = [MuteWorker(0), MuteWorker(1)]
    yield Watched(workers)
    for worker in workers:
        worker.close()


def test_all_are_asked_when_nothing_was_heard_for_the_limit(watched: Watched) -> None:
    assert watched.after(9) == []
    assert watched.pings == [0, 0]
    assert watched.after(1) == []
    assert watched.pings == [1, 1]
    assert watched.after(0.5) == []
    assert watched.after(1) == [
        (0, "does not answer; deadline 10 s"),
        (1, "does not answer; deadline 10 s"),
    ]
    assert watched.after(9) == []  # and all begins again
    assert watched.pings == [1, 1]


def test_waiting_for_others_is_no_fault_but_being_long_at_work_is(watched: Watched) -> None:
    watched.after(10)
    watched.answer(0, "exchange", 99)
    watched.answer(1, "compute", 11)
    assert watched.after(2) == [(1, "hangs in compute; deadline 10 s")]


def test_work_that_has_just_begun_is_no_fault(watched: Watched) -> None:
    watched.after(10)
    watched.answer(0, "compute", 9)
    watched.answer(1, "write", 0)
    assert watched.after(2) == []


def test_an_answer_to_an_earlier_ping_does_not_count(watched: Watched) -> None:
    watched.answer(0, "exchange", 0)
    watched.after(10)
    watched.answer(1, "exchange", 0)
    assert watched.after(2) == [(0, "does not answer; deadline 10 s")]


def test_a_sign_of_life_ends_the_suspicion(watched: Watched) -> None:
    watched.after(10)
    watched.watch.heard()
    assert watched.after(2) == []
    assert watched.after(8) == []
    assert watched.pings == [2, 2]


def test_if_we_were_stopped_ourselves_nobody_is_suspected(watched: Watched) -> None:
    """All were stopped together: a worker in a step would say that it takes far too long."""
    watched.after(2)
    watched.now += 600
    assert watched.after(9) == []
    assert watched.pings == [0, 0]
    watched.after(2)  # but from then on they are
    assert watched.pings == [1, 1]


def test_to_be_stopped_between_question_and_answer_asks_again(watched: Watched) -> None:
    watched.after(10)
    watched.now += 600
    watched.answer(0, "compute", 610)
    assert watched.after(9) == []


def test_nobody_is_suspected_while_nobody_is_waited_for(watched: Watched) -> None:
    watched.after(10)
    watched.watch.rest()
    assert watched.after(1) == []
    assert watched.pings == [2, 2]
