"""What a policy may know of one job at one instant.

A :class:`JobState` is kept up to date by the driver; policies read it and must not write it
(``check_policy`` finds those that do). What grows while a job runs is a linear function of time
and is asked for at an instant: ``attained_gpu_s(now)``, ``progress_s(now)``, ``remaining_s(now)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from traces import Allocation, Elastic, Job, Request

if TYPE_CHECKING:
    from policies.elastic import Kind
    from policies.intra.learning import Memory
    from policies.queues import Shape
    from traces import WorkerMap

WAITING = 0
RUNNING = 1
DONE = 2


class JobState:
    """One submitted job.

    ``estimate_s``: how long the policy may believe the job runs in all (NaN if it may not know).
    ``memory``: what the policy declared to remember (see ``Policy.remember``). ``lesson``: what it
    has learned from finished jobs (``Policy.learn``).
    ``elastic``: its bounds, or None for a rigid job; ``kind``: its class, one object for all jobs
    that are alike. ``worker_map``: which of its logical workers
    sit where, while an elastic job runs. ``gpus``: GPUs it asked for, or, of an elastic job that
    runs, those it holds; ``held`` then counts them by pool (``view.free.pools``).
    ``learned``: what its own progress has taught of its rates (``policies.learner``), if anything.
    ``since_s``: when it last started, stopped or was submitted. ``begin_s``: when progress began
    (later than ``since_s`` by the costs of starting). ``rate``: estimated progress per second.
    """

    __slots__ = (
        "allocation",
        "begin_s",
        "done_s",
        "due",
        "elastic",
        "entry",
        "estimate_s",
        "executed_s",
        "failures",
        "first_start_s",
        "gpus",
        "held",
        "job",
        "kind",
        "learned",
        "lesson",
        "memory",
        "migrations",
        "phase",
        "preemptions",
        "rank",
        "rate",
        "request",
        "resizes",
        "served_gpu_s",
        "shape",
        "since_s",
        "waited_s",
        "worker_map",
    )

    def __init__(self, job: Job, shape: Shape, estimate_s: float, now: float) -> None:
        self.job = job
        self.elastic: Elastic | None = job.elastic
        self.rank = job.rank
        self.request: Request = shape.request
        self.shape = shape
        self.gpus = shape.gpus
        self.estimate_s = estimate_s
        self.phase = WAITING
        self.allocation: Allocation | None = None
        self.since_s = now
        self.begin_s = now
        self.rate = 0.0
        self.done_s = 0.0
        self.served_gpu_s = 0.0
        self.executed_s = 0.0
        self.waited_s = 0.0
        self.first_start_s: float | None = None
        self.preemptions = 0
        self.migrations = 0
        self.resizes = 0
        self.kind: Kind | None = None
        self.learned: Memory | None = None
        self.held: tuple[int, ...] = ()
        self.worker_map: WorkerMap | None = None
        self.failures = 0
        self.memory: Any = None
        self.lesson: Any = None
        self.entry: tuple[Any, int, JobState] | None = None
        self.due = float("inf")

    def __repr__(self) -> str:
        return f"<{self.job.job_id}: {self.request}, {('waiting', 'running', 'done')[self.phase]}>"

    @property
    def job_id(self) -> str:
        """Name of the job."""
        return self.job.job_id

    @property
    def running(self) -> bool:
        """Whether it holds devices."""
        return self.phase == RUNNING

    def attained_gpu_s(self, now: float) -> float:
        """Attained service: GPU-seconds held so far (shares as fractions)."""
        if self.phase == RUNNING:
            return self.served_gpu_s + (now - self.since_s) * self.gpus
        return self.served_gpu_s

    def executed(self, now: float) -> float:
        """Seconds it has held devices so far."""
        if self.phase == RUNNING:
            return self.executed_s + (now - self.since_s)
        return self.executed_s

    def progress_s(self, now: float) -> float:
        """Work done so far, in seconds on the requested GPUs, as far as the view knows."""
        if self.phase == RUNNING and now > self.begin_s:
            return self.done_s + (now - self.begin_s) * self.rate
        return self.done_s

    def remaining_s(self, now: float) -> float:
        """Estimated work left, never negative (an overrun job is taken to end any moment)."""
        left = self.estimate_s - self.progress_s(now)
        return left if left > 0.0 else 0.0 * left  # NaN stays NaN

    def finish_estimate_s(self) -> float:
        """When a running job ends if its estimate and rate hold."""
        return self.begin_s + (self.estimate_s - self.done_s) / self.rate

    def waiting_s(self, now: float) -> float:
        """Seconds it has waited so far, before the first start and between runs."""
        if self.phase == WAITING:
            return self.waited_s + (now - self.since_s)
        return self.waited_s
