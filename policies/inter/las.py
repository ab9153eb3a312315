"""Least attained service: Tiresias' discretised two-dimensional LAS, and LAS with a quantum.

Tiresias (Gu et al., NSDI 2019): attained service is GPUs x time; jobs sink through K queues as it
crosses thresholds; queues are served in order, first in first out inside, misfits passed over. A
job that has waited ``knob`` times as long as it has run goes back to the first queue with its
counters at zero. Within a queue running jobs win ties: who is stopped goes to the tail.

LAS here is the same machine with queues one quantum of service apart; as the quantum shrinks it
becomes foreground-background processor sharing.

Deviation from the published simulator: the next crossing is computed per GPU, (limit - service) /
GPUs, where it divides only part of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from policies.contract import NEVER, Policy
from policies.inter.greedy import preempt
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView
from traces import UsageError


class Level(NamedTuple):
    """What is remembered of a job: its queue, and its counters when they were last zeroed.

    ``entered_s``: when it came to the tail of its queue (by arriving, sinking, rising, starting or
    being stopped; not by moving to other devices).
    """

    queue: int
    served_gpu_s: float
    executed_s: float
    entered_s: float


@dataclass(frozen=True, kw_only=True)
class Levels(Policy):
    """Queues by attained service; a subclass says where a queue ends (``limit``)."""

    orders_running: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    ahead: ClassVar[str] = "less attained service"

    def limit(self, queue: int) -> float:
        """Service (since the counters were zeroed) that ends a queue; NEVER for the last."""
        raise NotImplementedError

    @property
    def starvation_knob(self) -> float:
        """Promote after waiting that many times the time run; 0: never."""
        return 0.0

    def weight(self, job: JobState) -> float:
        """Service per second of running."""
        return job.gpus

    def served(self, job: JobState, now: float) -> float:
        """Service attained in all."""
        return job.attained_gpu_s(now)

    def remember(self, job: JobState, now: float, event: str) -> Level:
        """Sink one queue when a limit is reached, rise to the first when starved."""
        level: Level | None = job.memory
        if level is None:
            return Level(0, 0.0, 0.0, now)
        if event == "due":
            if job.running:
                return level._replace(queue=level.queue + 1, entered_s=now)
            return Level(0, self.served(job, now), job.executed(now), now)
        return level if event in ("migrate", "resize") else level._replace(entered_s=now)

    def changes_at(self, job: JobState, now: float) -> float:
        """When the job reaches the end of its queue, or has starved."""
        level: Level = job.memory
        if job.running:
            limit = self.limit(level.queue)
            if limit == NEVER:
                return NEVER
            left = limit - (self.served(job, now) - level.served_gpu_s)
            return now + max(left, 0.0) / self.weight(job) if self.weight(job) else NEVER
        if self.starvation_knob and level.queue:
            due = job.since_s + self.starvation_knob * (job.executed(now) - level.executed_s)
            return max(due, now)
        return NEVER

    def order(self, job: JobState, now: float) -> tuple[int, int, float]:
        """Queue, running before waiting, first in first out."""
        level: Level = job.memory
        return (level.queue, 0 if job.running else 1, level.entered_s)

    def running_order(self, job: JobState, now: float) -> tuple[int, float]:
        """As ``order``, among those that run."""
        level: Level = job.memory
        return (level.queue, level.entered_s)

    def plan(self, view: ClusterView) -> Draft:
        """Serve the queues in order."""
        draft = view.draft()
        preempt(self, view, draft)
        return draft


@dataclass(frozen=True, kw_only=True)
class Tiresias(Levels):
    """Tiresias-L, discretised 2D-LAS.

    ``thresholds``: service (GPU-seconds, or seconds for ``by=time``) at which jobs sink, ascending.
    ``knob``: promotion after waiting so many times the time run (0: off). Defaults are those of
    the published simulator: two thresholds, so three queues, and no promotion.
    """

    thresholds: tuple[float, ...] = (3250.0, 7200.0)
    knob: float = 0.0
    by: Literal["gpu-time", "time"] = "gpu-time"
    name: ClassVar[str] = "tiresias"

    def __post_init__(self) -> None:
        limits = self.thresholds
        if (
            not limits
            or any(not 0 < x < NEVER for x in limits)
            or list(limits) != sorted(set(limits))
        ):
            raise UsageError(
                f"tiresias: thresholds are {limits}; expected ascending numbers above 0"
            )
        if not 0 <= self.knob < NEVER:
            raise UsageError(
                f"tiresias: knob is {self.knob}; expected 0 (off) or a positive number"
            )

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        unit = "GPU-seconds" if self.by == "gpu-time" else "seconds of running"
        starved = (
            f"A job that waited {self.knob:g} times as long as it ran returns to the first queue."
            if self.knob
            else "No promotion of starving jobs (knob=0)."
        )
        return (
            f"Queues end at {', '.join(f'{x:g}' for x in self.thresholds)} {unit} of service.",
            "Queues in order, first in first out inside; running jobs win ties.",
            "A job that does not fit is passed over; whatever comes later is preempted.",
            starved,
            "No estimates are used. Time spent on costs counts as service.",
        )

    @property
    def starvation_knob(self) -> float:
        """The knob."""
        return self.knob

    def limit(self, queue: int) -> float:
        """The queue's threshold."""
        return self.thresholds[queue] if queue < len(self.thresholds) else NEVER

    def weight(self, job: JobState) -> float:
        """GPUs, or 1 by time."""
        return job.gpus if self.by == "gpu-time" else 1.0

    def served(self, job: JobState, now: float) -> float:
        """GPU-seconds, or seconds by time."""
        return job.attained_gpu_s(now) if self.by == "gpu-time" else job.executed(now)


@dataclass(frozen=True, kw_only=True)
class Las(Levels):
    """Least attained service first, in steps of ``quantum_gpu_s`` GPU-seconds, preemptive."""

    quantum_gpu_s: float = 3600.0
    name: ClassVar[str] = "las"

    def __post_init__(self) -> None:
        if not 0 < self.quantum_gpu_s < NEVER:
            raise UsageError(f"las: quantum_gpu_s is {self.quantum_gpu_s}; expected more than 0")

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            f"Order: attained service in steps of {self.quantum_gpu_s:g} GPU-seconds, least first;"
            " within a step those that run, then first in first out.",
            "A job that does not fit is passed over; whatever comes later is preempted.",
            "No estimates are used.",
        )

    def limit(self, queue: int) -> float:
        """Every quantum ends a queue."""
        return (queue + 1) * self.quantum_gpu_s
