"""What a node has room for: the questions every placement asks of the free index.

A gang's CPUs and memory are spread over its nodes in proportion to the GPUs taken on each
(``traces.job.Request``), so a node with ``c`` CPUs left can stand beside
``floor(c * num_gpus / cpu_milli)`` GPUs of the gang. Counting per node is exact: rounding each
node's part up, as the index charges it, never asks for more than that floor allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from policies.free import WHOLE, FreeGpus
from traces import Allocation, Request


def plain(request: Request, free: FreeGpus) -> bool:
    """Whether whole GPUs alone decide: a gang that may span nodes, whose hosts are no limit."""
    return (
        request.gpu_milli == WHOLE
        and request.num_gpus > 0
        and not (request.single_node and request.num_gpus > 1)
        and not hosts_matter(request, free)
    )


def hosts_matter(request: Request, free: FreeGpus) -> bool:
    """Whether CPUs or memory can decide where the request fits."""
    return free.limited and (request.cpu_milli > 0 or request.memory_mib > 0)


def on_one_node(request: Request) -> bool:
    """Whether the request can only ever sit on one node."""
    return request.single_node or request.num_gpus <= 1


def nodes_of(bits: int) -> Iterator[int]:
    """Node indices of a bit set, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def room(request: Request, free: FreeGpus, node: int) -> int:
    """Return how many wholly free GPUs of a node the gang could take now (0 to its size)."""
    count: int = min(free.mask[node].bit_count(), request.num_gpus)
    if free.limited:
        count = min(
            count,
            _beside(free.cpu_milli[node], request.cpu_milli, request.num_gpus),
            _beside(free.memory_mib[node], request.memory_mib, request.num_gpus),
        )
    return count


def room_when_empty(request: Request, free: FreeGpus, node: int) -> int:
    """Return how many GPUs of a node the gang could take if nothing else were there."""
    machine = free.spec.nodes[node]
    return min(
        machine.num_gpus,
        request.num_gpus,
        _beside(machine.cpu_milli, request.cpu_milli, request.num_gpus),
        _beside(machine.memory_mib, request.memory_mib, request.num_gpus),
    )


def _beside(have: int | None, asked: int, num_gpus: int) -> int:
    if have is None or asked == 0:
        return num_gpus
    return have * num_gpus // asked


def rooms(request: Request, free: FreeGpus, bits: int) -> list[tuple[int, int]]:
    """Return (node, room) of the nodes in a bit set that have any room, ascending."""
    found = ((node, room(request, free, node)) for node in nodes_of(bits))
    return [(node, count) for node, count in found if count]


def cpu_hosts(request: Request, free: FreeGpus) -> Iterator[int]:
    """Nodes that could run a CPU job now, ascending."""
    for node, machine in enumerate(free.spec.nodes):
        if request.gpu_types and machine.gpu_type not in request.gpu_types:
            continue
        if free.hosts(node, request.cpu_milli, request.memory_mib):
            yield node


def share_gpus(request: Request, free: FreeGpus, node: int) -> list[tuple[int, int]]:
    """Return (free thousandths, GPU) of a node's GPUs that could hold the share.

    One GPU stands for all of the node with the same thousandths free: the lowest. CPUs and memory
    are not looked at. In order of GPU index.
    """
    lowest: dict[int, int] = {}
    for gpu, milli in free.shared[node].items():
        if milli >= request.gpu_milli and gpu < lowest.get(milli, gpu + 1):
            lowest[milli] = gpu
    mask = free.mask[node]
    if mask:
        lowest[WHOLE] = (mask & -mask).bit_length() - 1
    return sorted(((milli, gpu) for milli, gpu in lowest.items()), key=lambda found: found[1])


def fill(request: Request, free: FreeGpus, order: Iterable[tuple[int, int]]) -> Allocation | None:
    """Take as many GPUs as each (node, room) offers, in this order, until the gang is whole."""
    left = request.num_gpus
    taken = []
    for node, count in order:
        count = min(count, left)  # noqa: PLW2901
        taken.append((node, lowest_bits(free.mask[node], count)))
        left -= count
        if not left:
            return Allocation(tuple(sorted(taken)))
    return None


def share_on(request: Request, node: int, gpu: int) -> Allocation:
    """Return the allocation of a share of one GPU."""
    return Allocation(((node, 1 << gpu),), request.gpu_milli)


def lowest_bits(mask: int, count: int) -> int:
    """Return the ``count`` lowest set bits of a mask that has at least so many."""
    if count == mask.bit_count():
        return mask
    picked = 0
    for _ in range(count):
        low = mask & -mask
        picked |= low
        mask ^= low
    return picked
