"""A second order in which a job's gradients are summed: that of stock DistributedDataParallel.

With it, n logical workers on any devices have the bits of DistributedDataParallel on n gloo ranks,
for any n. The tree of ``executor.tree`` is the usual order, since a device that keeps to the ring
cannot add up anything of its own: an element's sum is a chain through all ranks, which enters a
device's block in the middle of the others.

Gloo's all-reduce (``ring`` in its ``allreduce.cc``, as in torch 2.13) cuts what it sums into
segments of at most a mebibyte, at least two for each rank and as many for each, and gives every
rank a *chunk* of neighbouring segments. Chunk c starts at rank c - 1 and travels down the ring, c -
2, c - 3, ... and at last c; each rank adds what arrives to its own.

So the bits depend on where in which bucket a number lies. DistributedDataParallel has one bucket in
the first step, parameters in their order; later ones in the order in which gradients arrived in the
first backward, the first closed as soon as it holds 1 MiB, the others 25 MiB. That order is found
by a micro-step of a task that is thrown away, when the job begins.

Leaves out: rows of sparse tables, which are summed along the tree; more than one device type in a
model; what DistributedDataParallel does otherwise when told to (``static_graph``,
``find_unused_parameters``, other sizes of buckets, hooks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from executor.context import borrowed_generators
from executor.task import Task

_SEGMENT_BYTES = 1 << 20
_BUCKET_BYTES = (1 << 20, 25 << 20)  # of the first bucket of a dtype, of every other

Buckets = tuple[tuple[int, ...], ...]


class Link(NamedTuple):
    """Numbers ``low`` to ``high - 1`` of a bucket, and the ranks in the order they are added."""

    low: int
    high: int
    ranks: tuple[int, ...]


def links(numbers: int, itemsize: int, num_ranks: int) -> Iterator[Link]:
    """Yield in which order gloo adds up a bucket of so many numbers of so many bytes."""
    most = max(1, _SEGMENT_BYTES // itemsize)
    each = _up(max(_up(numbers, most), 2 * num_ranks), num_ranks)  # segments of a rank
    segment = _up(_up(numbers * itemsize, each * num_ranks), itemsize)
    for chunk in range(num_ranks):
        low = min(chunk * each * segment, numbers)
        high = min(low + each * segment, numbers)
        if low < high:
            ranks = tuple((chunk - 1 - i) % num_ranks for i in range(num_ranks))
            yield Link(low, high, ranks)


def _up(a: int, b: int) -> int:
    """Divide, and round up."""
    return -(-a // b)


def ring_sum(parts: Sequence[Tensor], begin: int, chain: Sequence[Link]) -> Tensor:
    """Return the sum of every rank's (m,) numbers ``begin`` to ``begin + m - 1`` of a bucket.

    What lies beyond the bucket's numbers is zero.
    """
    total = torch.zeros_like(parts[0])
    for low, high, (first, *rest) in chain:
        here = slice(max(low - begin, 0), max(high - begin, 0))
        total[here].copy_(parts[first][here])
        for rank in rest:
            total[here].add_(parts[rank][here])
    return total


def arrival(task: Task) -> tuple[int, ...]:
    """Return the indices of parameters in the order in which a backward has their gradients.

    Does a micro-step with ``task``, which is changed by it and is of no further use. Parameters
    that get no gradient come last.
    """
    parameters = task.parameters()
    found: list[int] = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda _, i=i: found.append(i))  # type: ignore[no-untyped-call]
        for i, p in enumerate(parameters)
    ]
    batch, _ = task.source.fetch(0, task.source.first(0))
    with borrowed_generators(task.generators, task.device):
        task.micro_step(0, batch)
    for hook in hooks:
        hook.remove()
    rest = reversed(range(len(parameters)))
    return tuple(dict.fromkeys([*found, *rest]))


def ddp_buckets(
    parameters: Sequence[nn.Parameter], arrived: Sequence[int]
) -> tuple[Buckets, Buckets]:
    """Return DistributedDataParallel's buckets in the first step, and in all later ones.

    ``arrived``: the indices of all parameters in the order of :func:`arrival`.
    """
    first: dict[torch.dtype, list[int]] = {}
    for index, parameter in enumerate(parameters):
        first.setdefault(parameter.dtype, []).append(index)
    later: list[list[int]] = []
    filling: dict[torch.dtype, _Filling] = {}
    for index in arrived:
        parameter = parameters[index]
        into = filling.setdefault(parameter.dtype, _Filling())
        if not into.bucket:
            later.append(into.bucket)
        into.add(index, parameter.numel() * parameter.element_size())
    return tuple(map(tuple, first.values())), tuple(map(tuple, later))


@dataclass(slots=True)
class _Filling:
    """The bucket of a dtype that is being filled, its bytes, and how many it may have."""

    bucket: list[int] = field(default_factory=list)
    size: int = 0
    limit: int = _BUCKET_BYTES[0]

    def add(self, index: int, size: int) -> None:
        self.bucket.append(index)
        self.size += size
        if self.size >= self.limit:
            self.bucket, self.size, self.limit = [], 0, _BUCKET_BYTES[1]
