"""Spread: the emptiest nodes first.

What a load balancer does, and Kubernetes' LeastAllocated scoring: it keeps neighbours apart and
leaves no node whole. A gang takes all it can of the node with the most free GPUs, then of the
next; with ``each_gpu`` its GPUs are dealt out one by one, each to the node that then has the most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import WHOLE, FreeGpus, Pool
from policies.placement.room import (
    cpu_hosts,
    fill,
    hosts_matter,
    nodes_of,
    on_one_node,
    room,
    rooms,
    share_gpus,
    share_on,
)
from traces import Allocation, Request


@dataclass(frozen=True, kw_only=True)
class Spread(PlacementPolicy):
    """Most free GPUs first.

    ``each_gpu``: deal the GPUs of a gang out one by one (default: a gang takes what it can of a
    node before it turns to the next).
    """

    name: ClassVar[str] = "spread"
    by_count: ClassVar[bool] = True

    each_gpu: bool = False

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Each GPU of a gang goes to the node that then has the most free GPUs."
            if self.each_gpu
            else "A gang takes all it can of the node with the most free GPUs, then of the next.",
            "A share goes to the emptiest GPU of the emptiest node.",
        )

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take GPUs of the emptiest nodes."""
        if request.num_gpus == 0:
            return _emptiest_host(request, free)
        for pool in free.candidates(request):
            if request.gpu_milli != WHOLE:
                placed = _emptiest_gpu(request, free, pool)
            elif pool.free < request.num_gpus:
                continue
            elif on_one_node(request):
                node = emptiest(request, free, pool)
                placed = node if node is None else fill(request, free, [(node, request.num_gpus)])
            elif self.each_gpu:
                placed = _deal(request, free, pool)
            else:
                placed = fill(request, free, _emptiest_first(request, free, pool))
            if placed is not None:
                return placed
        return None


def _emptiest_first(request: Request, free: FreeGpus, pool: Pool) -> Iterator[tuple[int, int]]:
    check = hosts_matter(request, free)
    for count in range(pool.width, 0, -1):
        for node in nodes_of(pool.levels[count]):
            able = room(request, free, node) if check else count
            if able:
                yield node, able


def emptiest(request: Request, free: FreeGpus, pool: Pool) -> int | None:
    """Return the node with the most free GPUs that holds the whole gang, lowest first."""
    for count in range(pool.width, request.num_gpus - 1, -1):
        for node in nodes_of(pool.levels[count]):
            if room(request, free, node) >= request.num_gpus:
                return node
    return None


def _deal(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    able = dict(rooms(request, free, pool.at_least(1)))
    heap = [(-free.mask[node].bit_count(), node) for node in able]
    if sum(able.values()) < request.num_gpus:
        return None
    heapify(heap)
    dealt: dict[int, int] = {}
    for _ in range(request.num_gpus):
        count, node = heap[0]
        dealt[node] = dealt.get(node, 0) + 1
        # A node that can stand no more of this gang goes to the end.
        heapreplace(heap, (count + 1 if dealt[node] < able[node] else 1, node))
    return fill(request, free, sorted(dealt.items()))


def _emptiest_gpu(request: Request, free: FreeGpus, pool: Pool) -> Allocation | None:
    best: tuple[int, int, int, int] | None = None
    for node in nodes_of(pool.sharing | (pool.nodes & ~pool.levels[0])):
        if not free.hosts(node, request.cpu_milli, request.memory_mib):
            continue
        gpus = share_gpus(request, free, node)
        if gpus:
            idle = free.mask[node].bit_count() * WHOLE + sum(free.shared[node].values())
            milli, gpu = max(gpus, key=lambda found: (found[0], -found[1]))
            key = (-idle, node, gpu, milli)
            best = key if best is None or key < best else best
    return None if best is None else share_on(request, best[1], best[2])


def _emptiest_host(request: Request, free: FreeGpus) -> Allocation | None:
    def full(node: int) -> float:
        left: int | None = free.cpu_milli[node]
        return float("-inf") if left is None else -left

    node = min(cpu_hosts(request, free), key=lambda n: (full(n), n), default=None)
    return None if node is None else Allocation(((node, 0),))
