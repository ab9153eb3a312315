"""Jobs that get nowhere: stopped or failed again and again without keeping any new work.

Such a run would go on for ever, so it ends with an error that says whose fault it is: the
policy's, if it stops a job every time before it could keep anything; nobody's, if devices fail more
often than the job can save.
"""

from __future__ import annotations

from policies.contract import Policy
from policies.errors import FutileError, PolicyError
from policies.state import JobState

# A job stopped so often in a row without having got anywhere would never end.
STOPS_IN_VAIN = 100_000
# A job that fails so often without keeping more work than before is taken never to end.
FAILURES_IN_VAIN = 1_000


class Efforts:
    """By rank: how much work a job had kept, and how often in a row it came to nothing since."""

    def __init__(self) -> None:
        self._stopped: dict[int, tuple[float, int]] = {}
        self._failed: dict[int, tuple[float, int]] = {}

    def stopped(self, job: JobState, policy: Policy, now: float) -> None:
        """A job was stopped with nothing new to keep; raises ``PolicyError`` if it is starved."""
        at_s, times = self._stopped.get(job.rank, (job.done_s, 0))
        times = times + 1 if at_s == job.done_s else 1
        self._stopped[job.rank] = (job.done_s, times)
        if times >= STOPS_IN_VAIN:
            fault = f"job {job.job_id} was stopped {times} times running with no new work to keep"
            raise PolicyError(policy, now, fault)

    def failed(self, job: JobState, now: float) -> None:
        """A job failed; raises ``FutileError`` if it will never end."""
        kept_s, times = self._failed.get(job.rank, (job.done_s, 0))
        times = times + 1 if job.done_s <= kept_s else 1
        self._failed[job.rank] = (job.done_s, times)
        if times >= FAILURES_IN_VAIN:
            raise FutileError(job, now, times)
