"""A fixed share: every elastic job runs on the same part of its workers in GPUs, from start to end.

The strongest thing that needs no elasticity while jobs run: choose the share that is best for the
workload beforehand. One GPU type per job; jobs start in order of submission, misfits passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from policies.contract import Policy
from policies.inter.sizes import sizes_of
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView
from traces import UsageError


@dataclass(frozen=True, kw_only=True)
class StaticShare(Policy):
    """Start elastic jobs on ``share`` of their logical workers in GPUs, and leave them so."""

    share: float = 0.5
    name: ClassVar[str] = "static-share"
    resizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise UsageError(f"static-share: share is {self.share}; expected above 0, at most 1")

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            f"An elastic job of n logical workers has {self.share:g} n GPUs (rounded up), or the"
            " fewest that are as fast, within its bounds.",
            "Order: submission; what does not fit is passed over; nothing is preempted or resized.",
            "Every job is on one GPU type: preferred, or else the first it may use with room.",
            "No estimates are used.",
        )

    def plan(self, view: ClusterView) -> Draft:
        """Start whatever fits, in order."""
        draft = view.draft()
        for job in view.waiting:
            if job.elastic is None:
                draft.start(job)
            else:
                self._start(job, draft)
        return draft

    def _start(self, job: JobState, draft: Draft) -> None:
        kind = job.kind
        assert kind is not None
        elastic, sizes = kind.elastic, sizes_of(kind)
        wanted = ceil(self.share * elastic.num_workers - 1e-9)
        pinned = elastic.preferred_type in kind.gpu_types
        for pool in (kind.preferred,) if pinned else kind.pools:
            most = min(wanted, draft.free.pools[pool].capacity)
            steps = [s for s in sizes.steps(pool) if s.gpus <= most] or sizes.steps(pool)[:1]
            if not steps or draft.free.pools[pool].free < steps[-1].gpus:
                continue
            counts = [0] * len(draft.free.pools)
            counts[pool] = steps[-1].gpus
            if draft.resize(job, counts):
                return
