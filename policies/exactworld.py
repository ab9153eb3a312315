"""A world without costs or failures, for holding policies to the contract (``policies.check``).

A job ends when its work is done, to the instant: a rigid one runs at rate 1, an elastic one at that
of the GPU with most logical workers. It knows nothing of profiles, links or checkpoints.
"""

from __future__ import annotations

from policies.clock import FINISH, Clock, Moment
from policies.contract import Listener
from policies.state import JobState
from traces import Allocation


class Stay:
    """One stay of a job on its devices (see ``policies.contract.Stint``)."""

    __slots__ = ("begin_s", "done_s", "lost_s", "moment", "rank", "rate")

    def __init__(self, rank: int, done_s: float, begin_s: float, rate: float) -> None:
        self.rank = rank
        self.done_s = done_s
        self.begin_s = begin_s
        self.rate = rate
        self.lost_s = 0.0
        self.moment: Moment | None = None


class ExactWorld:
    """A backend without costs or failures: a job ends when its work is done.

    A rigid job has rate 1, an elastic one that of the GPU with most logical workers.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.listener: Listener | None = None
        self._stays: dict[int, Stay] = {}
        self._done_s: dict[int, float] = {}

    def attach(self, listener: Listener) -> None:
        """Name the driver."""
        self.listener = listener

    def start(self, job: JobState, allocation: Allocation) -> None:
        """Run a job."""
        done_s = self._done_s.get(job.rank, 0.0)
        rate = 1.0 if job.worker_map is None else 1.0 / max(job.worker_map.counts)
        stay = self._stays[job.rank] = Stay(job.rank, done_s, self.clock.now, rate)
        end_s = self.clock.now + (job.job.duration_s - done_s) / rate
        stay.moment = self.clock.at(end_s, FINISH, lambda _: self._finish(stay))

    def stop(self, job: JobState, *, failed: bool) -> Stay:
        """Take a job off its devices; it keeps its work."""
        stay = self._stays.pop(job.rank)
        assert stay.moment is not None
        stay.moment.cancel()
        stay.done_s += (self.clock.now - stay.begin_s) * stay.rate
        self._done_s[job.rank] = stay.done_s
        return stay

    def move(self, job: JobState, allocation: Allocation) -> Stay:
        """Let a job go on elsewhere."""
        stay = self.stop(job, failed=False)
        self.start(job, allocation)
        return stay

    def hand_over_s(self, job: JobState, *, stops: bool) -> float:
        """At once."""
        return 0.0

    def quiet(self) -> bool:
        """No device ever goes or comes."""
        return True

    def _finish(self, stay: Stay) -> None:
        del self._stays[stay.rank]
        assert self.listener is not None
        self.listener.job_finished(stay.rank, stay)
