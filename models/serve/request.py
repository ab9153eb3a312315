"""What may be asked of a service, checked against the version that is to answer.

A request comes with columns as they were sent (lists, arrays) and leaves as tensors. Ids are 0 to
2^63 - 1: tables would take negative ones, but from a client these are signs of a missing value or
of an overflow. Events are in chronological order, oldest first, at absolute times; the age of an
event is the request's time minus its own, so no age depends on a candidate, and a history that was
encoded for one request time is not mistaken for that of another. Nothing is repaired: the first
fault is named, with its place and with what would be right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import LongerConfig
from models.errors import ModelError
from models.longer.kvcache import Events
from models.longer.scoring import Candidates

LARGEST_ID = 2**63 - 1
_AN_ID = "a whole number from 0 to 2^63 - 1"
Column = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Events of a user, oldest first, as sent: columns of one length; ``time_s`` in seconds."""

    item: Column
    category: Column
    action: Column
    time_s: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateColumns:
    """Candidates as sent: ``item``, ``category`` (Q,), ``cross`` (Q, num_cross), ids."""

    item: Column
    category: Column
    cross: Column = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """A user at the time of a request, in seconds of the clock of the events, and a version.

    ``version`` None: the one that serves.
    """

    user: int
    request_time_s: float
    version: int | None = None


