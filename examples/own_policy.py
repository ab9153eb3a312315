"""A policy of one's own: the largest gang first, but nobody waits behind larger ones for ever.

A job that has waited ``max_wait_s`` goes to the front of the line, and while it does not fit nobody
passes it. Others go by gang size, largest first, and pass what does not fit.

    tandem policies check examples/own_policy.py:LargestFirst
    tandem run jobs.csv --cluster 8x8:v100 --policy examples/own_policy.py:LargestFirst

Run as a script it holds the policy to the contract and compares it with two others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies import ClusterView, Draft, JobState, Policy, check_policy
from policies.contract import NEVER
from simulator import simulate
from traces import UsageError, generate


@dataclass(frozen=True, kw_only=True)
class LargestFirst(Policy):
    """Largest gang first. ``max_wait_s``: after so many seconds a job goes before all others."""

    max_wait_s: float = 3600.0
    name: ClassVar[str] = "largest-first"
    remembers: ClassVar[bool] = True
    ahead: ClassVar[str] = "larger, or waiting too long"

    def __post_init__(self) -> None:
        if not self.max_wait_s > 0:
            raise UsageError(f"largest-first: max_wait_s is {self.max_wait_s}; expected above 0")

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Order: GPUs of the gang, most first; a job that does not fit is passed over.",
            f"A job that has waited {self.max_wait_s:g} s goes first, and blocks all others.",
            "Nothing is preempted; no estimates are used.",
        )

    def remember(self, job: JobState, now: float, event: str) -> bool:
        """Whether it has waited too long."""
        return event == "due" or (event == "fail" and bool(job.memory))

    def changes_at(self, job: JobState, now: float) -> float:
        """When it will have."""
        if job.running or job.memory:
            return NEVER
        return job.since_s + self.max_wait_s

    def order(self, job: JobState, now: float) -> tuple[int, int]:
        """Those that waited too long in order of submission, then the others by size."""
        return (0, 0) if job.memory else (1, -job.request.num_gpus)

    def plan(self, view: ClusterView) -> Draft:
        """Start what fits."""
        draft = view.draft()
        line = view.waiting.walk()
        for job in line:
            if draft.start(job):
                continue
            if job.memory:
                break
            line.skip_shape()  # what does not fit one of a kind fits none of them
        return draft


def main() -> None:
    """Check it, and see what it does to three busy days."""
    policy = LargestFirst(max_wait_s=48 * 3600)
    print(check_policy(policy), end="\n\n")
    days = generate("philly", seed=1, days=3, load=0.7, cluster="8x8:v100")
    for other in (policy, "fifo", "best-effort"):
        jobs = simulate(days, "8x8:v100", policy=other).jobs
        wide = jobs[jobs["num_gpus"] >= 8]
        name = other if isinstance(other, str) else other.name
        print(
            f"{name:14} mean queueing {jobs['queueing_s'].mean() / 3600:6.2f} h,"
            f" gangs of 8 and more {wide['queueing_s'].mean() / 3600:6.2f} h,"
            f" longest {jobs['queueing_s'].max() / 3600:6.1f} h"
        )


if __name__ == "__main__":
    main()
