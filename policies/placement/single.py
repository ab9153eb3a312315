"""Placement on one node by first fit: shares of a GPU, CPU jobs, gangs that must not span nodes.

The plain rule of the placements that have no rule of their own for these cases. Pools in the
order of the request, nodes and GPUs in the order of the inventory; the first that has the GPUs (or
the share), the CPUs and the memory. A share goes to a GPU that is shared already if any of the
pool can hold it; a whole GPU is opened only where none can. :func:`place_across_hosts` is the same
rule for gangs that may span nodes whose CPUs and memory are limits.
"""

from __future__ import annotations

from policies.free import WHOLE, FreeGpus
from policies.placement.room import (
    cpu_hosts,
    fill,
    nodes_of,
    room,
    rooms,
    share_gpus,
    share_on,
)
from traces import Allocation, Request


def place_on_one_node(request: Request, free: FreeGpus) -> Allocation | None:
    """Place a CPU job, a share, or a gang that stays on one node; None if no node has room."""
    if request.num_gpus == 0:
        return place_cpu_job(request, free)
    if request.gpu_milli < WHOLE:
        return place_share(request, free)
    for pool in free.candidates(request):
        if request.num_gpus > pool.width:
            continue
        for node in nodes_of(pool.at_least(request.num_gpus)):
            if room(request, free, node) >= request.num_gpus:
                return fill(request, free, [(node, request.num_gpus)])
    return None


def place_cpu_job(request: Request, free: FreeGpus) -> Allocation | None:
    """Place a job without GPUs on the first node with its CPUs and memory."""
    node = next(cpu_hosts(request, free), None)
    return None if node is None else Allocation(((node, 0),))


def place_share(request: Request, free: FreeGpus) -> Allocation | None:
    """Place a share on the first shared GPU that can hold it, else on the first whole one."""
    for pool in free.candidates(request):
        for bits, opens in ((pool.sharing, False), (pool.nodes & ~pool.levels[0], True)):
            for node in nodes_of(bits):
                if not free.hosts(node, request.cpu_milli, request.memory_mib):
                    continue
                for milli, gpu in share_gpus(request, free, node):
                    if opens or milli < WHOLE:
                        return share_on(request, node, gpu)
    return None


def place_across_hosts(request: Request, free: FreeGpus) -> Allocation | None:
    """Place a gang over the first nodes of a pool, on each as much as its host can stand."""
    for pool in free.candidates(request):
        if pool.free >= request.num_gpus:
            placed = fill(request, free, rooms(request, free, pool.at_least(1)))
            if placed is not None:
                return placed
    return None
