"""Shortest first: SJF by the whole run time, not preemptive; SRTF and SRSF by what is left.

Time alone (SJF with ``by=time``, SRTF: Tiresias' simulator calls it ``shortest``) or time times
GPUs (``by=gpu-time``, SRSF: its ``shortest-gpu``), which minimises the mean when GPUs are one
divisible resource. All need estimates of run time; what those are is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from policies.contract import Policy
from policies.inter.greedy import admit, preempt
from policies.plan import Draft
from policies.state import RUNNING, JobState
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
    ahead: ClassVar[str] = "shorter"
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
    """Shortest remaining time first, preemptive. ``estimates``: see ``policies.estimates``.

    Time left is work left, in seconds on the GPUs asked for. Were it the time to the end, what a
    start costs and a slow GPU would make a job that just started come later than while it waited,
    and two jobs would preempt each other at every event.
    """

    estimates: str = "true"
    name: ClassVar[str] = "srtf"
    orders_running: ClassVar[bool] = True
    orders_by_work: ClassVar[bool] = True
    needs_estimates: ClassVar[bool] = True
    ahead: ClassVar[str] = "less time left"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return ("Order: estimated time left, shortest first.", *_preemptive(self.estimates))

    def order(self, job: JobState, now: float) -> float:
        """Estimated time left; negative for a job that has outrun its estimate."""
        if job.phase == RUNNING:
            if job.rate == 1.0 and now >= job.begin_s:
                # The same, rounded as running_order is.
                return job.begin_s + (job.estimate_s - job.done_s) - now
            return job.estimate_s - job.progress_s(now)
        return job.estimate_s - job.done_s

    def running_order(self, job: JobState, now: float) -> float:
        """Those that run keep the order of their expected ends, at the same rate."""
        return job.finish_estimate_s()

    def plan(self, view: ClusterView) -> Draft:
        """Give the cluster to those with least left."""
        draft = view.draft()
        preempt(self, view, draft)
        return draft


@dataclass(frozen=True, kw_only=True)
class Srsf(Policy):
    """Shortest remaining service (time x GPUs) first, preemptive.

    Running jobs of different sizes lose service at different speeds, so their order changes while
    they run: every decision sorts them, O(running log running).
    """

    estimates: str = "true"
    name: ClassVar[str] = "srsf"
    needs_estimates: ClassVar[bool] = True
    ahead: ClassVar[str] = "less service left"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return ("Order: estimated time left x GPUs, least first.", *_preemptive(self.estimates))

    def order(self, job: JobState, now: float) -> float:
        """Estimated GPU-seconds left."""
        return job.remaining_s(now) * job.gpus

    def plan(self, view: ClusterView) -> Draft:
        """Give the cluster to those with least left."""
        draft = view.draft()
        preempt(self, view, draft)
        return draft


def _preemptive(estimates: str) -> tuple[str, ...]:
    return (
        "A job that does not fit is passed over.",
        "Preempts whatever comes later in the order; no running job is moved for its own sake.",
        f"Estimates of run time: {estimates}; a job that outruns its own comes first.",
    )


def _head(blocks: bool) -> str:
    if blocks:
        return "The first in order blocks: nobody passes it."
    return "A job that does not fit is passed over."
