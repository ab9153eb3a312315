"""A log of events in memory: for each user, what they did, oldest first, in jagged arrays.

Every loader ends here. What a loader leaves out it counts (:class:`Cleaning`); what it keeps is
sorted by (user, time, item, category, action), so the order of a file's rows changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.collate import offsets_of
from models.errors import ModelError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """What became of a source's rows: how many were read, and which were left out and why.

    ``notes`` count what was kept although something about it is unusual.
    """

    rows: int
    left_out: tuple[tuple[str, int], ...] = ()
    notes: tuple[tuple[str, int], ...] = ()

    @property
    def kept(self) -> int:
        """Rows that became events or samples."""
        return self.rows - sum(count for _, count in self.left_out)

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {self.kept} kept"]
        lines += [f"left out, {reason}: {count}" for reason, count in self.left_out if count]
        lines += [f"kept, {reason}: {count}" for reason, count in self.notes if count]
        return "; ".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStore:
    """``U`` users with ``T`` events; user u has the events ``offsets[u]:offsets[u + 1]``.

    ``users`` (U,) raw ids, ascending. Events, oldest first: ``item``, ``category`` (T,) int64 raw
    ids, ``action`` (T,) int8, an index into ``actions``, ``time_s`` (T,) float64 Unix seconds,
    ``label`` (T,) float32: 0 or 1 by the loader's rule.
    """

    source: str
    actions: tuple[str, ...]
    users: Ints
    offsets: Ints
    item: Ints
    category: Ints
    action: NDArray[np.int8]
    time_s: NDArray[np.float64]
    label: NDArray[np.float32]
    cleaning: Cleaning

    def __len__(self) -> int:
        return len(self.item)

    @property
    def lengths(self) -> Ints:
        """Events per user, (U,)."""
        return np.diff(self.offsets)


def build_store(
    *,
    source: str,
    actions: tuple[str, ...],
    user: Ints,
    item: Ints,
    category: Ints,
    action: NDArray[np.integer],
    time_s: NDArray[np.float64],
    label: NDArray[np.bool_],
    window_s: tuple[float, float] | None,
    notes: tuple[tuple[str, int], ...] = (),
) -> EventStore:
    """Return a store of the rows inside ``window_s`` (both ends included; None keeps all).

    Rows outside are counted. Rows that repeat another in user, time, item and action are kept, and
    counted too. Raises :class:`ModelError` if no row is left.
    """
    rows = len(user)
    first, last = window_s or (-np.inf, np.inf)
    inside = np.flatnonzero((time_s >= first) & (time_s <= last))
    if not len(inside):
        raise ModelError(
            "no event lies in the time window", where=source, expected=f"{first} to {last}"
        )
    keys = (action, category, item, time_s, user)
    order = inside[np.lexsort([key[inside] for key in keys])]
    user, item, category = user[order], item[order], category[order]
    action, time_s = action[order], time_s[order]
    alike = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in (user, item, action, time_s):
        alike &= column[1:] == column[:-1]
    users, counts = np.unique(user, return_counts=True)
    return EventStore(
        source=source,
        actions=actions,
        users=users,
        offsets=offsets_of(counts),
        item=item,
        category=category,
        action=action.astype(np.int8),
        time_s=time_s,
        label=label[order].astype(np.float32),
        cleaning=Cleaning(
            rows=rows,
            left_out=(("outside the time window", rows - len(order)),),
            notes=(("the same as another row", int(alike.sum())), *notes),
        ),
    )
