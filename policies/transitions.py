"""Transitions: what a plan changes, carried out in the view, in the world and in the log at once.

A plan says what should run where. What differs from what runs becomes a start, a preemption, a
migration or a resize. Jobs that move leave their devices before any other takes them, so two may
change places. Nothing is applied that was not checked, and every stay on devices is entered in the
books when it ends.

Leaves out: when a plan is asked for, and what happens in the world by itself (``policies.driver``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.books import Counts, Outcomes, Recorder
from policies.contract import Backend, PlacementPolicy, Policy, Stint
from policies.efforts import Efforts
from policies.elastic import even, pools_held
from policies.errors import PlanError, PolicyError
from policies.feasible import fault_of, fault_of_shape, plainly_right
from policies.model import Model
from policies.plan import Plan
from policies.state import RUNNING, WAITING, JobState
from policies.view import LiveView
from traces import Allocation, ClusterSpec, Elastic, WorkerMap, Workload
from traces.runlog import END_REASONS, EVENT_CODE
from traces.workermap import Gpu, devices_of

Assign = Callable[[Elastic, Sequence[Gpu]], WorkerMap]

START, PREEMPT = EVENT_CODE["start"], EVENT_CODE["preempt"]
MIGRATE, RESIZE = EVENT_CODE["migrate"], EVENT_CODE["resize"]
END_PREEMPT, END_MIGRATE, END_RESIZE, END_OPEN = (
    END_REASONS.index(r) for r in ("preempt", "migrate", "resize", "open")
)


class Transitions:
    """Carries out plans; the driver is built on it, and gives it what it has.

    ``model`` is where estimates of rates and costs come from; ``assign`` seats the logical workers
    of elastic jobs.
    """

    def __init__(
        self,
        *,
        workload: Workload,
        spec: ClusterSpec,
        policy: Policy,
        placement: PlacementPolicy,
        backend: Backend,
        log: Recorder,
        model: Model | None,
        assign: Assign | None,
    ) -> None:
        self.workload = workload
        self.policy = policy
        self._model = model or Model()
        self.view = LiveView(spec, policy, placement.prepare(workload.demand()), self._model)
        self.backend = backend
        self.log = log
        self.outcomes = Outcomes(len(workload))
        self.counts = Counts()
        self._rated = not self._model.uniform or workload.elastic
        self._assign: Assign = assign or even
        self._gratis = not (self._model.costs.start_s or self._model.costs.restore_s)
        self._efforts = Efforts()

    def _apply(self, plan: Plan) -> None:
        changes = plan.changes
        moves: dict[JobState, bool] = {}  # whether it is a change of size
        for job, allocation in changes.items():
            if type(job) is not JobState:
                fault = f"plan() returned a change for {job!r}, which is no job of the view"
                raise PolicyError(self.policy, self.view.now, fault)
            if job.phase == RUNNING:
                if allocation is None:
                    self._preempt(job)
                elif allocation != job.allocation:
                    moves[job] = False
            elif job.phase != WAITING or allocation is None:
                fault = "concerns a job that has ended" if job.phase != WAITING else "stops nothing"
                raise PlanError(self.policy, self.view, job, fault)
        for job in moves:
            moves[job] = self._depart(job, changes[job])
        for job, allocation in changes.items():
            if allocation is None:
                continue
            if job.phase == WAITING:
                self._check(job, allocation)
                self._start(job, allocation)
            elif job.allocation is None:
                self._check(job, allocation)
                self._arrive(job, allocation, resized=moves[job])

    def _check(self, job: JobState, allocation: Allocation) -> None:
        """Refuse an allocation that is not what the job asked for, or not free."""
        free = self.view.free
        if not plainly_right(job, allocation, free):
            wrong = fault_of(job, allocation, free)
            if wrong is not None:
                raise PlanError(self.policy, self.view, job, wrong)

    def _start(self, job: JobState, allocation: Allocation) -> None:
        view = self.view
        now = view.now
        if job.elastic is not None:
            self._seat(job, allocation)
        self.backend.start(job, allocation)
        begin_s = now if self._gratis else now + self._model.start_cost_s(job)
        view.start(job, allocation, begin_s, self._rate(job, allocation) if self._rated else 1.0)
        self.log.event(now, START, job.rank)

    def _preempt(self, job: JobState) -> None:
        stint = self.backend.stop(job, failed=False)
        self._leave(job, stint, END_PREEMPT)
        if stint.done_s <= job.done_s:
            self._efforts.stopped(job, self.policy, self.view.now)
        self.view.stop(job, stint.done_s, "preempt")
        self.counts.preemptions += 1
        self.log.event(self.view.now, PREEMPT, job.rank)

    def _depart(self, job: JobState, allocation: Allocation | None) -> bool:
        """Take a job off its devices on its way to others; true if they differ in number or type.

        An elastic job is seated on the new devices before the backend hears of them.
        """
        assert allocation is not None
        reason, sat = END_MIGRATE, job.worker_map
        if job.elastic is not None:
            wrong = fault_of_shape(job, allocation, self.view.free)
            if wrong is not None:
                raise PlanError(self.policy, self.view, job, wrong)
            if pools_held(allocation, self.view.free) != job.held:
                reason = END_RESIZE
            self._seat(job, allocation)
        stint = self.backend.move(job, allocation)
        self._leave(job, stint, reason, sat)
        self.view.release(job, stint.done_s)
        return reason == END_RESIZE

    def _arrive(self, job: JobState, allocation: Allocation, *, resized: bool) -> None:
        """Let it go on there."""
        view, counts = self.view, self.counts
        begin_s = view.now + self._model.move_cost_s(job)
        event = "resize" if resized else "migrate"
        view.move(job, allocation, begin_s, self._rate(job, allocation), event)
        if resized:
            counts.resizes += 1
        else:
            counts.migrations += 1
        self.log.event(view.now, RESIZE if resized else MIGRATE, job.rank)

    def _seat(self, job: JobState, allocation: Allocation) -> None:
        """Say which logical workers of an elastic job sit on which of its devices."""
        elastic = job.elastic
        assert elastic is not None
        job.worker_map = self._assign(elastic, devices_of(allocation, self.view.spec))

    def _rate(self, job: JobState, allocation: Allocation) -> float:
        if job.elastic is not None:
            return self._model.elastic_rate(job, allocation, self.view.spec, self.view.now)
        return self._model.rate(allocation, self.view.spec)

    def _leave(
        self, job: JobState, stint: Stint, reason: int, sat: WorkerMap | None = None
    ) -> None:
        """Close the books on a job's stay on its devices; ``sat``: who sat where, if it moves."""
        now = self.view.now
        allocation = job.allocation
        assert allocation is not None
        since, begin = job.since_s, stint.begin_s
        if job.elastic is None:
            self.log.allocation(job.rank, allocation, since, begin, now, stint.rate, reason)
        else:
            workers = sat or job.worker_map
            self.log.allocation(
                job.rank, allocation, since, begin, now, stint.rate, reason, workers
            )
        if begin != since:
            self.outcomes.overhead_gpu_s[job.rank] += (min(begin, now) - since) * job.gpus
        if stint.lost_s and reason != END_OPEN:  # the log ends, the job does not
            self.outcomes.lost_gpu_s[job.rank] += stint.lost_s * job.gpus
