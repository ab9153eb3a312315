"""From columns of numbers to a :class:`models.batch.Batch`: jagged ranges and cross features.

Cross features are raw ids like any other: one is (user, candidate's category), the next is (newest
event's category, candidate's category), hashed to 63 bits. They depend on the candidate, so no row
that holds one can be cached for another candidate. More crosses are not defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Batch
from models.errors import ModelError

Ints = NDArray[np.int64]
MOST_CROSSES = 2
_NO_EVENT = 0x5EED0FAB5E47  # stands for the category of the newest event where there is none


class Samples(Protocol):
    """Anything that numbers its samples and makes any of them on request."""

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return the samples ``indices``, each with its newest ``visible`` events (None: all)."""
        ...


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return ``starts[i] .. starts[i] + lengths[i] - 1`` for all i, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    flat: Ints = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return flat


def offsets_of(lengths: Ints) -> Ints:
    """Return where each of the pieces begins, and the total at the end: (n+1,)."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def check_crosses(num_cross: int) -> None:
    """Raise :class:`ModelError` unless so many cross features are defined."""
    if not 0 <= num_cross <= MOST_CROSSES:
        raise ModelError(
            "so many cross features are not defined",
            where="num_cross",
            value=num_cross,
            expected=f"0 to {MOST_CROSSES}",
        )


def mixed(first: NDArray[np.int64], second: NDArray[np.int64], salt: int) -> Ints:
    """Hash pairs of ids to 0..2^63-1, with the finaliser of SplitMix64 (Steele et al. 2014)."""
    value = first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    for part in (second.astype(np.uint64), np.uint64(0)):
        value = value ^ part
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return (value >> np.uint64(1)).astype(np.int64)


def collate(
    *,
    lengths: Ints,
    item: Ints,
    category: Ints,
    action: NDArray[np.integer],
    age_s: NDArray[np.floating],
    candidate_item: Ints,
    candidate_category: Ints,
    user: Ints,
    label: NDArray[np.floating],
    num_cross: int,
) -> Batch:
    """Return a batch; events (T,) lie sample after sample, oldest first, ``lengths`` (B,).

    Adds the cross features. The columns are copied where their type is not the batch's.
    """
    offsets = offsets_of(lengths)
    newest = np.full(len(lengths), _NO_EVENT, dtype=np.int64)
    some = lengths > 0
    newest[some] = category[offsets[1:][some] - 1]
    cross = [mixed(user, candidate_category, 1), mixed(newest, candidate_category, 2)][:num_cross]
    return Batch(
        offsets=torch.from_numpy(offsets),
        item=_tensor(item, np.int64),
        category=_tensor(category, np.int64),
        action=_tensor(action, np.int64),
        age_s=_tensor(age_s, np.float64),
        candidate_item=_tensor(candidate_item, np.int64),
        candidate_category=_tensor(candidate_category, np.int64),
        user=_tensor(user, np.int64),
        cross=torch.from_numpy(
            np.stack(cross, axis=1) if cross else np.zeros((len(lengths), 0), dtype=np.int64)
        ),
        label=_tensor(label, np.float32),
    )


def _tensor(column: NDArray[np.generic], kind: type[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(column, dtype=kind))


def checked_indices(indices: Sequence[int] | Ints, size: int) -> Ints:
    """Return sample indices as (B,) int64; raise :class:`ModelError` outside 0..size-1."""
    array = np.asarray(indices)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ModelError("sample indices are one list of integers", where="indices")
    if array.size and not (int(array.min()) >= 0 and int(array.max()) < size):
        bad = array[(array < 0) | (array >= size)][0]
        raise ModelError(
            "no such sample", where="indices", value=int(bad), expected=f"0 to {size - 1}"
        )
    return array.astype(np.int64)
