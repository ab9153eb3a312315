"""Which samples a logical worker sees at a step: a pure function, with nothing to save or replay.

An epoch is one pass over ``num_samples`` indices in an order of its own. The order is a keyed
permutation, computed and never stored: a Feistel network over an a x b grid that just holds the
indices, walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002, sections 4 and 5), with Philox as round function. So step 10 million costs what step
0 costs, and no process ever holds an epoch.

The stream is one sequence of global batches. Rank r of n takes the r-th of n contiguous blocks of
a batch, so the same batches arrive whatever n is, in the same order when blocks are put together.

Leaves out: sharding by storage locality; the samples of a batch may lie anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data.philox import Stream, check_seed, words
from models.errors import ModelError

_FEISTEL_ROUNDS = 8  # four make a good pseudorandom permutation (Luby and Rackoff); twice that
_LARGEST = 2**60


def permute(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return where a keyed permutation of 0..size-1 sends ``positions``, (n,) int64.

    The permutation depends on (size, seed, epoch) only. Raises :class:`ModelError` for positions
    outside 0..size-1.
    """
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise ModelError("a position lies outside the epoch", expected=f"0 to {size - 1}")
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)  # rows x columns is at most one row larger than size
    value = _feistel(positions, rows, columns, seed, epoch)
    # Cycle walking: each orbit that starts inside comes back inside, so this ends, and quickly,
    # for less than one in sqrt(size) of the grid lies outside.
    while (outside := np.flatnonzero(value >= size)).size:
        value[outside] = _feistel(value[outside], rows, columns, seed, epoch)
    return value


def _feistel(
    value: NDArray[np.int64], rows: int, columns: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Permute 0..rows*columns-1: each half in turn is shifted by a hash of the other."""
    left, right = value // columns, value % columns
    for number in range(0, _FEISTEL_ROUNDS, 2):
        left = (left + _shift(right, epoch, number, seed, rows)) % rows
        right = (right + _shift(left, epoch, number + 1, seed, columns)) % columns
    return left * columns + right


def _shift(
    half: NDArray[np.int64], epoch: int, number: int, seed: int, bound: int
) -> NDArray[np.int64]:
    """Hash one half (below 2^31) to 0..bound-1 by (seed, epoch, round)."""
    # The counter's 64-bit index carries the half and the epoch's low word, its position the round.
    index = (np.uint64(epoch & 0xFFFFFFFF) << np.uint64(32)) | half.astype(np.uint64)
    high, low, _, _ = words(seed, Stream.PERMUTATION, index, number | (epoch >> 32) << 8)
    return (((high << np.uint64(32)) | low) % np.uint64(bound)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Global batches over ``num_samples`` indices, the same for any number of processes.

    ``order``: ``shuffled`` (another permutation each epoch) or ``sequential`` (for evaluation, and
    for streams whose ids age). ``last``: what becomes of the samples that fill no batch: ``drop``
    leaves them out of the epoch (``left_out`` says how many; another set each epoch when shuffled),
    ``short`` gives them as a smaller last batch, in which some ranks may get nothing.
    Raises :class:`ModelError` for sizes that give no batch.
    """

    num_samples: int
    global_batch: int
    seed: int = 0
    order: Literal["shuffled", "sequential"] = "shuffled"
    last: Literal["drop", "short"] = "drop"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.order not in ("shuffled", "sequential"):
            raise ModelError(
                "unknown order", where="order", value=self.order, expected="shuffled or sequential"
            )
        if self.last not in ("drop", "short"):
            raise ModelError(
                "unknown rule", where="last", value=self.last, expected="drop or short"
            )
        if not 1 <= self.num_samples <= _LARGEST:
            raise ModelError(
                "cannot sample from that many",
                where="num_samples",
                value=self.num_samples,
                expected="1 to 2^60",
            )
        if self.global_batch < 1 or (self.last == "drop" and self.global_batch > self.num_samples):
            raise ModelError(
                "no whole batch fits an epoch",
                where="global_batch",
                value=self.global_batch,
                expected=f"1 to {self.num_samples}, or last='short'",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        if self.last == "short":
            return -(-self.num_samples // self.global_batch)
        return self.num_samples // self.global_batch

    @property
    def left_out(self) -> int:
        """Samples of each epoch that no batch holds."""
        return 0 if self.last == "short" else self.num_samples % self.global_batch

    def locate(self, global_step: int) -> tuple[int, int]:
        """Return (epoch, step in it) of a step counted from the start of training."""
        if global_step < 0:
            raise ModelError("no such step", value=global_step, expected="0 or more")
        return divmod(global_step, self.steps_per_epoch)

    def at(self, global_step: int, rank: int = 0, num_ranks: int = 1) -> NDArray[np.int64]:
        """Return the sample indices of one rank at a step counted from the start of training."""
        epoch, step = self.locate(global_step)
        return self.indices(epoch, step, rank, num_ranks)

    def indices(
        self, epoch: int, step: int, rank: int = 0, num_ranks: int = 1
    ) -> NDArray[np.int64]:
        """Return the sample indices of one logical rank, (its share of the batch,) int64.

        Raises :class:`ModelError` for an epoch, step or rank that does not exist.
        """
        if not 0 <= epoch < 2**48:
            raise ModelError("no such epoch", value=epoch, expected="0 to 2^48-1")
        if not 0 <= step < self.steps_per_epoch:
            raise ModelError(
                "no such step", value=step, expected=f"0 to {self.steps_per_epoch - 1}"
            )
        if not 0 <= rank < num_ranks:
            raise ModelError("no such rank", value=rank, expected=f"0 to {num_ranks - 1}")
        first = step * self.global_batch
        size = min(self.global_batch, self.num_samples - first)
        positions = np.arange(
            first + size * rank // num_ranks,
            first + size * (rank + 1) // num_ranks,
            dtype=np.int64,
        )
        if self.order == "sequential":
            return positions
        return permute(positions, self.num_samples, self.seed, epoch)
