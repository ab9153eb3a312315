"""A plan: what should run where. What it does not mention stays as it is.

A policy builds a plan on a :class:`Draft`, a scratch pad over the view: ``start`` looks for
devices through the placement policy and takes them in the scratch index only. Nothing happens to
the cluster until the driver has checked the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from policies.elastic import on_type, sized
from policies.placement.room import lowest_bits
from policies.state import RUNNING, JobState
from traces import Allocation, Request

if TYPE_CHECKING:
    from policies.contract import PlacementPolicy
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
            scratch.take(allocation, _request(job, allocation))
        self._pending.clear()
        return scratch

    def _take(self, allocation: Allocation, job: JobState) -> None:
        if self._scratch is not None or not job.shape.whole or job.elastic is not None:
            self._changed().take(allocation, _request(job, allocation))
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
        self._changed().give(held, _request(job, held))
        self._counts = None
        if job.phase == RUNNING:
            self.changes[job] = None
        else:
            del self.changes[job]

    def keep(self, job: JobState) -> bool:
        """Take back a ``stop``: leave the job where it is, if its devices are still free."""
        assert job.allocation is not None
        request = _request(job, job.allocation)
        if self.free.missing(job.allocation, request) is not None:
            return False
        self._changed().take(job.allocation, request)
        self._counts = None
        del self.changes[job]
        return True

    def resize(self, job: JobState, counts: Sequence[int]) -> bool:
        """Plan that an elastic job holds so many GPUs of each pool (in order of ``free.pools``).

        It keeps what it has as far as it may: what it gives back is taken from the nodes where it
        has least, what comes is found by the placement, pool by pool. False, and nothing planned,
        if there are no devices for it.
        """
        held = self.changes.get(job, job.allocation)
        free = self._changed()
        if held is not None:
            free.give(held, _request(job, held))
        found = _reshape(job, held, counts, free, self.view.placement)
        settled = held if found is None else found
        if settled is not None:
            free.take(settled, _request(job, settled))
        self._counts = None
        if found is None:
            return False
        self.changes[job] = found
        if job.phase == RUNNING and found == job.allocation:
            del self.changes[job]
        return True


def _request(job: JobState, allocation: Allocation) -> Request:
    """What holding these devices takes from their hosts."""
    if job.elastic is None:
        return job.request
    return sized(job.request, allocation.num_gpus)


def _reshape(
    job: JobState,
    held: Allocation | None,
    counts: Sequence[int],
    free: FreeGpus,
    placement: PlacementPolicy,
) -> Allocation | None:
    """The devices of an elastic job by pool, near to those it held (which are free here)."""
    if job.request.single_node:
        return _on_one_node(job, counts, free, placement)
    masks = dict(held.shares) if held is not None else {}
    missing: list[tuple[int, int]] = []
    for pool, wanted in enumerate(counts):
        mine = [node for node in masks if free.pool_of[node] == pool]
        have = sum(masks[node].bit_count() for node in mine)
        if have > wanted:
            _give_back(masks, mine, have - wanted)
        elif have < wanted:
            missing.append((pool, wanted - have))
    kept = Allocation(tuple(sorted(masks.items())))
    if not missing:
        return kept
    if masks:
        free.take(kept, _request(job, kept))
    taken = _places(job, missing, free, placement)
    if masks:
        free.give(kept, _request(job, kept))
    if taken is None:
        return None
    for place in taken:
        for node, mask in place.shares:
            masks[node] = masks.get(node, 0) | mask
    return Allocation(tuple(sorted(masks.items())))


def _places(
    job: JobState, missing: list[tuple[int, int]], free: FreeGpus, placement: PlacementPolicy
) -> list[Allocation] | None:
    """Find so many more GPUs of each pool; ``free`` is afterwards as it was."""
    taken: list[tuple[Allocation, Request]] = []
    for pool, count in missing:
        more = on_type(job.request, free.pools[pool].gpu_type, count)
        place = placement.place(more, free) if free.pools[pool].free >= count else None
        if place is None:
            break
        free.take(place, more)
        taken.append((place, more))
    for place, more in taken:
        free.give(place, more)
    return [place for place, _ in taken] if len(taken) == len(missing) else None


def _give_back(masks: dict[int, int], nodes: list[int], excess: int) -> None:
    """Take ``excess`` GPUs from these nodes, from those with fewest first."""
    for node in sorted(nodes, key=lambda n: (masks[n].bit_count(), -n)):
        count = masks[node].bit_count()
        if count <= excess:
            del masks[node]
            excess -= count
        else:
            masks[node] = lowest_bits(masks[node], count - excess)
            excess = 0
        if not excess:
            return


def _on_one_node(
    job: JobState, counts: Sequence[int], free: FreeGpus, placement: PlacementPolicy
) -> Allocation | None:
    """A job that must not span nodes is placed anew, on one type."""
    wanted = [(pool, count) for pool, count in enumerate(counts) if count]
    if len(wanted) != 1:
        return None
    ((pool, count),) = wanted
    return placement.place(on_type(job.request, free.pools[pool].gpu_type, count), free)
