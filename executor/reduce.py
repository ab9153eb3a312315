"""The dense gradient of a step: summed along the tree over ranks, wherever the ranks sit.

Parameters are put into *buckets* in reverse order, since backward reaches the last ones first. The
bucket map and the tree are the job's *order of reduction*: fixed for life and written in its
checkpoints. With the tree, the bits do not depend on the bucket map either, only the timing does.
A job may have another order, that of stock DistributedDataParallel (``executor.ring``), which costs
the memory and the exchange of every local rank's gradients: none can be added to another here.

A gradient is added to the partial sums of ``executor.tree`` during backward, as soon as it is
there (small ones after it, all at once), and its own memory is free again. So one device with n
logical workers does n - 1 additions, as plain accumulation does, and beside the activations of the
last of them lie log2 n partial sums, which is as few as any order of visiting that tree can do
with.

When the last local rank's backward has filled a bucket, the exchange of that bucket begins,
strictly in bucket order, while backward goes on (``executor.bucket``). A gradient on a GPU whose
partial sums wait on the CPU is copied to pinned memory on a stream of its own, while the next
micro-batch computes.

The sum is multiplied by the task's ``scale`` at its end. DistributedDataParallel multiplies each
gradient before the sum; for powers of two both are exact unless a number is subnormal. Gradients of
16 bits are scaled first, since their sum may leave the range, and so are those of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from executor.bucket import NARROW, Bucket, Summed
from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.ring import Buckets, ddp_buckets, links, ring_sum
from executor.tree import Block, additions, carries, whole_subtrees

KINDS = ("tree", "ring")
BUCKET_BYTES = 4 << 20
_SMALL_BYTES = 16 << 10  # gradients that are not worth a call of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of reduction of a job: a property of the job, not of its devices.

    ``kind``: ``tree``, or ``ring`` for that of DistributedDataParallel on gloo. ``buckets``:
    indices of parameters, bucket by bucket, in the order in which buckets are exchanged. ``first``:
    a ring's buckets in the first step.
    """

    num_workers: int
    buckets: Buckets
    kind: str = "tree"
    first: Buckets = ()

    def at(self, step: int) -> Order:
        """Return the order of the step after ``step`` steps."""
        return replace(self, buckets=self.first) if self.first and step == 0 else self

    def to_json(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        return {
            "kind": self.kind,
            "num_workers": self.num_workers,
            "buckets": [list(bucket) for bucket in self.buckets],
        } | ({"first": [list(bucket) for bucket in self.first]} if self.first else {})

    @classmethod
    def from_json(cls, values: Any) -> Order:
        """Read what ``to_json`` wrote. Raises ExecutorError for an order that is not known."""
        check_kind(values.get("kind"))
        buckets, first = (
            tuple(tuple(int(i) for i in bucket) for bucket in values.get(name, ()))
            for name in ("buckets", "first")
        )
        return cls(
            num_workers=int(values["num_workers"]),
            buckets=buckets,
            kind=values["kind"],
            first=first,
        )


def check_kind(kind: Any) -> None:
    """Raise ExecutorError for an order of reduction that there is not."""
    if kind not in KINDS:
        raise ExecutorError("unknown order", value=kind, expected=" or ".join(KINDS))


def order_of(
    parameters: Sequence[nn.Parameter],
    num_workers: int,
    bucket_bytes: int = BUCKET_BYTES,
    *,
    arrived: Sequence[int] | None = None,
) -> Order:
    """Return the order of a new job: buckets of at most ``bucket_bytes``, one dtype each.

    A parameter that is larger has a bucket to itself. ``arrived``: the order is a ring, with
    DistributedDataParallel's buckets of parameters whose gradients arrive in this order
    (:func:`executor.ring.arrival`).
    """
    if arrived is not None:
        first, later = ddp_buckets(parameters, arrived)
        return Order(num_workers=num_workers, buckets=later, kind="ring", first=first)
    if bucket_bytes < 1:
        raise ExecutorError("bad size", where="bucket_bytes", value=bucket_bytes, expected="1 up")
    buckets: list[list[int]] = []
    room = 0
    for index in reversed(range(len(parameters))):
        parameter = parameters[index]
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or parameters[buckets[-1][0]].dtype != parameter.dtype:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(index)
        room -= size
    return Order(num_workers=num_workers, buckets=tuple(map(tuple, buckets)))


def _summed(order: Order, members: Sequence[nn.Parameter], blocks: Sequence[Block]) -> Summed:
    """How the partial sums of a bucket, which are those of ``blocks``, are added up."""
    if order.kind == "ring":
        numbers = sum(parameter.numel() for parameter in members)
        chain = tuple(links(numbers, members[0].element_size(), order.num_workers))
        return lambda parts, begin: ring_sum(parts, begin, chain)

    plan = additions(blocks, order.num_workers)

    def along_the_tree(parts: Sequence[Tensor], _: int) -> Tensor:
        for left, right in plan:
            parts[left].add_(parts[right])
        return parts[0]

    return along_the_tree


class DenseReducer:
    """Sums the dense gradients of one generation's devices; this one holds ``blocks[index]``.

    ``blocks``: the ranks of every device, in rank order; ``device``: where partial sums wait (None:
    where they are exchanged). One step is ``begin``, then for each local rank in order ``push``, or
    ``arm`` before its backward and ``push`` after it, then ``finish``.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        order: Order,
        blocks: Sequence[range],
        exchange: Exchange,
        *,
        scale: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        members = sorted(i for bucket in order.buckets for i in bucket)
        if members != list(range(len(parameters))):
            raise ExecutorError(
                "the bucket map is of another model",
                value=f"{len(members)} parameters",
                expected=str(len(parameters)),
            )
        self._parameters = parameters
        self.order = order
        self._exchange = exchange
        self._device = exchange.device if device is None else device
        self._scale = scale
        own, ranks = blocks[exchange.index], order.num_workers
        self._last = own[-1]
        self._scaled_first = order.kind == "ring"
        if order.kind == "ring":
            self._carries = dict.fromkeys(own, 0)
            partials = [[Block(rank, rank + 1) for rank in block] for block in blocks]
        else:
            self._carries = dict(zip(own, carries(own.start, own.stop, ranks), strict=True))
            partials = [list(whole_subtrees(b.start, b.stop, ranks)) for b in blocks]
        self._buckets: list[Bucket] = []
        for indices in order.buckets:
            held = [parameters[i] for i in indices]
            self._buckets.append(
                Bucket(
                    held,
                    exchange,
                    [len(of_device) for of_device in partials],
                    _summed(order, held, [one for of_device in partials for one in of_device]),
                    scale=1.0 if self._scaled_first else scale,
                    device=self._device,
                )
            )
        self._place = {
            i: (b, position)
            for b, bucket in enumerate(order.buckets)
            for position, i in enumerate(bucket)
        }
        self._large = [
            p.numel() * p.element_size() >= _SMALL_BYTES and p.device == self._device
            for p in parameters
        ]
        self._armed: int | None = None
        self._exchanging = False  # the armed rank is the last of ours, and there are others
        self._arrived: set[int] = set()
        self._full: set[int] = set()
        self._next = 0
        self._streams: dict[torch.device, Any] = {}
        self._hooks: list[Any] = []

    def begin(self) -> None:
        """Start a step: forget what an interrupted one left."""
        self._armed, self._next = None, 0
        self._arrived.clear()
        self._full.clear()
        for bucket in self._buckets:
            bucket.begin()

    def arm(self, rank: int) -> None:
        """Before a local rank's backward: add and exchange gradients as soon as they are there."""
        # Those of a last rank are sent, or looked at while they are in a cache.
        last = rank == self._last and (self._exchange.size > 1 or self._device.type == "cpu")
        if not last and not self._carries[rank]:
            return  # they are to be kept as they are
        if not self._hooks:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._hook_of(i))  # type: ignore[no-untyped-call]
                for i, p in enumerate(self._parameters)
            ]
        self._armed, self._exchanging = rank, rank == self._last and self._exchange.size > 1

    def push(self, rank: int, gradients: Sequence[Tensor]) -> None:
        """Add one rank's gradients, which are ours from now on.

        After ``arm``, those that backward has not delivered.
        """
        armed, self._armed = self._armed == rank, None
        arrived = self._arrived if armed else set()
        exchanging = armed and self._exchanging
        for number, members in enumerate(self.order.buckets):
            rest = [i for i in members if i not in arrived]
            if rest:
                self._stage(number, rest, [gradients[i] for i in rest], rank, exchanging=exchanging)
        self._arrived.clear()

    def finish(self) -> tuple[Tensor, ...]:
        """Return the sums over all ranks, shaped as the parameters; valid until ``begin``."""
        self.launch_rest()
        for bucket in self._buckets:
            bucket.fold()
        totals: dict[int, Tensor] = {}
        for bucket, members in zip(self._buckets, self.order.buckets, strict=True):
            for index, total in zip(members, bucket.total(), strict=True):
                totals[index] = total.to(self._parameters[index].device)
        return tuple(totals[i] for i in range(len(self._parameters)))

    def launch_rest(self) -> None:
        """Start the exchange of the buckets that no backward started."""
        while self._next < len(self._buckets):
            self._buckets[self._next].launch()
            self._next += 1

    @property
    def finite(self) -> bool:
        """Whether the sums that ``finish`` returned have all been seen to be finite."""
        return all(bucket.finite for bucket in self._buckets)

    def own_finite(self) -> bool:
        """Whether this device's own partial sums of the step are finite."""
        return all(bucket.own_finite() for bucket in self._buckets)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook_of(self, index: int) -> Any:
        """What is called for each parameter in each backward, so as little as can be."""
        number, position = self._place[index]
        bucket, arrived_before = self._buckets[number], self._arrived
        one = self._parameters[index]
        as_it_is = one.device == self._device and one.dtype not in NARROW and not self._scaled_first
        large = self._large[index]

        def arrived(parameter: Tensor) -> None:
            rank, gradient = self._armed, parameter.grad
            if rank is None or gradient is None or not (large or self._exchanging):
                return
            if index in arrived_before:
                raise ExecutorError(
                    "a gradient arrived twice in one backward",
                    where=f"parameter {index}",
                    expected="a model without reentrant recomputation, or overlap switched off",
                )
            arrived_before.add(index)
            # What the task finds in ``grad`` is not pushed again; the gradient's memory is free.
            if as_it_is and self._exchanging:
                parameter.grad = bucket.place(position, gradient, self._carries[rank])
                if bucket.count(1):
                    self._launch(number)
                return
            self._stage(number, [index], [gradient], rank, exchanging=self._exchanging)
            if as_it_is:
                parameter.grad = bucket.newest(position)

        return arrived

    def _stage(
        self,
        number: int,
        indices: Sequence[int],
        gradients: Sequence[Tensor],
        rank: int,
        *,
        exchanging: bool,
    ) -> None:
        """Take gradients of one rank into their bucket; launch those that are full in turn."""
        bucket, last = self._buckets[number], rank == self._last
        positions = [self._place[i][1] for i in indices]
        if self._scale != 1.0 and (self._scaled_first or gradients[0].dtype in NARROW):
            gradients = [g * self._scale for g in gradients]
        if gradients[0].device == self._device:
            full = bucket.take(
                positions, gradients, self._carries[rank], last=last, sending=exchanging
            )
        else:
            copies = [self._brought(g) for g in gradients]
            mark = self._streams[gradients[0].device].record_event()
            full = bucket.take_later(positions, copies, self._carries[rank], last=last, copied=mark)
        if full and exchanging:
            self._launch(number)

    def _launch(self, number: int) -> None:
        """A bucket is full: exchange it, and those after it that waited for it."""
        self._full.add(number)
        while self._next in self._full:
            self._full.remove(self._next)
            self._buckets[self._next].launch()
            self._next += 1

    def _brought(self, gradient: Tensor) -> Tensor:
        """Start to copy a gradient to where partial sums wait."""
        stream = self._streams.get(gradient.device)
        if stream is None:
            stream = self._streams[gradient.device] = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                gradient.device
            )
        stream.wait_stream(torch.cuda.current_stream(gradient.device))
        with torch.cuda.stream(stream):
            copy = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
            copy.copy_(gradient, non_blocking=True)
            gradient.record_stream(stream)
        return copy
