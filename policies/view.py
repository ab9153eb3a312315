"""What a policy sees: the cluster, the waiting and the running jobs, at one instant.

:class:`ClusterView` is the reading side; :class:`LiveView` adds the transitions by which the
driver (or a replay of a run log) keeps it up to date. It is never rebuilt: a transition touches
the indices of the jobs and devices it concerns. Everything a policy remembers about a job is a
value that the policy computes from the job's own history (``Policy.remember``), so a view is a
function of the events so far, and so is every plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.contract import Policy
from policies.elastic import Kinds, pools_held, sized
from policies.free import FreeGpus
from policies.model import Model
from policies.plan import Draft
from policies.queues import DueTimes, RunningJobs, Shape, WaitingJobs
from policies.state import DONE, RUNNING, WAITING, JobState
from traces import Allocation, ClusterSpec, Job

if TYPE_CHECKING:
    from policies.contract import PlacementPolicy

INFINITY = float("inf")


class ClusterView:
    """The state of the cluster as policies see it. Read, never write.

    ``now``: the instant, seconds. ``spec``: the inventory. ``free``: the free devices.
    ``waiting``, ``running``: the jobs, in the orders the policy declares. ``placement``: the
    placement policy a draft asks. ``finished``: how many jobs have ended. ``steady``: so far every
    job made progress from the instant it started, at rate 1. ``elastic``: the elastic jobs that
    run, by rank, in order of their last start or change. ``model``: what is believed of rates and
    costs.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        policy: Policy,
        placement: PlacementPolicy,
        model: Model | None = None,
    ) -> None:
        self.now = 0.0
        self.spec = spec
        self.policy = policy
        self.placement = placement
        self.model = model or Model()
        self.elastic: dict[int, JobState] = {}
        self._kinds = Kinds()
        self.free = FreeGpus(spec)
        self.waiting = WaitingJobs()
        self.running = RunningJobs(ordered=policy.orders_running)
        # What a policy does not declare need not be asked for every job.
        self._grouped = type(policy).group is not Policy.group
        self._ordered = type(policy).order is not Policy.order
        self._remembers = policy.remembers
        self.finished = 0
        self.steady = True
        self._shapes: dict[tuple[int, str | None], Shape] = {}
        self._due = DueTimes()
        self._by_types: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._sizes_gpu_s: list[float] = []
        self._lesson: Any = policy.learn(()) if policy.learns else None
        self._lesson_at = 1  # how many finished jobs the next lesson is for

    @property
    def shapes(self) -> list[Shape]:
        """All shapes of jobs seen so far, in order of appearance."""
        return list(self._shapes.values())

    def draft(self) -> Draft:
        """Return an empty plan to fill."""
        return Draft(self)

    def pools_of(self, gpu_types: tuple[str, ...]) -> tuple[int, ...]:
        """Indices of the pools that a request for these types may use, in order of preference."""
        known = self._by_types.get(gpu_types)
        if known is None:
            pools = self.free.pools
            if gpu_types:
                known = tuple(p.index for t in gpu_types for p in pools if p.gpu_type == t)
            else:
                known = tuple(p.index for p in pools)
            self._by_types[gpu_types] = known
        return known

    def capacity(self) -> dict[str, int]:
        """GPUs in service by type."""
        return {pool.gpu_type: pool.capacity for pool in self.free.pools}

    def next_change_s(self) -> float:
        """The earliest instant at which a job's place in the order changes by itself."""
        return self._due.next_s()


