"""Faults of a policy, told with its name, the time and what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traces import TandemError

if TYPE_CHECKING:
    from policies.contract import Policy
    from policies.state import JobState
    from policies.view import ClusterView


class PlanError(TandemError):
    """A policy returned a plan that cannot be carried out."""

    def __init__(self, policy: Policy, view: ClusterView, job: JobState, fault: str) -> None:
        self.policy = policy
        self.time_s = view.now
        self.job_id = job.job_id
        self.fault = fault
        super().__init__(
            f"policy {policy.name or type(policy).__name__!r} returned an impossible plan at"
            f" {view.now:g} s: job {job.job_id} ({job.request}): {fault}"
        )


class StarvationError(TandemError):
    """Jobs wait, nothing runs, and nothing will ever change that."""

    def __init__(self, policy: Policy, view: ClusterView) -> None:
        self.policy = policy
        self.time_s = view.now
        self.waiting = len(view.waiting)
        first = view.waiting.first()
        assert first is not None
        reason = policy.explain(view, first)
        super().__init__(
            f"policy {policy.name or type(policy).__name__!r} starves {self.waiting} waiting jobs"
            f" at {view.now:g} s: nothing runs and nothing is to come; first in order is"
            f" {first.job_id} ({first.request}): {reason.text}"
        )


class FutileError(TandemError):
    """A job loses its devices again and again before it can keep any work."""

    def __init__(self, job: JobState, now: float, times: int) -> None:
        self.job_id = job.job_id
        self.time_s = now
        super().__init__(
            f"job {job.job_id} ({job.request}) has lost its devices {times} times without keeping"
            f" any new work, by {now:g} s: at this rate of failures it never ends; it needs more"
            " frequent checkpoints, or rarer failures"
        )
