"""The dense gradient of a step: summed along the tree over ranks, wherever the ranks sit.

Parameters are put into *buckets* in reverse order, since backward reaches the last ones first. The
bucket map and the tree are the job's *order of reduction*: fixed for life and written in its
checkpoints. With the tree, the bits do not depend on the bucket map either, only the timing does.

Each bucket of each rank is added into the fold of ``executor.tree`` as soon as it is there. When
the last local rank's backward has filled a bucket, the exchange of that bucket begins, strictly in
bucket order, while backward goes on::

    chunk c of every partial sum of the bucket  -- all-to-all -->  device c
    device c adds them up along the tree        -- all-gather -->  everybody

A device sends one chunk per whole subtree of its block: for aligned blocks one, and then the bytes
are those of a ring all-reduce, 2 (p - 1) / p of the gradient; in the worst case 2 log2 n times that
of the first half.

Each rank's gradient is multiplied by the task's ``scale`` before the sum. A gradient on a GPU whose
exchange is on the CPU is copied to pinned memory on a stream of its own, while the next micro-batch
computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from executor.errors import ExecutorError
from executor.exchange import Exchange, Pending
from executor.tree import Block, Fold, whole_subtrees

BUCKET_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of reduction of a job: a property of the job, not of its devices.

    ``kind``: ``tree``. ``buckets``: indices of parameters, bucket by bucket, in the order in which
    buckets are exchanged.
    """

    num_workers: int
    buckets: tuple[tuple[int, ...], ...]
    kind: str = "tree"

    def to_json(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        return {
            "kind": self.kind,
            "num_workers": self.num_workers,
            "buckets": [list(bucket) for bucket in self.buckets],
        }

    @classmethod
    def from_json(cls, values: Any) -> Order:
        """Read what ``to_json`` wrote. Raises ExecutorError for an order that is not known."""
        if values.get("kind") != "tree":
            raise ExecutorError("unknown order", value=values.get("kind"), expected="tree")
        return cls(
            num_workers=int(values["num_workers"]),
            buckets=tuple(tuple(int(i) for i in bucket) for bucket in values["buckets"]),
        )


def order_of(
    parameters: Sequence[nn.Parameter], num_workers: int, bucket_bytes: int = BUCKET_BYTES
) -> Order:
    """Return the order of a new job: buckets of at most ``bucket_bytes``, one dtype each.

    A parameter that is larger has a bucket to itself.
    """
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


class _Bucket:
    """One bucket on one device: its fold, its spare memory, its exchange."""

    def __init__(self, members: Sequence[nn.Parameter], exchange: Exchange, num_ranks: int) -> None:
        self.dtype = members[0].dtype
        self.offsets: list[int] = []
        size = 0
        for parameter in members:
            self.offsets.append(size)
            size += parameter.numel()
        self.chunk = -(-size // exchange.size)
        self.size = self.chunk * exchange.size
        self.spare: list[Tensor] = []
        self.fold: Fold[Tensor] = Fold(num_ranks, self._add)
        self.filling: Tensor | None = None
        self.deferred: tuple[int, Tensor, Any] | None = None
        self.missing = 0
        self.received: Tensor | None = None
        self.pending: Pending | None = None
        self.total: Tensor | None = None

    def take(self, device: torch.device) -> Tensor:
        """Memory for one flat gradient; its padding is zero for life."""
        if self.spare:
            return self.spare.pop()
        pinned = device.type == "cpu" and torch.cuda.is_available()
        return torch.zeros(self.size, dtype=self.dtype, device=device, pin_memory=pinned)

    def settle(self) -> None:
        """Give the fold what was still being copied from a GPU."""
        if self.deferred is not None:
            rank, value, copied = self.deferred
            self.deferred = None
            if copied is not None:
                copied.synchronize()
            self.fold.push(Block(rank, rank + 1), value)

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        left.add_(right)
        self.spare.append(right)
        return left


class DenseReducer:
    """Sums the dense gradients of one generation's devices; this one holds ``blocks[index]``.

    ``blocks``: the ranks of every device, in rank order; ``device``: where partial sums wait (None:
    where they are exchanged). One step is ``begin``, then for each local rank ``push``, or ``arm``
    before the last one's backward and ``push`` after it, then ``finish``.
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
        self._order = order
        self._exchange = exchange
        self._device = exchange.device if device is None else device
        self._scale = scale
        self._subtrees = [
            whole_subtrees(block.start, block.stop, order.num_workers) for block in blocks
        ]
        self._buckets = [
            _Bucket([parameters[i] for i in bucket], exchange, order.num_workers)
            for bucket in order.buckets
        ]
        self._place = {
            i: (b, position)
            for b, bucket in enumerate(order.buckets)
            for position, i in enumerate(bucket)
        }
        self._armed: int | None = None
        self._arrived: set[int] = set()
        self._next = 0
        self._streams: dict[torch.device, Any] = {}
        self._hooks: list[Any] = []

    def begin(self) -> None:
        """Start a step: forget what an interrupted one left."""
        self._armed, self._next = None, 0
        self._arrived.clear()
        for bucket in self._buckets:
            held = [value for _, value in bucket.fold.take()]
            if bucket.total is not None and not any(bucket.total is value for value in held):
                held.append(bucket.total)
            bucket.spare += held
            bucket.total = bucket.filling = bucket.received = bucket.pending = None
            bucket.deferred = None

    def arm(self, rank: int) -> None:
        """Before the last local rank's backward: exchange each bucket as soon as it is full."""
        if not self._hooks:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._hook_of(i))  # type: ignore[no-untyped-call]
                for i, p in enumerate(self._parameters)
            ]
        self._armed = rank
        for bucket, members in zip(self._buckets, self._order.buckets, strict=True):
            bucket.missing = len(members)

    def push(self, rank: int, gradients: Sequence[Tensor]) -> None:
        """Add one rank's gradients; after ``arm``, those that backward has not delivered."""
        armed, self._armed = self._armed == rank, None
        if not armed:
            self._arrived.clear()
            for bucket, members in zip(self._buckets, self._order.buckets, strict=True):
                bucket.missing = len(members)
        for index, gradient in enumerate(gradients):
            if index not in self._arrived:
                self._stage(index, gradient, rank, exchanging=armed)
        self._arrived.clear()

    def finish(self) -> tuple[Tensor, ...]:
        """Return the sums over all ranks, shaped as the parameters; valid until ``begin``."""
        self.launch_rest()
        gathers = [self._fold_chunk(bucket) for bucket in self._buckets]
        totals: dict[int, Tensor] = {}
        for bucket, members, gather in zip(
            self._buckets, self._order.buckets, gathers, strict=True
        ):
            gather.wait()
            assert bucket.total is not None
            for offset, index in zip(bucket.offsets, members, strict=True):
                parameter = self._parameters[index]
                flat = bucket.total[offset : offset + parameter.numel()]
                totals[index] = flat.view(parameter.shape).to(parameter.device)
        return tuple(totals[i] for i in range(len(self._parameters)))

    def launch_rest(self) -> None:
        """Start the exchange of the buckets that no backward started."""
        while self._next < len(self._buckets):
            self._launch(self._buckets[self._next])
            self._next += 1

    def is_finite(self) -> bool:
        """Whether this device's own partial sums of the step are finite."""
        return all(
            bool(torch.isfinite(value).all())
            for bucket in self._buckets
            for _, value in bucket.fold.partials
        )

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook_of(self, index: int) -> Any:
        def arrived(parameter: Tensor) -> None:
            if self._armed is None or parameter.grad is None:
                return
            if index in self._arrived:
                raise ExecutorError(
                    "a gradient arrived twice in one backward",
                    where=f"parameter {index}",
                    expected="a model without reentrant recomputation, or overlap switched off",
                )
            self._arrived.add(index)
            self._stage(index, parameter.grad, self._armed, exchanging=True)

        return arrived

    def _stage(self, index: int, gradient: Tensor, rank: int, *, exchanging: bool) -> None:
        """Copy one gradient, scaled, to its bucket; a full bucket goes to the fold."""
        number, position = self._place[index]
        bucket = self._buckets[number]
        if bucket.filling is None:
            bucket.filling = bucket.take(self._device)
        offset = bucket.offsets[position]
        view = bucket.filling[offset : offset + gradient.numel()].view(gradient.shape)
        self._copy(gradient, view)
        bucket.missing -= 1
        if bucket.missing == 0:
            bucket.settle()  # the rank before
            bucket.deferred = (rank, bucket.filling, self._mark(gradient.device))
            bucket.filling = None
            if exchanging or view.device == gradient.device:
                bucket.settle()
            if exchanging:
                self._launch_in_order()

    def _copy(self, gradient: Tensor, view: Tensor) -> None:
        if gradient.device == view.device:
            if self._scale == 1.0:
                view.copy_(gradient)
            else:
                torch.mul(gradient, self._scale, out=view)
            return
        stream = self._streams.get(gradient.device)
        if stream is None:
            stream = self._streams[gradient.device] = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                gradient.device
            )
        stream.wait_stream(torch.cuda.current_stream(gradient.device))
        with torch.cuda.stream(stream):
            scaled = gradient if self._scale == 1.0 else gradient * self._scale
            view.copy_(scaled, non_blocking=True)
            gradient.record_stream(stream)

    def _mark(self, device: torch.device) -> Any:
        """What tells when the copies from a device that were started so far are done."""
        stream = self._streams.get(device)
        return None if stream is None else stream.record_event()

    def _launch_in_order(self) -> None:
        """Start the exchange of buckets that are full and whose turn it is."""
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._launch(self._buckets[self._next])
            self._next += 1

    def _launch(self, bucket: _Bucket) -> None:
        bucket.settle()
        if self._exchange.size == 1:
            bucket.total = bucket.fold.total()
            return
        sums = [value.view(self._exchange.size, bucket.chunk) for _, value in bucket.fold.partials]
        counts = [len(subtrees) for subtrees in self._subtrees]
        own = counts[self._exchange.index]
        if len(sums) != own:
            raise ExecutorError("ranks are missing on this device", value=len(sums))
        # Rows are chunks; device c gets chunk c of every partial sum.
        rows = sums[0] if own == 1 else torch.stack(sums, dim=1).view(-1, bucket.chunk)
        bucket.received = torch.empty(
            (sum(counts), bucket.chunk), dtype=bucket.dtype, device=self._device
        )
        bucket.pending = self._exchange.all_to_all(
            bucket.received, rows, counts, [own] * self._exchange.size
        )

    def _fold_chunk(self, bucket: _Bucket) -> Pending:
        """Add up our chunk of all devices' partial sums and start to give it to everybody."""
        if self._exchange.size == 1:
            return Pending(None)
        assert bucket.pending is not None and bucket.received is not None
        bucket.pending.wait()
        fold: Fold[Tensor] = Fold(self._order.num_workers, Tensor.add_)
        for block, chunk in zip(_flat(self._subtrees), bucket.received, strict=True):
            fold.push(block, chunk)
        bucket.total = bucket.take(self._device)
        return self._exchange.all_gather(bucket.total, fold.total())


def _flat(subtrees: Iterable[Iterable[Block]]) -> list[Block]:
    return [block for blocks in subtrees for block in blocks]
