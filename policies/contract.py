"""The contract between policies and the two worlds.

A policy is a frozen value: its parameters, and pure functions. What it must remember about a job
it declares through :meth:`Policy.remember`; the view keeps it. A policy never knows whether the
cluster it plans for is simulated or real.

A policy in full::

    class Fifo(Policy):
        def plan(self, view):
            draft = view.draft()
            for job in view.waiting:
                if not draft.start(job):
                    break  # the head of the line blocks
            return draft
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from policies.state import JobState
from traces import Allocation, Job, Request

if TYPE_CHECKING:
    from policies.free import FreeGpus
    from policies.lending import ServingDemand
    from policies.plan import Plan
    from policies.view import ClusterView
    from traces import Elastic, Profile, WorkerMap
    from traces.workermap import Gpu, GpuCounts

NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a job waits (or runs), for machines (``code``, ``facts``) and for people (``text``)."""

    code: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of inter-job policies: which jobs run, and on how many GPUs of which type.

    A subclass is a frozen dataclass; its fields are its parameters. It must implement ``plan``
    (and ``says``, if its name leaves anything open); the rest has defaults that suit a policy
    which serves jobs in order of submission and never stops one.

    Class attributes: ``orders_running`` (keep running jobs sorted by ``running_order``),
    ``orders_by_work`` (that order is the one by ``order`` only while the view is ``steady``),
    ``remembers`` (uses ``remember`` and ``changes_at``), ``needs_estimates`` (reads estimates of
    run time), ``learns`` (orders jobs by what ``learn`` makes of the sizes of finished ones),
    ``resizes`` (gives elastic jobs other sizes than their gangs),
    ``ahead`` (what is true of the jobs that go before another, for its reasons), ``interval_s``
    (None: event-driven; else it is asked at multiples of it only).
    """

    name: ClassVar[str] = ""
    orders_running: ClassVar[bool] = False
    orders_by_work: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    needs_estimates: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    resizes: ClassVar[bool] = False
    ahead: ClassVar[str] = "submitted earlier"

    @property
    def interval_s(self) -> float | None:
        """Seconds between rounds, or None if every event asks for a decision."""
        return None

    @property
    def estimates(self) -> str:
        """Which estimates of run time it is given; see ``policies.estimates``."""
        return "none"

    def plan(self, view: ClusterView) -> Plan:
        """Say what should change, given the view and nothing else."""
        raise NotImplementedError

    def order(self, job: JobState, now: float) -> Any:
        """Key of a waiting job, smaller first; ties go by submission, then by id.

        Must stay true until the job starts, or until ``changes_at``.
        """
        return 0.0

    def running_order(self, job: JobState, now: float) -> Any:
        """Key of a running job; comparisons between running jobs must not change while both run."""
        return 0.0

    def group(self, job: Job) -> str | None:
        """Jobs of different groups wait in different queues (for instance: the virtual cluster)."""
        return None

    def remember(self, job: JobState, now: float, event: str) -> Any:
        """Return the job's new memory after an event; pure.

        Events: submit, start, preempt, fail, migrate, resize, and due (``changes_at`` has come).
        """
        return None

    def changes_at(self, job: JobState, now: float) -> float:
        """The instant (> now) at which the job's place changes by itself; NEVER if it does not."""
        return NEVER

    def learn(self, sizes_gpu_s: Sequence[float]) -> Any:
        """Return what the sizes (GPU-seconds) of the jobs finished so far teach; pure.

        Every job has the latest lesson as ``job.lesson``. Asked before the first job, and whenever
        the number of finished jobs has doubled (so that all lessons together cost little);
        ``order`` and ``running_order`` are then asked again for every job.
        """
        return None

    def give_way(self, view: ClusterView, pool: int, count: int) -> Plan:
        """Say which jobs leave ``count`` GPUs of a pool to an online service, at once; pure.

        The default is :func:`policies.yielding.give_way`. The plan may stop jobs and take GPUs from
        them, and do nothing else.
        """
        from policies.yielding import give_way  # noqa: PLC0415  (it reads the contract)

        return give_way(view, pool, count)

    def explain(self, view: ClusterView, job: JobState) -> Reason:
        """Say why a job waits. The default knows queues and room (``policies.reasons``)."""
        from policies.reasons import explain  # noqa: PLC0415  (reasons read the contract)

        return explain(self, view, job)

    def says(self) -> tuple[str, ...]:
        """What the policy's name leaves open and its parameters settle, one sentence each."""
        return ()

    def params(self) -> dict[str, Any]:
        """Parameters by name, for the run's record."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class PlacementPolicy:
    """Base of placement policies: on which GPUs.

    ``by_count`` says that whether a *plain* request (whole GPUs of a gang that may span nodes,
    whose hosts are no limit) can be placed depends on the number of free GPUs of a type alone;
    priority policies then need not search for victims on particular nodes.
    :meth:`exact_by_count` says it for one request.
    """

    name: ClassVar[str] = ""
    by_count: ClassVar[bool] = False

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Choose free devices for a request, or None if there are none to its liking.

        ``free`` may be a hypothetical state; it must not be changed.
        """
        raise NotImplementedError

    def exact_by_count(self, request: Request, free: FreeGpus) -> bool:
        """Whether this request can be placed exactly when some pool has enough free GPUs."""
        from policies.placement.room import plain  # noqa: PLC0415  (it reads this contract)

        return self.by_count and plain(request, free)

    def prepare(self, demand: Mapping[Request, int]) -> PlacementPolicy:
        """Return the policy for a workload of which ``demand`` counts the jobs per request.

        Asked once before a run. Most placements do not care and return themselves.
        """
        return self

    def says(self) -> tuple[str, ...]:
        """What the name leaves open, one sentence each."""
        return ()

    def params(self) -> dict[str, Any]:
        """Parameters by name, for the run's record."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """More GPUs that an elastic job would like to have, and what they would give it.

    ``more`` GPUs of ``gpu_type`` make it ``speedup`` times as fast (a job that holds none: its
    rate, 1 being every logical worker alone on a GPU of the preferred type); ``gain`` is the
    speed-up per GPU, ``(speedup - 1) / more`` (``speedup / more`` for a job that holds none).
    ``gpus``: what it would then use, by type; ``released``: what it holds now and would hand back,
    because no logical worker would sit there. ``step_s``: its step time then. ``waste_share``: the
    part of its GPUs' speed that would be idle.
    """

    gpu_type: str
    more: int
    speedup: float
    gain: float
    step_s: float
    gpus: Mapping[str, int]
    released: Mapping[str, int]
    waste_share: float


@dataclass(frozen=True, kw_only=True)
class IntraJobPolicy:
    """Base of intra-job policies: logical workers onto GPUs, and what more would help.

    Pure: the same job, GPUs and profile give the same answer, in the order the GPUs come or in any
    other. The simulator predicts a job's rate by ``assign``, the executor configures its workers.
    """

    name: ClassVar[str] = ""

    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        """Say which of a job's logical workers sit on which of the GPUs it holds.

        A GPU that is not in the map holds no logical worker and should be given back.
        """
        raise NotImplementedError

    def proposals(
        self, elastic: Elastic, held: GpuCounts, free: GpuCounts, profile: Profile
    ) -> Sequence[Proposal]:
        """Say which more GPUs would make a job faster, best first; ``held`` empty: to start it."""
        return ()

    def says(self) -> tuple[str, ...]:
        """What the name leaves open, one sentence each."""
        return ()

    def params(self) -> dict[str, Any]:
        """Parameters by name, for the run's record."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Stint(Protocol):
    """What a backend knows of one stay of a job on its devices, once it is over.

    ``begin_s``: when progress began. ``rate``: progress per second. ``done_s``: the job's work
    that counts so far. ``lost_s``: work thrown away by the way it ended (seconds of work).
    """

    begin_s: float
    rate: float
    done_s: float
    lost_s: float


