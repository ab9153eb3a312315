"""What a batch must be before the network touches it: each fault named, with what would be right.

Source: the contract in ``models.batch``. Item, category, user and cross ids may be any 64-bit
integers, negative ones too: their tables decide. Actions are embedded by the network itself and
must be in range. Nothing is repaired here: a wrong batch is refused whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.batch import Batch
from models.config import LongerConfig
from models.errors import ModelError


def check_batch(batch: Batch, config: LongerConfig) -> None:
    """Raise ModelError unless the batch keeps its contract."""
    size = len(batch)
    check_ids("offsets", batch.offsets, (size + 1,))
    check_events(batch.item, batch.category, batch.action, batch.age_s, config)
    check_offsets(batch.offsets, events=len(batch.item))
    check_candidates(batch.candidate_item, batch.candidate_category, batch.cross, size, config)
    check_ids("user", batch.user, (size,))
    _shape("label", batch.label, (size,))
    wrong = ~((batch.label == 0) | (batch.label == 1))
    _refuse("label", "is no label", batch.label, wrong, "0 or 1")


def check_offsets(offsets: Tensor, *, events: int) -> None:
    """Raise ModelError unless offsets rise from 0 to the number of events."""
    if int(offsets[0]) != 0:
        raise ModelError("do not start", where="offsets", value=int(offsets[0]), expected="0 first")
    falls = offsets[1:] < offsets[:-1]
    _refuse("offsets", "fall", offsets[1:], falls, "each at least the one before")
    if int(offsets[-1]) != events:
        raise ModelError(
            "do not end at the number of events",
            where="offsets",
            value=int(offsets[-1]),
            expected=f"{events} last",
        )


def check_events(
    item: Tensor, category: Tensor, action: Tensor, age_s: Tensor, config: LongerConfig
) -> None:
    """Raise ModelError unless events have ids, known actions and ages before the request."""
    events = (item.numel(),)
    check_ids("item", item, events)
    check_ids("category", category, events)
    check_ids("action", action, events)
    unknown = (action < 0) | (action >= config.num_actions)
    _refuse("action", "is unknown", action, unknown, f"0 to {config.num_actions - 1}")
    _shape("age_s", age_s, events)
    if not age_s.is_floating_point():
        raise ModelError("is no number of seconds", where="age_s", value=age_s.dtype)
    wrong = ~(torch.isfinite(age_s) & (age_s >= 0))
    _refuse("age_s", "is no time before the request", age_s, wrong, "a finite number, 0 or more")


def check_candidates(
    item: Tensor, category: Tensor, cross: Tensor, count: int, config: LongerConfig
) -> None:
    """Raise ModelError unless there are ``count`` candidates, each with its cross features."""
    check_ids("candidate_item", item, (count,))
    check_ids("candidate_category", category, (count,))
    check_ids("cross", cross, (count, config.num_cross))


def check_vectors(table: str, vectors: Tensor, shape: Sequence[int]) -> None:
    """Raise ModelError unless a lookup gave one vector of the configured width for each id."""
    if tuple(vectors.shape) != tuple(shape):
        raise ModelError(
            "the lookup gave vectors of another shape",
            where=f"table {table}",
            value=tuple(vectors.shape),
            expected=str(tuple(shape)),
        )


def check_ids(name: str, column: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless a column holds int64 numbers in this shape."""
    _shape(name, column, shape)
    if column.dtype != torch.int64:
        raise ModelError("has another type", where=name, value=column.dtype, expected="int64")


def _shape(name: str, column: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(column.shape) != shape:
        raise ModelError(
            "has another shape", where=name, value=tuple(column.shape), expected=str(shape)
        )


def _refuse(name: str, problem: str, column: Tensor, wrong: Tensor, expected: str) -> None:
    """Name the first wrong entry, if there is one."""
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ModelError(
            problem, where=f"{name}[{row}]", value=column[row].item(), expected=expected
        )
