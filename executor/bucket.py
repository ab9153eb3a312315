"""A bucket of gradients on one device: its partial sums, and their exchange with other devices.

A bucket's partial sums are kept parameter by parameter: a gradient that is taken is added to those
before it as far as the order of reduction allows, in place. What the last local rank leaves
goes straight into the memory that is sent. Then, with p devices::

    chunk c of every partial sum of the bucket  -- all-to-all -->  device c
    device c adds them up in the job's order    -- all-gather -->  everybody

Along the tree of ``executor.tree`` a device sends one chunk per whole subtree of its block: for
aligned blocks one, and then the bytes are those of a ring all-reduce, 2 (p - 1) / p of the
gradient; in the worst case 2 log2 n times that of the first half. Two devices with one partial sum
each send them to each other whole, and each adds up all of it: the same bytes, one exchange instead
of two.

Memory for the exchange is kept: what is sent and what is received, and for more than two devices
the sums.

Whoever adds up a number for the last time looks whether it is finite (``executor.finite``). Of a
chunk that is not, the first number is sent as NaN, so that the others need to look at one number of
each chunk; if there is one, the true ones are sent after it, for the error to name what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from executor.errors import ExecutorError
from executor.exchange import Exchange, Pending
from executor.finite import Look

_CACHED = 256 << 10  # numbers that a core's cache holds while they are added, scaled, looked at
NARROW = frozenset({torch.float16, torch.bfloat16})  # scaled before they are summed

Summed = Callable[[Sequence[Tensor], int], Tensor]
"""Adds up all devices' partial sums, in rank order, of the bucket's numbers from an index on."""


class Bucket:
    """The gradients of ``members``; ``counts``: how many partial sums every device has of them.

    A step is ``begin``, ``take`` until every rank's are there, ``launch``, ``fold``, ``total``.
    """

    def __init__(
        self,
        members: Sequence[nn.Parameter],
        exchange: Exchange,
        counts: Sequence[int],
        summed: Summed,
        *,
        scale: float,
        device: torch.device,
    ) -> None:
        self._exchange = exchange
        self._summed = summed
        self._dtype = members[0].dtype
        self._scale = 1.0 if self._dtype in NARROW else scale
        self._device = device
        self._shapes = [parameter.shape for parameter in members]
        self._sizes = [parameter.numel() for parameter in members]
        self._begins = [0, *accumulate(self._sizes)][:-1]
        self._counts = list(counts)
        self._whole_swap = self._counts == [1, 1]
        self._chunk = -(-sum(self._sizes) // exchange.size)
        self._look = Look(self._chunk * (exchange.size if self._whole_swap else 1), device)
        self._chunked = exchange.size > 1 and not self._whole_swap
        self._chunks_finite = False
        self._true = 0.0  # our chunk's first number, which NaN may stand for
        self._held: list[list[Tensor]] = [[] for _ in members]
        self._missing = len(members)
        self._later: list[tuple[list[int], list[Tensor], int, bool]] = []
        self._copied: Any = None
        self._placed: set[int] = set()
        self._slots: list[list[Tensor]] = []  # by partial sum and member, views of what is sent
        self._sending: Tensor | None = None
        self._received: Tensor | None = None
        self._sums: Tensor | None = None
        self._totals: list[Tensor] = []  # views of it
        self._pending: Pending | None = None

    def begin(self) -> None:
        """Forget what a step left; memory for the exchange stays."""
        self._held = [[] for _ in self._sizes]
        self._missing = len(self._sizes)
        self._later.clear()
        self._copied = self._pending = None
        self._placed.clear()
        self._chunks_finite = False
        self._look.begin()

    def take(
        self,
        positions: Sequence[int],
        gradients: Sequence[Tensor],
        carries: int,
        *,
        last: bool,
        sending: bool = False,
    ) -> bool:
        """Take gradients of a rank, to be added to ``carries`` partial sums before.

        ``last``: it is the last local rank; ``sending``: and what comes out goes where it is sent
        from. Returns whether the rank's are all here.
        """
        if sending:
            for position, gradient in zip(positions, gradients, strict=True):
                self.place(position, gradient, carries)
        else:
            self._settle()
            self._add(positions, gradients, carries, last=last)
        return self.count(len(positions))

    def take_later(
        self, positions: list[int], copies: list[Tensor], carries: int, *, last: bool, copied: Any
    ) -> bool:
        """As ``take``, for gradients that are there when ``copied``, an event, has come."""
        if self._missing == len(self._sizes):
            self._settle()  # the rank before
        self._later.append((positions, copies, carries, last))
        self._copied = copied
        return self.count(len(positions))

    def place(self, position: int, gradient: Tensor, carries: int) -> Tensor:
        """Take a gradient of the last local rank, and return what comes out where it is sent from.

        The last addition puts it there, or a copy. ``count`` is to be called as well.
        """
        self._settle()
        self._allocate()
        slot, held = self._slots[-1][position], self._held[position]
        if not carries:
            slot.copy_(gradient)
        else:
            for _ in range(carries - 1):
                gradient = held.pop().add_(gradient)
            torch.add(held.pop(), gradient, out=slot)
        held.append(slot)
        self._placed.add(position)
        return slot

    def count(self, number: int) -> bool:
        """Note that so many of a rank's gradients have come; return whether all are here."""
        self._missing -= number
        if self._missing:
            return False
        self._missing = len(self._sizes)
        return True

    def newest(self, position: int) -> Tensor:
        """Return the partial sum that a member's last gradient went into."""
        return self._held[position][-1]

    def launch(self) -> None:
        """Start to exchange our partial sums; every rank's gradients are here."""
        self._settle()
        size, index = self._exchange.size, self._exchange.index
        if size == 1:
            return
        if {len(held) for held in self._held} != {self._counts[index]}:
            raise ExecutorError("ranks are missing on this device", value=len(self._held[0]))
        rows = self._flattened()
        if self._whole_swap:
            if self._received is None:
                self._received = torch.empty_like(rows)
            theirs = [int(device != index) for device in range(size)]
            self._pending = self._exchange.all_to_all(self._received, rows, theirs, theirs)
            return
        if self._received is None:
            shape = (sum(self._counts), self._chunk)
            self._received = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._pending = self._exchange.all_to_all(
            self._received, rows, self._counts, [self._counts[index]] * size
        )

    def fold(self) -> None:
        """Wait for what the others sent, and add it up in the job's order."""
        if self._exchange.size == 1:
            return
        assert self._pending is not None
        assert self._received is not None
        assert self._sending is not None
        self._pending.wait()
        if self._whole_swap:
            self._sums = self._received
            ours = torch.split(self._sending[0], self._piece(2))
            sums_of_both = torch.split(self._sums[0], self._piece(2))
            for total, part in zip(sums_of_both, ours, strict=True):
                total.add_(part)
                if self._scale != 1.0:
                    total.mul_(self._scale)
                self._look.at(total)
            self._pending = Pending(None)
            return
        size, index = self._exchange.size, self._exchange.index
        if self._sums is None:
            shape = (size, self._chunk)
            self._sums = torch.empty(shape, dtype=self._dtype, device=self._device)
        # What was received is added up where it lies, and for gloo there is a copy for each device:
        # its own all-gather goes round a ring in size - 1 steps, one after the other.
        sums = self._received[:size]
        piece = self._piece(len(self._received))
        for begin in range(0, self._chunk, piece):
            here = slice(begin, begin + piece)
            parts = [part[here] for part in self._received]
            total = self._summed(parts, index * self._chunk + begin)
            torch.mul(total, self._scale, out=parts[0])
            self._look.at(parts[0])
            if self._device.type == "cpu":
                sums[1:, here] = parts[0]
        if self._device.type == "cpu":
            self._mark(sums)
            rows = [1] * size
            self._pending = self._exchange.all_to_all(self._sums, sums, rows, rows)
        else:
            self._pending = self._exchange.all_gather(self._sums, sums[0])

    def total(self) -> Sequence[Tensor]:
        """Wait for the sums over all ranks, and return them by member; valid until ``begin``."""
        if self._exchange.size == 1:
            if {len(held) for held in self._held} != set(self._counts):
                raise ExecutorError("ranks are missing", value=len(self._held[0]))
            return [
                held[0] if len(held) == 1 else self._of_all(held, begin)
                for held, begin in zip(self._held, self._begins, strict=True)
            ]
        assert self._pending is not None
        assert self._sums is not None
        self._pending.wait()
        if self._chunked:
            self._unmark(self._sums)
        if not self._totals:
            self._totals = self._members_of(self._sums.view(-1))
        return self._totals

    @property
    def finite(self) -> bool:
        """Whether the sums over all ranks have been seen to be finite; after ``total``."""
        return self._chunks_finite if self._chunked else self._look.finite

    def _piece(self, rows: int) -> int:
        """How many numbers of each of so many rows to work on at a time; a GPU does all at once."""
        most = _CACHED // rows if self._device.type == "cpu" else self._chunk * self._exchange.size
        return max(most, 1)

    def _mark(self, sums: Tensor) -> None:
        """Before copies of a chunk are sent: have their first number say whether it is finite."""
        self._true = sums[0, 0].item()
        if not self._look.finite and not torch.isfinite(sums[0]).all():
            sums[:, 0] = torch.nan

    def _unmark(self, sums: Tensor) -> None:
        """Look at the first number of each chunk; put back those that only say so."""
        if self._device.type != "cpu":
            return
        self._chunks_finite = all(map(math.isfinite, sums[:, 0].tolist()))
        if not self._chunks_finite:
            firsts = torch.empty(len(sums), dtype=sums.dtype)
            own = torch.full((1,), self._true, dtype=sums.dtype)
            self._exchange.all_gather(firsts, own).wait()
            sums[:, 0] = firsts

    def _of_all(self, held: Sequence[Tensor], begin: int) -> Tensor:
        """Add up the partial sums of a member that begins at this number of the bucket."""
        flat = [part.reshape(-1) for part in held]
        return self._summed(flat, begin).view(held[0].shape)

    def own_finite(self) -> bool:
        """Whether our own partial sums are finite."""
        return all(bool(torch.isfinite(part).all()) for held in self._held for part in held)

    def _settle(self) -> None:
        """Take what was still being copied."""
        if self._later:
            if self._copied is not None:
                self._copied.synchronize()
            for positions, copies, carries, last in self._later:
                self._add(positions, copies, carries, last=last)
            self._later.clear()

    def _add(
        self, positions: Sequence[int], gradients: Sequence[Tensor], carries: int, *, last: bool
    ) -> None:
        for _ in range(carries):
            left = [self._held[p].pop() for p in positions]
            torch._foreach_add_(left, list(gradients))
            gradients = left
        if last and self._exchange.size == 1:  # they are sums over all ranks
            if self._scale != 1.0:
                torch._foreach_mul_(list(gradients), self._scale)
            for gradient in gradients:
                self._look.at(gradient)
        for position, gradient in zip(positions, gradients, strict=True):
            self._held[position].append(gradient)

    def _allocate(self) -> Tensor:
        """Return memory for our partial sums: whole chunks, padded with zeros for life."""
        if self._sending is None:
            shape = (self._counts[self._exchange.index], self._exchange.size * self._chunk)
            self._sending = torch.zeros(shape, dtype=self._dtype, device=self._device)
            self._slots = [self._members_of(row) for row in self._sending]
        return self._sending

    def _members_of(self, row: Tensor) -> list[Tensor]:
        parts = torch.split(row[: sum(self._sizes)], self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _flattened(self) -> Tensor:
        """Return our partial sums as they are sent; as chunks, chunk c of each to device c."""
        sending, size = self._allocate(), self._exchange.size
        for position, held in enumerate(self._held):
            for number, slots in enumerate(self._slots):
                if number < len(held) - 1 or position not in self._placed:
                    slots[position].copy_(held[number])
                    held[number] = slots[position]
        if self._whole_swap:
            return sending
        if len(sending) == 1:
            return sending.view(size, self._chunk)
        rows = sending.view(len(sending), size, self._chunk).transpose(0, 1)
        return rows.reshape(-1, self._chunk)
