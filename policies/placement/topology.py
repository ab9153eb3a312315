"""Topology: a gang where its ring of messages is fastest, and where it disturbs the rest least.

Ring all-reduce over ``K`` GPUs moves ``2 (K - 1) / K`` of the gradient over every link of the
ring, so its pace is the bandwidth ``b(S)`` of the slowest link it needs. On the tree of
``ClusterSpec.graph()`` (spine, racks, nodes, devices) that only falls on the way up, so the best
set lies under the lowest switch with enough free GPUs: one node, else one rack, else several. Among
sets of one level, in this order: the widest ``b(S)``; the smallest cut, the bandwidth that would
have to be removed to separate the set from all other devices, because what crosses it can be
disturbed by others and disturb them; the tightest domain, so that large whole racks and nodes are
left; the inventory's order. Inside a rack, and across racks, the gang takes the fewest nodes.

Like Kueue's topology-aware scheduling ("best fit": lowest domain, tightest last) and, without its
reserved cells, HiveD's. The graph is read once per inventory; a placement then costs a look at
each rack's counts of free GPUs. Left out: traffic of other jobs, and torus or rail topologies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import WHOLE, FreeGpus, Pool
from policies.placement.consolidated import fewest_nodes
from policies.placement.room import fill as fill_nodes
from policies.placement.room import (
    hosts_matter,
    nodes_of,
    on_one_node,
    room,
    rooms,
)
from policies.placement.single import place_on_one_node
from policies.placement.tree import Tree
from traces import Allocation, ClusterSpec, Request


@dataclass(frozen=True, kw_only=True)
class Topology(PlacementPolicy):
    """Lowest common switch first, then the smallest cut, then the tightest domain."""

    name: ClassVar[str] = "topology"
    by_count: ClassVar[bool] = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "A gang goes under the lowest switch with enough free GPUs: one node, else one rack,"
            " else as few racks as hold it; it never waits for a better place.",
            "Among equals the set with the smallest cut to the rest, then the tightest domain.",
            "An allowed type that comes first is taken even if a later one is better placed.",
        )

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take the devices under the lowest switch."""
        if request.num_gpus == 0 or request.gpu_milli != WHOLE:
            return place_on_one_node(request, free)
        tree = self._tree(free.spec)
        for pool in free.candidates(request):
            if pool.free < request.num_gpus:
                continue
            placed = _in_one_node(request, free, pool, tree)
            if placed is None and not on_one_node(request):
                placed = _in_one_rack(request, free, pool, tree) or _across_racks(
                    request, free, pool, tree
                )
            if placed is not None:
                return placed
        return None

    def _tree(self, spec: ClusterSpec) -> Tree:
        """The inventory's graph, read once (a memory of the inventory, not of events)."""
        known = self.__dict__.get("_memory")
        if not isinstance(known, Tree) or known.spec is not spec:
            known = self.__dict__["_memory"] = Tree(spec)
        return known


def _in_one_node(request: Request, free: FreeGpus, pool: Pool, tree: Tree) -> Allocation | None:
    count = request.num_gpus
    if count > pool.width:
        return None
    check = hosts_matter(request, free)
    best: tuple[tuple[float, ...], int] | None = None
    for have in range(count, pool.width + 1):
        for rack, members in enumerate(tree.racks):
            level = pool.levels[have] & members
            for node in nodes_of(level):
                if check and room(request, free, node) < count:
                    continue
                cut = tree.node_cut(node, count)
                key = (-tree.device_gb_per_s, cut, have, rack_free(pool, members), rack, node)
                if best is None or key < best[0]:
                    best = (key, node)
                if pool.uniform:
                    break  # nodes of one rack and level differ by their number alone
        if best is not None and pool.uniform:
            break  # fuller nodes were looked at first, and cuts are the same
    return None if best is None else fill_nodes(request, free, [(best[1], count)])


def _in_one_rack(request: Request, free: FreeGpus, pool: Pool, tree: Tree) -> Allocation | None:
    best: tuple[tuple[float, ...], Allocation] | None = None
    for rack, members in enumerate(tree.racks):
        inside = rack_free(pool, members)
        if inside < request.num_gpus:
            continue
        placed = fewest_nodes(request, free, pool.at_least(1) & members)
        if placed is not None:
            band = tree.ring_gb_per_s(placed.shares)
            key = (-band, tree.cut_gb_per_s(placed.shares), inside, rack)
            if best is None or key < best[0]:
                best = (key, placed)
    return None if best is None else best[1]


def _across_racks(request: Request, free: FreeGpus, pool: Pool, tree: Tree) -> Allocation | None:
    """Take the roomiest racks whole and the rest from the tightest rack that holds it."""
    offers = []
    for rack, members in enumerate(tree.racks):
        nodes = rooms(request, free, pool.at_least(1) & members)
        if nodes:
            offers.append((sum(count for _, count in nodes), rack, nodes))
    offers.sort(key=lambda offer: (-offer[0], offer[1]))
    left = request.num_gpus
    order: list[tuple[int, int]] = []
    for position, (total, _, nodes) in enumerate(offers):
        if total >= left:
            _, _, last = min(
                (o for o in offers[position:] if o[0] >= left), key=lambda o: (o[0], o[1])
            )
            order += _roomiest(last, left)
            return fill_nodes(request, free, order)
        order += nodes
        left -= total
    return None


def _roomiest(nodes: Iterable[tuple[int, int]], left: int) -> list[tuple[int, int]]:
    """The roomiest nodes first, the last one the tightest that holds what is left."""
    ranked = sorted(nodes, key=lambda offer: (-offer[1], offer[0]))
    chosen: list[tuple[int, int]] = []
    for position, offer in enumerate(ranked):
        if offer[1] >= left:
            fits = (o for o in ranked[position:] if o[1] >= left)
            return [*chosen, min(fits, key=lambda o: (o[1], o[0]))]
        chosen.append(offer)
        left -= offer[1]
    return chosen


def rack_free(pool: Pool, members: int) -> int:
    """Wholly free GPUs of a pool on the nodes of a rack."""
    return sum(
        count * (pool.levels[count] & members).bit_count() for count in range(1, pool.width + 1)
    )