class Digest:
    """A digest of events that can go on: equal for equal events at equal ages, and for no others.

    BLAKE2b over item, category, action and the bits of the age, event by event.
    """

    def __init__(self, events: Events | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        if events is not None:
            self._add(events)

    def _add(self, events: Events) -> None:
        ages = events.age_s.numpy().view(np.int64)
        columns = [events.item.numpy(), events.category.numpy(), events.action.numpy(), ages]
        self._hash.update(np.stack(columns, axis=1).tobytes())

    def followed_by(self, later: Events) -> Digest:
        """Return the digest of these events and then the later ones."""
        whole = Digest()
        whole._hash = self._hash.copy()
        whole._add(later)
        return whole

    @property
    def value(self) -> bytes:
        """The digest."""
        return self._hash.digest()


def check_whose(whose: Whose) -> None:
    """Raise ModelError unless the user has an id and the request a time."""
    if not _is_id(whose.user):
        raise ModelError("is no id", where="user", value=whose.user, expected=_AN_ID)
    if not np.isfinite(whose.request_time_s):
        raise ModelError(
            "is no time", where="request_time_s", value=whose.request_time_s, expected="seconds"
        )


def events_of(
    history: History, request_time_s: float, config: LongerConfig, *, cold_start: bool = False
) -> Events:
    """Return the events of a history with their ages, on the CPU. Raises ModelError.

    ``cold_start``: the history may be empty.
    """
    events, time_s = _columns(history, config)
    if len(events) == 0 and not cold_start:
        raise ModelError(
            "is empty",
            where="history",
            expected='at least one event, or "cold_start": true for a user who has none',
        )
    if len(events) > config.max_length:
        raise ModelError(
            "is longer than the network's histories",
            where="history",
            value=f"{len(events)} events",
            expected=f"the newest {config.max_length}",
        )
    late = time_s > request_time_s
    expected = f"{request_time_s} (request_time_s) or before"
    _refuse("history.time_s", "is after the request", time_s, late, expected)
    return _with_ages(events, request_time_s - time_s)


def later_events_of(history: History, request_time_s: float, config: LongerConfig) -> Events:
    """Return events to append to a history encoded for ``request_time_s``. Raises ModelError.

    Events after that time have age 0, as ``models.longer.kvcache.append`` says.
    """
    events, time_s = _columns(history, config)
    if len(events) == 0:
        raise ModelError("is empty", where="history", expected="at least one event to append")
    return _with_ages(events, np.maximum(request_time_s - time_s, 0.0))


def candidates_of(candidates: CandidateColumns, config: LongerConfig, *, most: int) -> Candidates:
    """Return candidates as tensors on the CPU. Raises ModelError if there are none, or too many."""
    item = _ids("candidates.item", candidates.item)
    category = _ids("candidates.category", candidates.category)
    if len(item) == 0:
        raise ModelError("are none", where="candidates", expected="at least one")
    if len(item) > most:
        raise ModelError(
            "are too many", where="candidates", value=len(item), expected=f"{most} at most"
        )
    _same_length("candidates.category", len(category), len(item))
    return Candidates(
        item=torch.from_numpy(item),
        category=torch.from_numpy(category),
        cross=_cross(candidates.cross, len(item), config.num_cross),
    )


def _cross(rows: Column, count: int, num_cross: int) -> Tensor:
    """Return cross features (count, num_cross)."""
    where = "candidates.cross"
    if num_cross == 0 and len(rows) == 0:
        return torch.zeros((count, 0), dtype=torch.int64)
    _same_length(where, len(rows), count)
    for number, row in enumerate(rows):
        if np.ndim(row) != 1 or len(row) != num_cross:
            raise ModelError(
                "has another number of cross features",
                where=f"{where}[{number}]",
                value=len(row) if np.ndim(row) else row,
                expected=f"{num_cross} ids",
            )
    try:
        flat = _ids(where, [one for row in rows for one in row])
    except ModelError as error:
        place = int(str(error.where).rpartition("[")[2].rstrip("]"))
        raise ModelError(
            error.problem,
            where=f"{where}[{place // num_cross}][{place % num_cross}]",
            value=error.value,
            expected=error.expected,
        ) from None
    return torch.from_numpy(flat.reshape(count, num_cross))


def _columns(history: History, config: LongerConfig) -> tuple[Events, NDArray[np.float64]]:
    """Return events without ages yet, and their times."""
    item = _ids("history.item", history.item)
    category = _ids("history.category", history.category)
    action = _ids("history.action", history.action)
    time_s = _times("history.time_s", history.time_s)
    for name, column in (("category", category), ("action", action), ("time_s", time_s)):
        _same_length(f"history.{name}", len(column), len(item))
    unknown = action >= config.num_actions
    expected = f"0 to {config.num_actions - 1}"
    _refuse("history.action", "is no action that is known", action, unknown, expected)
    falls = np.zeros(len(time_s), dtype=np.bool_)
    falls[1:] = time_s[1:] < time_s[:-1]
    _refuse("history.time_s", "is before the event before it", time_s, falls, "oldest event first")
    events = Events(
        item=torch.from_numpy(item),
        category=torch.from_numpy(category),
        action=torch.from_numpy(action),
        age_s=torch.zeros(len(item), dtype=torch.float64),
    )
    return events, time_s


def _with_ages(events: Events, age_s: NDArray[np.float64]) -> Events:
    return Events(
        item=events.item,
        category=events.category,
        action=events.action,
        age_s=torch.from_numpy(np.ascontiguousarray(age_s)),
    )


def _ids(where: str, values: Column) -> NDArray[np.int64]:
    """Return a column of ids; name the first that is none."""
    column = np.asarray(values)
    if column.size == 0:
        return np.zeros(0, dtype=np.int64)
    if column.ndim == 1 and column.dtype.kind in "iu":
        wrong = (column < 0) | (column > LARGEST_ID)
        _refuse(where, "is no id", column, wrong, _AN_ID)
        return column.astype(np.int64)
    for number, value in enumerate(values):
        if not _is_id(value):
            raise ModelError("is no id", where=f"{where}[{number}]", value=value, expected=_AN_ID)
    raise ModelError("is no column of ids", where=where, expected="a list of whole numbers")


def _is_id(value: object) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 <= int(value) <= LARGEST_ID  # type: ignore[call-overload]


def _times(where: str, values: Column) -> NDArray[np.float64]:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError("is no column of times", where=where, expected="seconds") from error
    if column.ndim != 1:
        raise ModelError("is no column of times", where=where, expected="a list of seconds")
    _refuse(where, "is no time", column, ~np.isfinite(column), "a finite number of seconds")
    return column


def _same_length(where: str, found: int, expected: int) -> None:
    if found != expected:
        raise ModelError(
            "has another length", where=where, value=found, expected=f"{expected}, as item has"
        )


def _refuse(
    where: str, problem: str, column: NDArray[Any], wrong: NDArray[np.bool_], expected: str
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ModelError(
            problem, where=f"{where}[{row}]", value=column[row].item(), expected=expected
        )
