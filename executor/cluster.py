"""``LocalCluster``: the driver's backend in the real world, and the mailbox of its wall clock.

The driver starts, moves and stops jobs as it does in the simulator; here an agent runs them on the
machine's device lanes. One thread does everything: the wall clock waits in ``LocalCluster.wait``,
which waits in ``Agent.poll``, and what the agent tells becomes messages at the instants at which
it was learnt.

Work is counted as everywhere (``policies.model``): a job of ``total_steps`` steps has its
``duration_s`` of work, so a step is worth an equal part of it. A stay's progress begins with its
first step, and its rate is what was measured.

A preempted job leaves its devices at the next step boundary, with a checkpoint, after the driver
has decided; whoever comes next on these lanes begins when they are free (the agent keeps the
order). The driver is told of the steps committed when it decided, at most one less than are kept.

An online service beside the jobs is ``executor.online``. Leaves out: more than one machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from executor import events as e
from executor.agent import Agent
from executor.clock import Message
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.jobspec import JobSpec
from executor.pool import Place
from policies.clock import CAPACITY, FINISH, TIMER, Moment
from policies.contract import Listener
from policies.state import JobState
from traces import Allocation, ClusterSpec
from traces.cluster import Node, mask_of
from traces.workermap import WorkerMap

_TICK_S = 0.2
_LATEST = 200  # steps whose times a stay remembers


def cluster_of(lanes: Sequence[DeviceLane]) -> tuple[ClusterSpec, dict[Place, DeviceLane]]:
    """Return the inventory of a machine's lanes, and the lane of each of its devices.

    One node for each type of lane, in order of first appearance. Raises ExecutorError for none.
    """
    if not lanes:
        raise ExecutorError("no lanes", expected="at least one device to run on")
    types = list(dict.fromkeys(lane.gpu_type for lane in lanes))
    places: dict[Place, DeviceLane] = {}
    nodes = []
    for node, gpu_type in enumerate(types):
        own = [lane for lane in lanes if lane.gpu_type == gpu_type]
        places |= {(node, gpu): lane for gpu, lane in enumerate(own)}
        nodes.append(Node(name=f"local-{gpu_type}", gpu_type=gpu_type, num_gpus=len(own)))
    return ClusterSpec(tuple(nodes)), places


@dataclass(slots=True)
class Stay:
    """One stay of a job on its devices, measured (see ``policies.contract.Stint``).

    The first step was done at ``first_s``, the one with number ``at`` at ``last_s``.
    """

    job: JobState
    worker_map: WorkerMap
    since_s: float
    begun_at: int
    first_s: float | None = None
    last_s: float = 0.0
    at: int = 0
    step_s: list[float] = field(default_factory=list)
    loss: float = float("nan")
    done_s: float = 0.0
    lost_s: float = 0.0
    begin_s: float = 0.0
    end_s: float = 0.0
    rate: float = 0.0

    def close(self, now_s: float, step_work_s: float) -> Stay:
        """Fill in what a stint says: begin, rate, work done."""
        self.begin_s, self.end_s, self.rate = now_s, now_s, 0.0
        if self.first_s is not None:
            # The first step began about one step before it was done.
            usual_s = median(self.step_s) if self.step_s else 0.0
            self.begin_s = max(self.since_s, self.first_s - usual_s)
            span_s = self.last_s - self.begin_s
            if span_s > 0:
                self.rate = (self.at - self.begun_at) * step_work_s / span_s
        self.done_s = self.at * step_work_s
        return self


class LocalCluster:
    """Runs jobs of a driver on this machine's lanes. Backend and mailbox.

    ``spec_of`` names the job that a ``JobState`` stands for: its task, steps and habits, with
    ``resume`` set, so that a job which was stopped goes on from its checkpoint. ``begun``: steps
    that a job's checkpoint holds from before. ``on_wait`` is called several times a second while
    the driver waits, ``on_turn`` then and whenever the driver begins to wait. ``returning``: what
    will give lanes back by itself.
    """

    def __init__(
        self,
        agent: Agent,
        spec_of: Callable[[JobState], JobSpec],
        *,
        begun: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.agent = agent
        self.stays: dict[int, Stay] = {}
        self.finished: dict[str, e.Finished] = {}
        self.failed: dict[str, e.Failed] = {}
        self.told: list[e.Event] = []
        self.closed: list[Stay] = []
        self.waits, self.waited_s = 0, 0.0
        self._begun = dict(begun or {})  # steps that a job's checkpoint holds already
        self._spec_of = spec_of
        self._clock = clock
        self._origin_s = clock()
        self.on_wait: Callable[[float], None] | None = None
        self.on_turn: Callable[[float], None] | None = None
        self.returning = 0
        self._ranks: dict[str, int] = {}
        self._leaving: dict[str, JobState] = {}
        self._waiting: dict[str, tuple[JobState, WorkerMap]] = {}
        self._steps: dict[str, int] = {}
        self._early: list[Message] = []
        self._woken: Callable[[Moment], object] | None = None
        self._listener: Listener | None = None

    # The mailbox.

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._origin_s

    @property
    def origin_s(self) -> float:
        """The monotonic clock at the run's time 0."""
        return self._origin_s

    def begin(self, at_s: float = 0.0) -> None:
        """Let the run's time begin now, at ``at_s``."""
        self._origin_s = self._clock() - at_s

    def wait(self, until_s: float) -> Sequence[Message]:
        """Poll the agent until something concerns the driver, at most until ``until_s``."""
        began_s = self._clock()
        try:
            return self._wait(until_s)
        finally:
            self.waits += 1
            self.waited_s += self._clock() - began_s

    def _wait(self, until_s: float) -> Sequence[Message]:
        while True:
            if self.on_turn is not None:
                self.on_turn(self.now_s())
            if self._early:
                messages, self._early = self._early, []
                return messages
            if self._woken is not None:
                call, self._woken = self._woken, None
                return (Message(time_s=self.now_s(), kind=TIMER, call=call),)
            left_s = until_s - self.now_s()
            messages = []
            for event in self.agent.poll(max(0.0, min(left_s, _TICK_S))):
                messages += self._hear(event)
            if self.on_wait is not None:
                self.on_wait(self.now_s())
            if messages or left_s <= 0:
                return messages

    def expecting(self) -> bool:
        """Whether a job runs, or leaves its devices."""
        return bool(self.stays or self._leaving or self._early or self._woken)

    def step_of(self, job_id: str) -> int:
        """Steps of a job that are committed, as far as is known."""
        return self._steps.get(job_id, self._begun.get(job_id, 0))

    def finished_by(self, rank: int) -> e.Finished:
        """How the job of a rank finished."""
        return next(done for job_id, done in self.finished.items() if self._ranks[job_id] == rank)

    def measured(self) -> dict[int, tuple[float, float, float, float]]:
        """Of each stay: when it began, when progress did, its rate, and the work done so far."""
        now_s = self.now_s()
        return {
            rank: (stay.since_s, known.begin_s, known.rate, known.done_s)
            for rank, stay in self.stays.items()
            for known in (replace(stay).close(now_s, _step_work_s(stay.job)),)
        }

    def wake(self, call: Callable[[Moment], object]) -> None:
        """Have ``call`` run by the clock as soon as it can (safe in a signal handler)."""
        self._woken = call

    # The backend.

    def attach(self, listener: Listener) -> None:
        """Name the driver."""
        self._listener = listener

    @property
    def listener(self) -> Listener:
        """The driver that hears of events."""
        assert self._listener is not None, "attach a driver first"
        return self._listener

    def start(self, job: JobState, allocation: Allocation) -> None:
        """Run a job on lanes that the driver holds to be free."""
        job_id = job.job_id
        worker_map = _map_of(job)
        self._ranks[job_id] = job.rank
        begun_at = self.step_of(job_id)
        self.stays[job.rank] = Stay(
            job=job, worker_map=worker_map, since_s=self.now_s(), begun_at=begun_at, at=begun_at
        )
        if job_id in self.finished or job_id in self.failed:  # it ended while it was being stopped
            self._early.append(self._over(job.rank, job_id, self.now_s()))
        elif job_id in self._leaving:
            self._waiting[job_id] = (job, worker_map)
        else:
            self.agent.start(self._spec_of(job), worker_map)

    def stop(self, job: JobState, *, failed: bool) -> Stay:
        """Take a job off its lanes at the next step boundary."""
        stay = self._closed(job)
        if self._waiting.pop(job.job_id, None) is None and self._runs(job.job_id):
            self._leaving[job.job_id] = job
            self.agent.stop(job.job_id, checkpoint=True)
        return stay

    def move(self, job: JobState, allocation: Allocation) -> Stay:
        """Let a running job go on on other lanes, without a restart."""
        stay = self._closed(job)
        worker_map = _map_of(job)
        self.stays[job.rank] = Stay(
            job=job, worker_map=worker_map, since_s=self.now_s(), begun_at=stay.at, at=stay.at
        )
        if job.job_id in self._waiting:
            self._waiting[job.job_id] = (job, worker_map)
        elif self._runs(job.job_id):
            self.agent.rescale(job.job_id, worker_map)
        return stay

    def hand_over_s(self, job: JobState, *, stops: bool) -> float:
        """Only time can tell."""
        return float("inf")

    def _runs(self, job_id: str) -> bool:
        """Whether the agent still has it; when a run is closed, jobs have been stopped before."""
        running = self.agent.jobs.get(job_id)
        ended = job_id in self.finished or job_id in self.failed
        return not ended and running is not None and not running.over

    def quiet(self) -> bool:
        """Whether no lane will come back by itself."""
        return self.returning == 0

    def free_for_service(self, place: Place) -> None:
        """Training has left a lane that an online service was lent; the driver hears of it."""

        def tell(_: Moment) -> None:
            self.listener.device_ready(*place)

        self._early.append(Message(time_s=self.now_s(), kind=CAPACITY, call=tell))

    def lose(self, place: Place, detail: str) -> None:
        """A lane has vanished: its job goes on without it or waits, and the driver hears of it."""
        self.agent.lose_lane(place)
        node, gpu = place

        def tell(_: Moment) -> None:
            self.listener.devices_lost(node, mask_of((gpu,)), detail)

        self._early.append(Message(time_s=self.now_s(), kind=CAPACITY, call=tell))

    # What the agent tells.

    def _hear(self, event: e.Event) -> list[Message]:
        job_id, at_s = event.job_id, event.at_s - self._origin_s
        if isinstance(event, e.Progress):
            self._progress(job_id, event, at_s)
            return []
        self.told.append(event)
        if isinstance(event, e.Stopped):
            self._steps[job_id] = event.step
            self._leaving.pop(job_id, None)
            self._start_waiting(job_id)
        if isinstance(event, e.Finished):
            self.finished[job_id] = event
            return self._ended(job_id, at_s)
        if isinstance(event, e.Failed):
            self._steps[job_id] = event.step
            self.failed[job_id] = event
            return self._ended(job_id, at_s)
        return []

    def _ended(self, job_id: str, at_s: float) -> list[Message]:
        leaving = self._leaving.pop(job_id, None) is not None
        if leaving and self._waiting.pop(job_id, None) is None:
            return []  # the driver has it waiting; its next start will be its end
        return [self._over(self._ranks[job_id], job_id, at_s)]

    def _progress(self, job_id: str, event: e.Progress, at_s: float) -> None:
        self._steps[job_id] = event.step
        stay = self.stays.get(self._ranks[job_id])
        if stay is None or job_id in self._leaving:
            return
        stay.at, stay.last_s, stay.loss = event.step, at_s, event.loss
        if stay.first_s is None:
            stay.first_s = at_s
        elif len(stay.step_s) < _LATEST:
            stay.step_s.append(event.seconds)

    def _start_waiting(self, job_id: str) -> None:
        waiting = self._waiting.pop(job_id, None)
        if waiting is not None:
            job, worker_map = waiting
            self.stays[job.rank].begun_at = self.stays[job.rank].at = self._steps[job_id]
            self.agent.start(self._spec_of(job), worker_map)

    def _over(self, rank: int, job_id: str, at_s: float) -> Message:
        """Tell the driver that a job has ended, well or not."""

        def tell(_: Moment) -> None:
            stay = self.stays.pop(rank, None)
            if stay is None:
                return  # stopped by a decision made since; its next start will be its end
            self.closed.append(stay.close(self.now_s(), _step_work_s(stay.job)))
            failed = self.failed.get(job_id)
            if failed is None:
                stay.done_s = stay.job.job.duration_s
                self.listener.job_finished(rank, stay)
            else:
                stay.lost_s, stay.done_s = stay.done_s, 0.0
                self.listener.job_failed(rank, stay, failed.reason)

        return Message(time_s=at_s, kind=FINISH, call=tell)

    def _closed(self, job: JobState) -> Stay:
        stay = self.stays.pop(job.rank).close(self.now_s(), _step_work_s(job))
        self.closed.append(stay)
        return stay


def _map_of(job: JobState) -> WorkerMap:
    if job.worker_map is None:
        raise ExecutorError(
            "a rigid job cannot be executed",
            where=f"job {job.job_id!r}",
            expected="an elastic job: num_workers, max_gpus, model, batch_size and total_steps",
        )
    return job.worker_map


def _step_work_s(job: JobState) -> float:
    elastic = job.elastic
    assert elastic is not None
    assert elastic.total_steps
    return job.job.duration_s / elastic.total_steps
