"""A plan: what should run where. What it does not mention stays as it is.

A policy builds a plan on a :class:`Draft`, a scratch pad over the view: ``start`` looks for
devices through the placement policy and takes them in the scratch index only. Nothing happens to
the cluster until the driver has checked the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from policies.state import RUNNING, JobState
from traces import Allocation

if TYPE_CHECKING:
    from policies.free import FreeGpus
    from policies.queues import Shape
    from policies.view import ClusterView


_free = attrgetter("free")


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
    """A plan in the making, over one view.

    ``free`` is the index as it would be under the plan so far. It is forked only when it is looked
    at after a change: most decisions change one thing and never look again.
    """

    __slots__ = ("_counts", "_pending", "_scratch", "view")

    def __init__(self, view: ClusterView) -> None:
        self.changes = {}
        self.view = view
        self._scratch: FreeGpus | None = None
        self._pending: list[tuple[Allocation, JobState]] = []  # taken, not yet from the scratch
        self._counts: list[int] | None = None  # wholly free GPUs by pool, once something is taken

    @property
    def free(self) -> FreeGpus:
        """The free devices under this plan (to read; ``fork()`` it to try things)."""
        return self._changed() if self._pending else self._scratch or self.view.free

    def _changed(self) -> FreeGpus:
        """The scratch index, up to date."""
        scratch = self._scratch
        if scratch is None:
            scratch = self._scratch = self.view.free.fork()
        for allocation, job in self._pending:
            scratch.take(allocation, job.request)
        self._pending.clear()
        return scratch

    def _take(self, allocation: Allocation, job: JobState) -> None:
        if self._scratch is not None or not job.shape.whole:
            self._changed().take(allocation, job.request)
            self._counts = None
            return
        if self._counts is None:
            self._counts = list(map(_free, self.view.free.pools))
        pool = self.view.free.pool_of[allocation.shares[0][0]]
        self._counts[pool] -= job.shape.num_gpus
        self._pending.append((allocation, job))

    def enough(self, shape: Shape) -> bool:
        """Whether enough GPUs are free by count in some pool (placement may still say no)."""
        if not shape.whole:
            pools = self.free.pools
            return shape.num_gpus == 0 or any(
                pools[i].free or pools[i].share_milli >= shape.milli for i in shape.pools
            )
        counts = self._counts
        if counts is None:
            pools = (self._scratch or self.view.free).pools
            for index in shape.pools:
                if pools[index].free >= shape.num_gpus:
                    return True
            return False
        for index in shape.pools:
            if counts[index] >= shape.num_gpus:
                return True
        return False

    def start(self, job: JobState) -> bool:
        """Plan to run a job that waits, or was stopped in this draft. False: no devices for it."""
        if not self.enough(job.shape):
            return False
        view = self.view
        free = view.free if self._scratch is None and not self._pending else self.free
        allocation = view.placement.place(job.request, free)
        if allocation is None:
            return False
        self.put(job, allocation)
        return True

    def put(self, job: JobState, allocation: Allocation) -> None:
        """Plan to run a job on devices that are free here, found by the policy itself."""
        self._take(allocation, job)
        self.changes[job] = allocation
        if job.phase == RUNNING and allocation == job.allocation:
            del self.changes[job]  # stopped and put back where it was: nothing changes

    def stop(self, job: JobState) -> None:
        """Plan that a job (running, or started in this draft) does not run."""
        held = self.changes.get(job, job.allocation)
        assert held is not None, f"{job} holds nothing"
        self._changed().give(held, job.request)
        self._counts = None
        if job.phase == RUNNING:
            self.changes[job] = None
        else:
            del self.changes[job]

    def keep(self, job: JobState) -> bool:
        """Take back a ``stop``: leave the job where it is, if its devices are still free."""
        assert job.allocation is not None
        if self.free.missing(job.allocation, job.request) is not None:
            return False
        self._changed().take(job.allocation, job.request)
        self._counts = None
        del self.changes[job]
        return True
