"""Count only: any free GPUs will do, lowest node and lowest index first.

The assumption of most published simulators: a request fits when enough GPUs of one type are
free. Jobs that must stay on one node, shares of a GPU, and hosts with limits are still respected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import FreeGpus, Pool
from policies.placement.room import lowest_bits, on_one_node
from traces import Allocation, Request


@dataclass(frozen=True, kw_only=True)
class Count(PlacementPolicy):
    """Lowest-numbered free GPUs of the first type that has enough."""

    name: ClassVar[str] = "count"
    by_count: ClassVar[bool] = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "A gang fits when enough GPUs of one type are free, on whatever nodes.",
            "A share goes to the first GPU that is shared already and can hold it, else to the"
            " first whole one.",
        )

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take the lowest-numbered free GPUs."""
        if (
            request.gpu_milli != 1000
            or request.num_gpus == 0
            or request.single_node
            or free.limited
        ):
            return _place_bounded(request, free)
        count = request.num_gpus
        for pool in free.candidates(request) if request.gpu_types else free.pools:
            if pool.free >= count:
                nodes = pool.nodes & ~pool.levels[0]
                node = (nodes & -nodes).bit_length() - 1
                mask = free.mask[node]
                if mask.bit_count() == count:  # often the lowest node has just that
                    return Allocation(((node, mask),))
                if count == 1:
                    return Allocation(((node, mask & -mask),))
                return Allocation(take_lowest(pool, free, count))
        return None


def _place_bounded(request: Request, free: FreeGpus) -> Allocation | None:
    from policies.placement.single import (  # noqa: PLC0415  (most runs never need it)
        place_across_hosts,
        place_on_one_node,
    )

    if on_one_node(request):
        return place_on_one_node(request, free)
    return place_across_hosts(request, free)


def take_lowest(pool: Pool, free: FreeGpus, count: int) -> tuple[tuple[int, int], ...]:
    """Pick the ``count`` lowest-numbered wholly free GPUs of a pool that has them."""
    nodes = pool.nodes & ~pool.levels[0]
    masks = free.mask
    shares = []
    while count:
        low = nodes & -nodes
        node = low.bit_length() - 1
        mask = masks[node]
        have = mask.bit_count()
        if have > count:
            mask = lowest_bits(mask, count)
            have = count
        shares.append((node, mask))
        count -= have
        nodes ^= low
    return tuple(shares)
