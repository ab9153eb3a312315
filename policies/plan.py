"""A plan: what should run where. What it does not mention stays as it is.

A policy builds a plan on a :class:`Draft`, a scratch pad over the view: ``start`` looks for
devices through the placement policy and takes them in the scratch index only. Nothing happens to
the cluster until the driver has checked the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policies.state import RUNNING, JobState
from traces import Allocation

if TYPE_CHECKING:
    from policies.free import FreeGpus
    from policies.queues import Shape
    from policies.view import ClusterView


@dataclass(slots=True)
class Plan:
    """Desired changes: job to the allocation it should have, or None for "should not run".

    Order is the order of the decisions. The driver finds out by comparison with the present what
    each entry means: start, preempt, migrate or nothing.
    """

    changes: dict[JobState, Allocation | None] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = (
            f"{j.job_id} -> {'stop' if a is None else a.shares}" for j, a in self.changes.items()
        )
        return "{" + ", ".join(parts) + "}"


class Draft(Plan):
    """A plan in the making, over one view."""

    __slots__ = ("free", "view")

    def __init__(self, view: ClusterView) -> None:
        self.changes = {}
        self.view = view
        self.free: FreeGpus = view.free  # forked before the first write

    def _scratch(self) -> FreeGpus:
        if self.free is self.view.free:
            self.free = self.view.free.fork()
        return self.free

    def enough(self, shape: Shape) -> bool:
        """Whether enough GPUs are free by count in some pool (placement may still say no)."""
        pools = self.free.pools
        if shape.request.gpu_milli == 1000:
            for index in shape.pools:
                if pools[index].free >= shape.num_gpus:
                    return True
            return shape.num_gpus == 0
        for index in shape.pools:
            pool = pools[index]
            if pool.free or pool.share_milli >= shape.milli:
                return True
        return False

    def start(self, job: JobState) -> bool:
        """Plan to run a job that waits, or was stopped in this draft. False: no devices for it."""
        if not self.enough(job.shape):
            return False
        allocation = self.view.placement.place(job.request, self.free)
        if allocation is None:
            return False
        self.put(job, allocation)
        return True

    def put(self, job: JobState, allocation: Allocation) -> None:
        """Plan to run a job on devices that are free here, found by the policy itself."""
        self._scratch().take(allocation, job.request)
        self.changes[job] = allocation
        if job.phase == RUNNING and allocation == job.allocation:
            del self.changes[job]  # stopped and put back where it was: nothing changes

    def stop(self, job: JobState) -> None:
        """Plan that a job (running, or started in this draft) does not run."""
        held = self.changes.get(job, job.allocation)
        assert held is not None, f"{job} holds nothing"
        self._scratch().give(held, job.request)
        if job.phase == RUNNING:
            self.changes[job] = None
        else:
            del self.changes[job]

    def keep(self, job: JobState) -> bool:
        """Take back a ``stop``: leave the job where it is, if its devices are still free."""
        assert job.allocation is not None
        if self.free.missing(job.allocation, job.request) is not None:
            return False
        self._scratch().take(job.allocation, job.request)
        del self.changes[job]
        return True
