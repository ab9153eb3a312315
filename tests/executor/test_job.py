"""The state machine of a job, word by word: workers that only write down what they are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from executor import events as e
from executor import messages as m
from executor.agent import Agent
from executor.job import Job
from executor.layout import StepReport
from executor.pool import Handle, WorkerPool
from tests.executorcases import LANES, MuteWorker, job, on
from traces.workermap import WorkerMap

STEPS = 9
WHOLE = {4: {0: b"zero", 1: b"one"}}


class Pool:
    """Lends workers that are mute, and knows those that were buried."""

    def __init__(self) -> None:
        self.kernels: dict[str, Mapping[str, str]] = {}
        self.made: list[MuteWorker] = []
        self.back: list[Handle] = []
        self.buried: list[Handle] = []

    def take(self, lane: Any, _: object) -> MuteWorker:
        self.made.append(MuteWorker(int(lane.name.removeprefix("cpu"))))
        return self.made[-1]

    def bury(self, handle: Handle) -> None:
        handle.gone = True
        self.buried.append(handle)

    def give_back(self, handle: Handle) -> None:
        self.back.append(handle)


class Played:
    """A job of two logical workers, and what its workers are made to say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pool = Pool()
        self.events: list[e.Event] = []
        self.job = Job(
            job("mlp", 2, STEPS),
            LANES,
            cast(WorkerPool, self.pool),
            "",
            emit=self.events.append,
            clock=lambda: self.now,
            may_run=lambda _: True,
        )

    def worker(self, device: int) -> MuteWorker:
        """The latest on a device."""
        return next(w for w in reversed(self.pool.made) if w.number == device)

    def told(self, device: int) -> list[str]:
        """What its latest worker was told since we last looked, and has not answered."""
        told = self.worker(device).told
        names = [type(order).__name__ for order in told]
        told[:] = [order for order in told if hasattr(order, "serial")]
        return names

    def reply(self, device: int, value: Any = None, **how: Any) -> None:
        """Answer the request that was told last."""
        worker = self.worker(device)
        serial = [order.serial for order in worker.told if hasattr(order, "serial")][-1]
        worker.told.clear()
        self.job.hear(worker, m.Reply(serial=serial, value=value, **how))

    def say(self, device: int, kind: Any, /, **values: Any) -> None:
        """Tell news of the generation that was configured last."""
        self.job.hear(self.worker(device), kind(generation=self.generation, **values))

    def configured(self, *devices: int, step: int = 0) -> None:
        """All devices begin their generation."""
        for device in devices:
            request = self.worker(device).told[-1]
            assert isinstance(request, m.Configure)
            assert request.step == step
            self.generation = request.generation
        for device in devices:
            self.reply(device, step)

    def started(self, worker_map: WorkerMap, *devices: int) -> None:
        self.job.rescale(worker_map)
        for device in devices:
            assert self.told(device) == ["Attach"]
            self.reply(device, {"num_workers": 2, "order": None})
        self.configured(*devices)
        for device in devices:
            assert self.told(device) == ["Run"]

    def surveyed(self, *devices: int, step: int | None = 4) -> None:
        contexts: Mapping[int, Mapping[int, bytes]] = {} if step is None else WHOLE
        for device in devices:
            self.reply(device, m.Surveyed(step=step, contexts=contexts, last=None))


@pytest.fixture
def played() -> Iterator[Played]:
    found = Played()
    yield found
    for worker in found.pool.made:
        worker.close()


def test_a_running_job_is_paused_when_its_newcomers_have_built_the_task(played: Played) -> None:
    played.started(on(2), 0)
    played.job.rescale(on(1, 1))
    assert played.told(0) == []
    assert played.told(1) == ["Attach"]
    played.reply(1, {"num_workers": 2, "order": None})
    assert played.told(0) == ["Pause"]
    played.say(0, m.Paused, step=4)
    assert played.told(0) == ["Survey"]
    played.surveyed(0)
    assert (played.told(0), played.told(1)) == (["Move"], ["Move"])
    played.reply(0, 4)
    played.reply(1, 4)
    played.configured(0, 1, step=4)
    assert (played.told(0), played.told(1)) == (["Run"], ["Run"])
    assert played.job.map == on(1, 1)