class LiveView(ClusterView):
    """A view with its transitions. Each takes effect at ``now``."""

    def submit(self, job: Job, estimate_s: float) -> JobState:
        """A job arrives and waits."""
        policy = self.policy
        group = policy.group(job) if self._grouped else None
        key = (id(job.request), group)  # requests are interned and outlive the view
        shape = self._shapes.get(key)
        if shape is None:
            shape = Shape(job.request, group, self.pools_of(job.request.gpu_types))
            self._shapes[key] = shape
        state = JobState(job, shape, estimate_s, self.now)
        state.lesson = self._lesson
        if job.elastic is not None:
            state.kind = self._kinds.of(job, self.free, self.model)
        if self._remembers:
            state.memory = policy.remember(state, self.now, "submit")
            self._wait(state)
        else:
            self.waiting.add(state, policy.order(state, self.now) if self._ordered else 0.0)
        return state

    def start(self, job: JobState, allocation: Allocation, begin_s: float, rate: float) -> None:
        """A waiting job gets devices; progress begins at ``begin_s`` at ``rate`` per second."""
        now = self.now
        self.waiting.remove(job)
        job.waited_s += now - job.since_s
        job.phase = RUNNING
        job.allocation = allocation
        job.since_s = now
        job.begin_s = begin_s
        job.rate = rate
        if job.first_start_s is None:
            job.first_start_s = now
        if rate != 1.0 or begin_s != now:
            self.steady = False
        if job.elastic is None:
            self.free.take(allocation, job.request)
        else:
            self._hold(job, allocation)
        self._run(job, "start")

    def stop(self, job: JobState, done_s: float, event: str) -> None:
        """A running job loses its devices ("preempt", "fail") and waits with ``done_s`` done."""
        self._halt(job, done_s)
        if event == "preempt":
            job.preemptions += 1
        else:
            job.failures += 1
        job.phase = WAITING
        if self._remembers:
            job.memory = self.policy.remember(job, self.now, event)
        self._wait(job)

    def move(
        self,
        job: JobState,
        allocation: Allocation,
        begin_s: float,
        rate: float,
        event: str = "migrate",
    ) -> None:
        """A running job that was released from its devices goes on on others at ``begin_s``.

        ``event``: "resize" if their number or types are others than before.
        """
        if event == "resize":
            job.resizes += 1
        else:
            job.migrations += 1
        if rate != 1.0 or begin_s != self.now:
            self.steady = False
        job.allocation = allocation
        job.begin_s = begin_s
        job.rate = rate
        if job.elastic is None:
            self.free.take(allocation, job.request)
        else:
            self._hold(job, allocation)
        self._run(job, event)

    def release(self, job: JobState, done_s: float) -> None:
        """A running job gives its devices back and is about to move, with ``done_s`` done."""
        self._halt(job, done_s)

    def finish(self, job: JobState) -> None:
        """A running job ends."""
        self._end(job, job.estimate_s)
        if self.policy.learns:
            self._sizes_gpu_s.append(job.served_gpu_s)

    def give_up(self, job: JobState) -> None:
        """A running job fails for good: it is over, and says nothing of the sizes of jobs."""
        self._end(job, job.done_s)

    def _end(self, job: JobState, done_s: float) -> None:
        self._halt(job, done_s)
        job.phase = DONE
        job.due = INFINITY
        self.finished += 1

    def withdraw(self, node: int, mask: int, *, host: bool = False) -> None:
        """Free GPUs leave service."""
        self.free.withdraw(node, mask, host=host)

    def restore(self, node: int, mask: int, *, host: bool = False) -> None:
        """GPUs come back into service."""
        self.free.restore(node, mask, host=host)

    def settle(self) -> bool:
        """Re-enter jobs whose place in the order changes by now; true if there were any."""
        any_due = False
        if len(self._sizes_gpu_s) >= self._lesson_at:
            self._learn()
        for job in self._due.pop(self.now):
            any_due = True
            if job.phase == WAITING:
                self.waiting.remove(job)
            elif job.phase == RUNNING:
                self.running.remove(job)
            else:
                continue
            job.memory = self.policy.remember(job, self.now, "due")
            if job.phase == WAITING:
                self._wait(job)
            else:
                self._run(job, None)
        return any_due

    def _learn(self) -> None:
        """Take the next lesson and enter every job anew under it."""
        policy, now = self.policy, self.now
        self._lesson_at = 2 * len(self._sizes_gpu_s)
        lesson = policy.learn(tuple(self._sizes_gpu_s))
        if lesson == self._lesson:
            return
        self._lesson = lesson
        for job in list(self.waiting):
            self.waiting.remove(job)
            job.lesson = lesson
            self.waiting.add(job, policy.order(job, now))
        for job in list(self.running):
            self.running.remove(job)
            job.lesson = lesson
            self.running.add(job, policy.running_order(job, now) if policy.orders_running else None)

    def _wait(self, job: JobState) -> None:
        self.waiting.add(job, self.policy.order(job, self.now) if self._ordered else 0.0)
        if self._remembers:
            self._due.set(job, self.policy.changes_at(job, self.now))

    def _run(self, job: JobState, event: str | None) -> None:
        policy, now = self.policy, self.now
        if self._remembers and event is not None:
            job.memory = policy.remember(job, now, event)
        running = self.running
        running.add(job, policy.running_order(job, now) if running.order is not None else None)
        if self._remembers:
            self._due.set(job, policy.changes_at(job, now))

    def _halt(self, job: JobState, done_s: float) -> None:
        now = self.now
        self.running.remove(job)
        held = now - job.since_s
        job.executed_s += held
        job.served_gpu_s += held * job.gpus
        job.since_s = now
        job.done_s = done_s
        assert job.allocation is not None
        if job.elastic is None:
            self.free.give(job.allocation, job.request)
        else:
            self._let_go(job, job.allocation)
        job.allocation = None

    def _hold(self, job: JobState, allocation: Allocation) -> None:
        """An elastic job takes devices: as many as it is given, not as many as it asked for."""
        count = allocation.num_gpus
        self.free.take(allocation, sized(job.request, count))
        job.gpus = count
        job.held = pools_held(allocation, self.free)
        self.elastic[job.rank] = job

    def _let_go(self, job: JobState, allocation: Allocation) -> None:
        self.free.give(allocation, sized(job.request, allocation.num_gpus))
        job.gpus = job.shape.gpus
        job.held = ()
        del self.elastic[job.rank]
