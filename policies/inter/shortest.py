"""Shortest first: SJF (by the whole run time, once started runs to its end) and SRTF (by what is
left, preemptive).

``by=time`` orders by seconds, ``by=gpu-time`` by seconds times GPUs (what Tiresias' simulator
calls ``shortest-gpu``, and what minimises the mean when GPUs are one divisible resource). Both
need estimates of run time; what they are is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from policies.contract import Policy
from policies.inter.greedy import admit, preempt
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView


@dataclass(frozen=True, kw_only=True)
class Sjf(Policy):
    """Shortest job first, not preemptive.

    ``by``: time or gpu-time. ``blocks``: does the first in order block the others? ``estimates``:
    see ``policies.estimates``.
    """

    by: Literal["time", "gpu-time"] = "time"
    blocks: bool = False
    estimates: str = "true"
    name: ClassVar[str] = "sjf"
    needs_estimates: ClassVar[bool] = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        times = " x GPUs" if self.by == "gpu-time" else ""
        return (
            f"Order: estimated run time{times}, shortest first.",
            _head(self.blocks),
            "Nothing is preempted.",
            f"Estimates of run time: {self.estimates}.",
        )

    def order(self, job: JobState, now: float) -> float:
        """Estimated run time (x GPUs)."""
        return job.estimate_s * job.gpus if self.by == "gpu-time" else job.estimate_s

    def plan(self, view: ClusterView) -> Draft:
        """Start what fits, shortest first."""
        draft = view.draft()
        admit(view, draft, blocks=self.blocks)
        return draft


@dataclass(frozen=True, kw_only=True)
class Srtf(Policy):
    """Shortest remaining time first, preemptive.

    ``by``: time or gpu-time. ``estimates``: see ``policies.estimates``.
    """

    by: Literal["time", "gpu-time"] = "time"
    estimates: str = "true"
    name: ClassVar[str] = "srtf"
    orders_running: ClassVar[bool] = True
    needs_estimates: ClassVar[bool] = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        times = " x GPUs" if self.by == "gpu-time" else ""
        return (
            f"Order: estimated time left{times}, shortest first.",
            "A job that does not fit is passed over.",
            "Preempts whatever comes later in the order; no running job is moved for its own sake.",
            f"Estimates of run time: {self.estimates}; a job that outruns its own comes first.",
        )

    def order(self, job: JobState, now: float) -> float:
        """Estimated time left (x GPUs)."""
        left = job.remaining_s(now)
        return left * job.gpus if self.by == "gpu-time" else left

    def running_order(self, job: JobState, now: float) -> float:
        """By time, those that run keep the order of their expected ends."""
        return job.finish_estimate_s()

    def plan(self, view: ClusterView) -> Draft:
        """Give the cluster to those with least left."""
        draft = view.draft()
        preempt(self, view, draft)
        return draft


def _head(blocks: bool) -> str:
    if blocks:
        return "The first in order blocks: nobody passes it."
    return "A job that does not fit is passed over."