def test_a_running_job_whose_newcomer_cannot_build_the_task_ends_at_the_next_step(
    played: Played,
) -> None:
    """Members that still train would not hear that they are to leave."""
    played.started(on(2), 0)
    played.job.rescale(on(1, 1))
    assert played.told(1) == ["Attach"]
    played.reply(1, error="no memory")
    assert played.told(0) == ["Pause"]
    played.say(0, m.Paused, step=4)
    assert (played.told(0), played.told(1)) == (["Detach"], ["Detach"])
    played.reply(0)
    played.reply(1)
    assert played.job.over
    (failed,) = [event for event in played.events if isinstance(event, e.Failed)]
    assert (failed.step, failed.reason) == (4, "no memory")


def test_a_newcomer_that_hangs_is_replaced_while_the_others_train(played: Played) -> None:
    """Their steps are no sign of its life; a rescale would wait for it to the end of the job."""
    played.started(on(2), 0)
    played.job.rescale(on(1, 1))
    hangs = played.worker(1)
    report = StepReport(step=1, loss=0.5, losses=(0.5, 0.5), stop=False, sent_bytes=0)
    for _ in range(122):
        played.now += 1.0
        played.say(0, m.Progress, report=report, digests={})
        played.job.tick()
    assert played.pool.buried == [hangs]
    (lost,) = [event for event in played.events if isinstance(event, e.LaneLost)]
    assert lost.gpu == (0, 1)
    assert played.told(1) == ["Attach"]  # another worker
    assert played.told(0) == []  # the others were not disturbed


def test_who_trains_is_asked_after_its_own_time_while_a_newcomer_builds(played: Played) -> None:
    played.started(on(2), 0)
    played.job.rescale(on(1, 1))
    hangs = played.worker(0)
    for _ in range(23):
        played.now += 1.0
        played.job.tick()
    assert played.pool.buried == [hangs]


def test_a_death_in_the_middle_of_a_change_begins_it_again(played: Played) -> None:
    played.started(on(1, 1), 0, 1)
    played.say(0, m.Broke, step=4, kind="lost", text="a peer was lost")
    assert played.told(0) == ["Abandon", "Survey"]
    played.surveyed(0)
    played.job.gone(played.worker(1), "died")
    assert played.told(0) == ["Abandon", "Survey"]
    assert played.told(1) == ["Attach"]  # a new worker on the lane
    assert len(played.pool.made) == 3
    kinds = [type(event) for event in played.events]
    assert kinds == [e.Broken, e.LaneLost]


def test_whoever_is_blamed_goes_when_all_have_said_what_they_hold(played: Played) -> None:
    played.started(on(1, 1), 0, 1)
    culprit = played.worker(1)
    played.say(0, m.Broke, step=4, kind="garbage", text="not finite", culprits=(1,))
    played.surveyed(0)
    assert played.pool.buried == []
    played.surveyed(1)
    assert played.pool.buried == [culprit]
    assert played.told(0) == ["Abandon", "Survey"]
    assert played.worker(1) is not culprit


def test_why_a_step_could_not_be_done_counts_also_when_it_is_told_late(played: Played) -> None:
    """Whoever lost a peer may say so before the peer says why."""
    played.started(on(1, 1), 0, 1)
    for culprit in (played.worker(1), None):
        played.say(0, m.Broke, step=4, kind="lost", text="a peer was lost")
        assert played.told(0)[-1] == played.told(1)[-1] == "Survey"
        played.say(1, m.Broke, step=4, kind="failed", text="no memory", culprits=(1,))
        assert played.told(0) == played.told(1) == ["Survey"]  # and nothing new
        played.surveyed(0, 1)
        if culprit is not None:
            assert played.pool.buried == [culprit]
            played.surveyed(0)
            played.reply(1, {"num_workers": 2, "order": None})
            played.reply(0, 4)
            played.reply(1, 4)
            played.configured(0, 1, step=4)
    assert played.told(0) == ["Abandon", "Detach"]  # the culprit is gone, again
    played.reply(0)
    (failed,) = [event for event in played.events if isinstance(event, e.Failed)]
    assert failed.reason == "no memory"


def test_replicas_that_differ_are_distrusted_also_when_it_is_told_late(played: Played) -> None:
    played.started(on(1, 1), 0, 1)
    played.say(0, m.Broke, step=4, kind="lost", text="a peer was lost")
    played.say(1, m.Broke, step=4, kind="garbage", text="replicas differ")
    played.surveyed(0, 1)
    assert (played.told(0)[-1], played.told(1)[-1]) == ("Attach", "Attach")  # from the beginning


