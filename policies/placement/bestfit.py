"""Best fit: the fullest nodes first, so that empty ones stay whole.

The best-fit competitor in "Beware of Fragmentation" (FGD, ATC'23): the node with the smallest
``sum over resources of (free - requested) / largest capacity in the cluster``, resources weighing
the same. Resources are the GPU (shares as fractions) and, on inventories that state it, the CPU;
memory decides whether a node is feasible, not how well it fits. Without host limits this is the
node with the fewest free GPUs. A gang that no node holds and that may span nodes takes up the
fullest nodes first, whatever their number; ``consolidated`` is the one that wants few nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import WHOLE, FreeGpus, Pool
from policies.placement.consolidated import tightest
from policies.placement.room import (
    cpu_hosts,
    fill,
    nodes_of,
    on_one_node,
    plain,
    room,
    rooms,
    share_gpus,
    share_on,
)
from traces import Allocation, Request


@dataclass(frozen=True, kw_only=True)
class BestFit(PlacementPolicy):
    """Least left over, GPU and CPU weighing the same."""

    name: ClassVar[str] = "best-fit"
    by_count: ClassVar[bool] = True

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "A gang goes to the node on which the least is left over (GPUs, and CPUs where the"
            " inventory states them, each relative to the largest node); if no node holds it, to"
            " the nodes with the least left, fullest first.",
            "A share goes to the fullest GPU of that node that can hold it.",
        )

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take the fullest nodes."""
        if request.num_gpus == 0:
            node = _least_left(free, cpu_hosts(request, free))
            return None if node is None else Allocation(((node, 0),))
        for pool in free.candidates(request):
            if request.gpu_milli != WHOLE:
                placed = _fullest_gpu(request, free, pool)
            elif pool.free < request.num_gpus:
                continue
            else:
                placed = _gang(request, free, pool)
            if placed is not None:
                return placed
        return None


def _gang(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    count = request.num_gpus
    if not free.limited and not pool.sharing and plain(request, free):
        node = tightest(request, free, pool, count, 0)
        if node is None:
            return fill(request, free, _fullest_first(pool))
        return fill(request, free, [(node, count)])
    holders: list[int] = []
    if count <= pool.width:
        holders = [n for n in nodes_of(pool.at_least(count)) if room(request, free, n) >= count]
    node = _least_left(free, holders)
    if node is not None:
        return fill(request, free, [(node, count)])
    if on_one_node(request):
        return None
    measure = _Left(free)
    offers = rooms(request, free, pool.at_least(1))
    return fill(request, free, sorted(offers, key=lambda o: (measure(o[0]), o[0])))


def _fullest_first(pool: Pool) -> Iterable[tuple[int, int]]:
    for count in range(1, pool.width + 1):
        for node in nodes_of(pool.levels[count]):
            yield node, count


def _fullest_gpu(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    holders = (
        node
        for node in nodes_of(pool.sharing | (pool.nodes & ~pool.levels[0]))
        if free.hosts(node, request.cpu_milli, request.memory_mib)
        and share_gpus(request, free, node)
    )
    node = _least_left(free, holders)
    if node is None:
        return None
    _, gpu = min(share_gpus(request, free, node))
    return share_on(request, node, gpu)


def _least_left(free: FreeGpus, nodes: Iterable[int]) -> int | None:
    measure = _Left(free)
    return min(nodes, key=lambda node: (measure(node), node), default=None)


class _Left:
    """What is free on a node, relative to the largest node, summed over resources.

    The request itself is the same everywhere and does not change the order. Compared as a
    fraction of integers (times both maxima), so equal nodes tie exactly.
    """

    __slots__ = ("_cpu", "_free", "_gpu")

    def __init__(self, free: FreeGpus) -> None:
        self._free = free
        self._gpu = max((pool.width for pool in free.pools), default=0) * WHOLE or 1
        limits = [n.cpu_milli for n in free.spec.nodes] if free.limited else []
        self._cpu = max((c for c in limits if c is not None), default=0)

    def __call__(self, node: int) -> int:
        free = self._free
        idle: int = free.mask[node].bit_count() * WHOLE + sum(free.shared[node].values())
        if not self._cpu:
            return idle
        cpu = free.cpu_milli[node]
        # A node without a CPU limit never runs out: as good as the largest one, empty.
        return idle * self._cpu + (self._cpu if cpu is None else cpu) * self._gpu