class Listener(Protocol):
    """What a backend may tell the driver. Nothing else of the world reaches a policy."""

    def job_finished(self, rank: int, stint: Stint) -> None:
        """A job's work is done."""

    def job_failed(self, rank: int, stint: Stint, reason: str) -> None:
        """A running job failed for good: it is over, and is not started again."""

    def devices_lost(self, node: int, mask: int, detail: str, *, host: bool = False) -> None:
        """GPUs in service fail or are taken away; jobs on them stop.

        ``host``: the machine itself is gone, so that CPU jobs on it stop as well.
        """

    def devices_returned(self, node: int, mask: int, detail: str, *, host: bool = False) -> None:
        """GPUs are back, and with ``host`` their machine."""

    def serving_demand(self, demand: ServingDemand) -> None:
        """An online service needs another number of GPUs; what it needs it owns at once."""

    def device_ready(self, node: int, gpu: int) -> None:
        """The jobs have left a device that the service was lent; told where only time can tell."""


class Backend(Protocol):
    """A world: simulated or real."""

    def attach(self, listener: Listener) -> None:
        """Name the driver that wants to hear of events; called once, before the first job."""

    def start(self, job: JobState, allocation: Allocation) -> None:
        """Run a job on devices that are free."""

    def stop(self, job: JobState, *, failed: bool) -> Stint:
        """Take a job off its devices, by decision or because they failed."""
        ...

    def move(self, job: JobState, allocation: Allocation) -> Stint:
        """Let a running job go on on other devices; the stay on the old ones is over."""
        ...

    def hand_over_s(self, job: JobState, *, stops: bool) -> float:
        """Seconds until a running job has left devices that it is told to give up now.

        ``stops``: it gives up all of them. Asked before it is moved or stopped; infinite if only
        time can tell.
        """
        ...

    def quiet(self) -> bool:
        """Whether no device will ever come back by itself (so a stuck queue stays stuck)."""
        ...


class ReportingBackend(Backend, Protocol):
    """A world whose jobs report how fast they are (``policies.learner``)."""

    def step_s(self, job: JobState) -> float | None:
        """Observed seconds of a global step in the present stay; None if there was none yet."""
        ...