def test_what_an_audit_distrusts_stays_so_until_a_new_generation_has_begun(played: Played) -> None:
    played.started(on(1, 1), 0, 1)
    played.say(0, m.Broke, step=4, kind="garbage", text="replicas differ")
    played.surveyed(0, 1)
    assert (played.told(0), played.told(1)) == (["Attach"], ["Attach"])  # from the beginning
    played.job.gone(played.worker(1), "died")
    played.reply(0, {"num_workers": 2, "order": None})
    assert played.told(0) == ["Survey"]
    played.surveyed(0)  # as if it still had what is not trusted
    played.reply(1, {"num_workers": 2, "order": None})
    assert played.told(0) == ["Attach"]
    played.reply(0, {"num_workers": 2, "order": None})
    played.configured(0, 1)
    played.say(0, m.Broke, step=4, kind="lost", text="a peer was lost")
    played.surveyed(0, 1)
    assert played.worker(0).told[-1].step == 4  # and is trusted from then on


def test_a_request_that_is_refused_twice_ends_the_job(played: Played) -> None:
    played.started(on(2), 0)
    played.say(0, m.Broke, step=4, kind="lost", text="a peer was lost")
    played.reply(0, error="no")
    assert played.told(0) == ["Survey"]
    played.reply(0, error="no")
    assert played.told(0) == ["Detach"]
    played.reply(0)
    assert played.job.over
    assert played.pool.back == [played.worker(0)]
    failed = played.events[-1]
    assert isinstance(failed, e.Failed)
    assert failed.reason == "no"


def test_a_death_is_told_of_also_after_a_request_was_refused(played: Played) -> None:
    played.started(on(1, 1), 0, 1)
    played.job.rescale(on(2))
    assert (played.told(0), played.told(1)) == (["Pause"], ["Pause"])
    for device in (0, 1):
        played.say(device, m.Paused, step=4)
    assert (played.told(0), played.told(1)) == (["Survey"], ["Survey"])
    played.reply(0, error="no")
    played.reply(1, m.Surveyed(step=4, contexts=WHOLE, last=None))
    assert played.events == []  # asked again
    played.job.gone(played.worker(1), "died")
    assert [type(event) for event in played.events] == [e.LaneLost, e.Broken]


def test_a_stop_comes_between_a_survey_and_the_move(played: Played) -> None:
    played.started(on(2), 0)
    played.job.stop(checkpoint=False)
    played.say(0, m.Paused, step=4)
    played.surveyed(0)
    assert played.told(0) == ["Detach"]
    played.reply(0)
    (stopped,) = [event for event in played.events if isinstance(event, e.Stopped)]
    assert (stopped.step, stopped.checkpoint) == (4, None)


def test_a_job_that_is_stopped_before_it_has_begun_names_no_checkpoint(
    agent: Agent, tmp_path: Any
) -> None:
    agent.start(job("mlp", 2, STEPS, folder=str(tmp_path)), on(2))
    agent.stop("job", checkpoint=True)
    stopped = agent.settle("job")[-1]
    assert isinstance(stopped, e.Stopped)
    assert stopped.checkpoint is None


@pytest.mark.parametrize("first", ["answers", "dies"])
@pytest.mark.parametrize("stop", [False, True])
def test_a_death_while_all_devices_are_left_changes_nothing_any_more(
    played: Played, stop: bool, first: str
) -> None:
    """Who has forgotten the job cannot be asked what it holds, and need not be."""
    played.started(on(1, 1), 0, 1)
    if stop:
        played.job.stop(checkpoint=False)
    step = 4 if stop else STEPS
    for device in (0, 1):
        played.say(device, m.Paused, step=step)
    if stop:
        played.surveyed(0, 1)
    else:
        assert (played.told(0), played.told(1)) == (["Digest"], ["Digest"])
        played.reply(0, {"network/a": "00"})
        played.reply(1, {"network/a": "00"})
    assert played.told(0)[-1] == played.told(1)[-1] == "Detach"
    dead = played.worker(1)
    if first == "dies":
        played.job.gone(dead, "died")
        assert played.pool.back == []
        played.reply(0)
    else:
        played.reply(0)
        assert played.pool.back == []
        played.job.gone(dead, "died")
    assert played.job.over
    assert (played.pool.back, played.pool.buried) == ([played.worker(0)], [dead])
    kinds = [type(event) for event in played.events]
    assert kinds == [e.LaneLost, e.Stopped if stop else e.Finished]
    assert len(played.pool.made) == 2
