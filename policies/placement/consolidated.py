"""Consolidated: a gang on the fewest nodes, the tightest that hold it; otherwise it waits.

The rule of Helios' and Lucid's simulators, and of most production schedulers: a gang of at most
``P`` GPUs (the size of the largest node of the type) goes to the node with the least free GPUs
that holds all of it; a larger gang takes ``floor(g / P)`` empty nodes and puts the remainder on
the node with the least free GPUs that holds it. Where node sizes or hosts differ, "empty nodes" are
the widest for this gang that are wholly free, as many as are needed on an empty cluster less one.

Left out: Tiresias' ``yarn`` also asks for one switch (see ``topology``), and its skew rule asks
which models need consolidation at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import WHOLE, FreeGpus, Pool
from policies.placement.room import (
    fill,
    hosts_matter,
    nodes_of,
    on_one_node,
    plain,
    room,
    room_when_empty,
    rooms,
)
from policies.placement.single import place_on_one_node
from traces import Allocation, Request


@dataclass(frozen=True, kw_only=True)
class Consolidated(PlacementPolicy):
    """Fewest nodes, tightest fit.

    ``require``: a gang waits until it can have that (default); False takes the fewest nodes that
    are to be had now.
    """

    name: ClassVar[str] = "consolidated"
    by_count: ClassVar[bool] = False

    require: bool = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "A gang goes to the fewest nodes that could hold it on an empty cluster, and of these"
            " to the ones with the least free GPUs."
            + (
                " Otherwise it waits."
                if self.require
                else " Otherwise it takes the fewest nodes that hold it now."
            ),
            "A type that cannot give that is passed over for the next allowed type.",
        )

    def exact_by_count(self, request: Request, free: FreeGpus) -> bool:
        """By count if consolidation is a wish only, or for a single GPU."""
        return (not self.require or request.num_gpus == 1) and plain(request, free)

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take the tightest fewest nodes."""
        if request.num_gpus == 0 or request.gpu_milli != WHOLE:
            return place_on_one_node(request, free)
        for pool in free.candidates(request):
            placed = _consolidate(request, free, pool)
            if placed is not None:
                return placed
        if self.require or on_one_node(request):
            return None
        for pool in free.candidates(request):
            placed = fewest_nodes(request, free, pool.at_least(1))
            if placed is not None:
                return placed
        return None


def _consolidate(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    count, width = request.num_gpus, pool.width
    if count <= width:
        node = tightest(request, free, pool, count, 0)
        if node is not None:
            return fill(request, free, [(node, count)])
        if not hosts_matter(request, free):
            return None
    if on_one_node(request) or pool.free < count:
        return None
    if not pool.uniform or hosts_matter(request, free):
        return _whole_unlike_nodes(request, free, pool)
    return _whole_nodes(request, free, pool)


def _whole_nodes(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    empty, remainder = divmod(request.num_gpus, pool.width)
    nodes: list[tuple[int, int]] = []
    used = 0
    for node in nodes_of(pool.levels[pool.width]):
        if len(nodes) == empty:
            break
        nodes.append((node, pool.width))
        used |= free.bits[node]
    if len(nodes) == empty and remainder:
        last = tightest(request, free, pool, remainder, used)
        if last is not None:
            nodes.append((last, remainder))
    return fill(request, free, nodes)  # None if these are too few


def _whole_unlike_nodes(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    """The same where nodes differ in size or in what their hosts can stand beside."""
    count = request.num_gpus
    sizes = [(room_when_empty(request, free, n), n) for n in nodes_of(pool.nodes)]
    sizes.sort(key=lambda size: (-size[0], size[1]))
    left, needed = count, 0
    for size, _ in sizes:
        needed += 1
        left -= size
        if left <= 0:
            break
    else:
        return None
    nodes: list[tuple[int, int]] = []
    used, left = 0, count
    for size, node in sizes:
        if len(nodes) == needed - 1:
            break
        if room(request, free, node) == size:
            nodes.append((node, size))
            used |= free.bits[node]
            left -= size
    if left > 0:
        last = tightest(request, free, pool, left, used)
        if last is None:
            return None
        nodes.append((last, left))
    return fill(request, free, nodes)


def tightest(request: Request, free: FreeGpus, pool: Pool, count: int, used: int) -> int | None:
    """Return the node with the least free GPUs that holds ``count`` of the gang, not in ``used``.

    None if there is none. Ties go to the lowest node.
    """
    check = hosts_matter(request, free)
    for level in pool.levels[count:]:
        bits = level & ~used
        if not check:
            if bits:
                return (bits & -bits).bit_length() - 1
            continue
        for node in nodes_of(bits):
            if room(request, free, node) >= count:
                return node
    return None


def fewest_nodes(request: Request, free: FreeGpus, bits: int) -> Allocation | None:
    """Place a gang on the fewest of the nodes in a bit set that hold it now; None if too few.

    The roomiest nodes first; the last one is the tightest that holds what is left.
    """
    offers = rooms(request, free, bits)
    offers.sort(key=lambda offer: (-offer[1], offer[0]))
    left = request.num_gpus
    chosen: list[tuple[int, int]] = []
    for position, (node, count) in enumerate(offers):
        if count >= left:
            last = min(
                (o for o in offers[position:] if o[1] >= left),
                key=lambda offer: (free.mask[offer[0]].bit_count(), offer[0]),
            )
            return fill(request, free, [*chosen, (last[0], left)])
        chosen.append((node, count))
        left -= count
    return None
