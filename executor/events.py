"""What an agent tells about its jobs: the events that ``Agent.poll`` returns.

``at_s`` is the monotonic time at which the agent learnt of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from executor.pool import Place
from traces.workermap import WorkerMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a job."""

    job_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Event):
    """The first step after a start is done; ``seconds`` since the command."""

    step: int
    worker_map: WorkerMap
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """A step was committed; ``seconds`` since the one before, ``sent_bytes`` by device 0."""

    step: int
    loss: float
    losses: tuple[float, ...]
    seconds: float
    sent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested(Event):
    """Digests of all state on one device after a step, by tensor."""

    step: int
    device: int
    digests: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled(Event):
    """The first step on a new worker map is done.

    ``seconds``: from the command to that step; ``pause_s``: of them, those between the last step on
    the old map and the begin of the next; ``moved_bytes`` is not counted.
    """

    step: int
    worker_map: WorkerMap
    seconds: float
    pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Event):
    """A step could not be done, or a device was lost; the job recovers."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Event):
    """The first step after a break is done. ``resumed_at``: steps that were still there."""

    step: int
    resumed_at: int
    worker_map: WorkerMap
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """The job stands at the step it was told to pause at."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed(Event):
    """A checkpoint was written, or could not be (``path`` None, ``reason`` says why)."""

    step: int
    path: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The job left its devices on command."""

    step: int
    checkpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """All steps are done; ``digest`` is that of all state and contexts."""

    step: int
    loss: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The job is over and its devices are free; ``step`` is the last one committed."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLost(Event):
    """A worker on a lane died, hung or was taken off for what it sent."""

    gpu: Place
    reason: str
