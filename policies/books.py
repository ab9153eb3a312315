"""The driver's books: where it writes what happens, and what became of each job."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from traces import Allocation
from traces.runlog import OUTCOMES

if TYPE_CHECKING:
    from traces import WorkerMap

IS_FINISHED, IS_RUNNING, IS_WAITING, IS_REJECTED, IS_UNSUBMITTED, IS_FAILED = range(len(OUTCOMES))
NAN = float("nan")


class Recorder(Protocol):
    """Where events, allocations and samples go; ``traces.RunWriter`` is one."""

    def event(self, time_s: float, code: int, rank: int, detail: str | None = None) -> None:
        """Record a job event."""

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        """Record a device event."""

    def allocation(
        self,
        rank: int,
        allocation: Allocation,
        start_s: float,
        begin_s: float,
        end_s: float,
        rate: float,
        reason: int,
        workers: WorkerMap | None = None,
    ) -> None:
        """Record that a job held devices, an elastic one with its worker map."""

    def loan(
        self,
        pool: int,
        node: int,
        gpu: int,
        asked_s: float,
        ready_s: float,
        end_s: float,
        source: int,
    ) -> None:
        """Record that an online service had a device, or waited for one in vain."""

    def sample(
        self,
        time_s: float,
        gpu_type: str,
        capacity: float,
        allocated: float,
        fragmented: float,
        running_jobs: int,
        waiting_jobs: int,
        waiting_gpus: float,
    ) -> None:
        """Record the state of one GPU type."""


class NoLog:
    """A recorder that keeps nothing, for callers who want the outcomes alone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def event(self, *_: object) -> None:
        """Forget it."""

    def device_event(self, *_: object) -> None:
        """Forget it."""

    def allocation(self, *_: object) -> None:
        """Forget it."""

    def loan(self, *_: object) -> None:
        """Forget it."""

    def sample(self, *_: object) -> None:
        """Forget it."""

    def finish(self, *_: object) -> None:
        """Nothing to finish."""


class Outcomes:
    """What became of each job, one array per column of the run's jobs table, by rank."""

    def __init__(self, count: int) -> None:
        self.start_s = array("d", [NAN]) * count
        self.finish_s = array("d", [NAN]) * count
        self.jct_s = array("d", [NAN]) * count
        self.queueing_s = array("d", [NAN]) * count
        self.preemptions = array("i", [0]) * count
        self.migrations = array("i", [0]) * count
        self.resizes = array("i", [0]) * count
        self.failures = array("i", [0]) * count
        self.service_gpu_s = array("d", [0.0]) * count
        self.overhead_gpu_s = array("d", [0.0]) * count
        self.lost_gpu_s = array("d", [0.0]) * count
        self.status = array("b", [IS_UNSUBMITTED]) * count

    def columns(self) -> dict[str, Any]:
        """Return the arrays by column name."""
        return dict(vars(self))


@dataclass(slots=True)
class Counts:
    """How much happened."""

    submitted: int = 0
    finished: int = 0
    rejected: int = 0
    preemptions: int = 0
    migrations: int = 0
    resizes: int = 0
    failures: int = 0
    given_up: int = 0
    decisions: int = 0
    idle_rounds: int = 0
