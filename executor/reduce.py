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

A partial sum is the list of a bucket's gradients as backward made them; the first rank's are kept,
the next ones added to them, and nothing is copied before it is sent. So one device with n logical
workers does n - 1 additions, as plain accumulation does. A gradient on a GPU whose partial sums
wait on the CPU is copied to pinned memory on a stream of its own, while the next micro-batch
computes.

The sum is multiplied by the task's ``scale`` at its end. DistributedDataParallel multiplies each
gradient before the sum; for powers of two both are exact unless a number is subnormal. Gradients of
16 bits are scaled first, since their sum may leave the range.
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
_NARROW = frozenset({torch.float16, torch.bfloat16})


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
    """One bucket on one device: its fold, its memory for the exchange."""

    def __init__(self, members: Sequence[nn.Parameter], exchange: Exchange, num_ranks: int) -> None:
        self.dtype = members[0].dtype
        self.sizes = [parameter.numel() for parameter in members]
        self.chunk = -(-sum(self.sizes) // exchange.size)
        self.fold: Fold[list[Tensor]] = Fold(num_ranks, _add)
        self.filling: list[Tensor | None] = [None] * len(members)
        self.deferred: tuple[int, list[Tensor], Any] | None = None
        self.missing = len(members)
        self.sending: Tensor | None = None
        self.received: Tensor | None = None
        self.whole: Tensor | None = None
        self.pending: Pending | None = None

    def begin(self) -> None:
        """Forget what a step left; memory for the exchange stays."""
        self.fold.take()
        self.filling = [None] * len(self.sizes)
        self.deferred = self.pending = None
        self.missing = len(self.sizes)

    def settle(self) -> None:
        """Give the fold what was still being copied from a GPU."""
        if self.deferred is not None:
            rank, gradients, copied = self.deferred
            self.deferred = None
            if copied is not None:
                copied.synchronize()
            self.fold.push(Block(rank, rank + 1), gradients)

    def flattened(self, size: int, device: torch.device) -> Tensor:
        """Return our partial sums as rows of chunks: chunk c of each goes to device c."""
        partials = [value for _, value in self.fold.partials]
        if self.sending is None:
            # Padded to whole chunks, with zeros for life.
            shape = (len(partials), size * self.chunk)
            self.sending = torch.zeros(shape, dtype=self.dtype, device=device)
        for row, partial in zip(self.sending, partials, strict=True):
            for part, gradient in zip(
                torch.split(row[: sum(self.sizes)], self.sizes), partial, strict=True
            ):
                part.view(gradient.shape).copy_(gradient)
        if len(partials) == 1:
            return self.sending.view(size, self.chunk)
        rows = self.sending.view(len(partials), size, self.chunk).transpose(0, 1)
        return rows.reshape(-1, self.chunk)


def _add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
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
        """Before the last local rank's backward: exchange each bucket as soon as it is full."""
        if not self._hooks:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._hook_of(i))  # type: ignore[no-untyped-call]
                for i, p in enumerate(self._parameters)
            ]
        self._armed = rank

    def push(self, rank: int, gradients: Sequence[Tensor]) -> None:
        """Add one rank's gradients, which are ours from now on.

        After ``arm``, those that backward has not delivered.
        """
        armed, self._armed = self._armed == rank, None
        if not armed:
            self._arrived.clear()
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
            for index, total in zip(members, self._total(bucket), strict=True):
                parameter = self._parameters[index]
                totals[index] = total.view(parameter.shape).to(parameter.device)
        return tuple(totals[i] for i in range(len(self._parameters)))

    def launch_rest(self) -> None:
        """Start the exchange of the buckets that no backward started."""
        while self._next < len(self._buckets):
            self._launch(self._buckets[self._next])
            self._next += 1

    def is_finite(self) -> bool:
        """Whether this device's own partial sums of the step are finite."""
        return all(
            bool(torch.isfinite(gradient).all())
            for bucket in self._buckets
            for _, value in bucket.fold.partials
            for gradient in value
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
        """Take one gradient into its bucket; a full bucket goes to the fold."""
        number, position = self._place[index]
        bucket = self._buckets[number]
        bucket.filling[position] = self._brought(gradient)
        bucket.missing -= 1
        if bucket.missing:
            return
        bucket.settle()  # the rank before
        full = [value for value in bucket.filling if value is not None]
        bucket.deferred = (rank, full, self._mark(gradient.device))
        bucket.filling = [None] * len(bucket.sizes)
        bucket.missing = len(bucket.sizes)
        if exchanging or gradient.device == self._device:
            bucket.settle()
        if exchanging:
            self._full.add(number)
            self._launch_in_order()

    def _brought(self, gradient: Tensor) -> Tensor:
        """Return a gradient where partial sums wait."""
        if gradient.dtype in _NARROW and self._scale != 1.0:
            gradient = gradient * self._scale
        if gradient.device == self._device:
            return gradient
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

    def _mark(self, device: torch.device) -> Any:
        """What tells when the copies from a device that were started so far are done."""
        stream = self._streams.get(device)
        return None if stream is None else stream.record_event()

    def _launch_in_order(self) -> None:
        """Start the exchange of buckets that are full and whose turn it is."""
        while self._next in self._full:
            self._full.remove(self._next)
            self._launch(self._buckets[self._next])
            self._next += 1

    def _launch(self, bucket: _Bucket) -> None:
        bucket.settle()
        size, index = self._exchange.size, self._exchange.index
        if size == 1:
            return
        counts = [len(subtrees) for subtrees in self._subtrees]
        if len(bucket.fold.partials) != counts[index]:
            raise ExecutorError("ranks are missing on this device", value=len(bucket.fold.partials))
        rows = bucket.flattened(size, self._device)
        if bucket.received is None:
            shape = (sum(counts), bucket.chunk)
            bucket.received = torch.empty(shape, dtype=bucket.dtype, device=self._device)
        bucket.pending = self._exchange.all_to_all(
            bucket.received, rows, counts, [counts[index]] * size
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
        if bucket.whole is None:
            shape = (self._exchange.size * bucket.chunk,)
            bucket.whole = torch.empty(shape, dtype=bucket.dtype, device=self._device)
        return self._exchange.all_gather(bucket.whole, self._scaled([fold.total()])[0])

    def _total(self, bucket: _Bucket) -> Sequence[Tensor]:
        """The sums of a bucket's members."""
        if self._exchange.size == 1:
            return self._scaled(bucket.fold.total())
        assert bucket.whole is not None
        return torch.split(bucket.whole[: sum(bucket.sizes)], bucket.sizes)

    def _scaled(self, sums: list[Tensor]) -> list[Tensor]:
        if self._scale != 1.0 and sums[0].dtype not in _NARROW:
            torch._foreach_mul_(sums, self._scale)
        return sums


def _flat(subtrees: Iterable[Iterable[Block]]) -> list[Block]:
    return [block for blocks in subtrees for block in blocks]
