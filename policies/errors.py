"""Faults of a policy, told with its name, the time and what it did."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from traces import TandemError

if TYPE_CHECKING:
    from policies.contract import PlacementPolicy, Policy
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
            f" {view.now:.12g} s: job {job.job_id} ({job.request}): {fault}"
        )


class PolicyError(TandemError):
    """A policy failed instead of answering, or answered what is no plan."""

    def __init__(self, policy: Policy | PlacementPolicy, now: float, fault: str) -> None:
        self.policy = policy
        self.time_s = now
        self.fault = fault
        super().__init__(
            f"policy {policy.name or type(policy).__name__!r} failed at {now:.12g} s: {fault}"
        )

    @classmethod
    def of(cls, error: BaseException, view: ClusterView) -> PolicyError | None:
        """Return what to say of an exception that came out of a policy's own method.

        None if neither the inter-job policy nor the placement of ``view`` was at work.
        """
        policies = (view.policy, view.placement)
        cause: BaseException | None = error
        while cause is not None:
            # From the innermost call outwards; simpy wraps what passes through its processes.
            for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
                for policy in policies:
                    if frame.f_locals.get("self") is policy:
                        method, file = frame.f_code.co_name, Path(frame.f_code.co_filename).name
                        fault = f"{method}() raised {type(cause).__name__}: {cause}"
                        return cls(policy, view.now, f"{fault} ({file}, line {line})")
            cause = cause.__cause__
        return None


@contextmanager
def naming_the_policy(view: ClusterView) -> Iterator[None]:
    """Turn what a policy's own code raises into a :class:`PolicyError` that says where."""
    try:
        yield
    except TandemError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # a policy may raise anything; what is not its own goes on
        fault = PolicyError.of(error, view)
        if fault is None:
            raise
        raise fault from error


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
            f" at {view.now:.12g} s: nothing runs and nothing is to come; first in order is"
            f" {first.job_id} ({first.request}): {reason.text}"
        )


class FutileError(TandemError):
    """A job loses its devices again and again before it can keep any work."""

    def __init__(self, job: JobState, now: float, times: int) -> None:
        self.job_id = job.job_id
        self.time_s = now
        super().__init__(
            f"job {job.job_id} ({job.request}) has lost its devices {times} times without keeping"
            f" any new work, by {now:.12g} s: at this rate of failures it never ends; it needs more"
            " frequent checkpoints, or rarer failures"
        )
