"""Ranking samples from a log: the events before a moment, and a candidate at that moment.

A sample's history is what its user did strictly before: events of the same instant (a page is
logged at once) are not in it, so a label never leaks from its neighbour. Ages are counted from the
candidate's time, which is the request's.

Two rules. ``recorded``: every event is a candidate with the loader's label. ``next``: every event
is a positive and has ``negatives`` companions of label 0, whose items are those of other events of
the log, drawn evenly over events (so by popularity, which then tells nothing by itself) but never
the positive's item; a draw is a pure function of (seed, sample index).

Samples are numbered in order of time. Leaves out: features of the request other than its crosses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.batch import Batch
from models.data.collate import check_crosses, checked_indices, collate, ranges
from models.data.events import EventStore, Ints
from models.data.philox import Stream, check_seed, words
from models.errors import ModelError

Rule = Literal["recorded", "next"]


class EventSamples:
    """The samples of a store; see the module's text.

    ``max_history``: the newest so many events are kept of each history. ``min_history``: events
    with fewer before them are no candidates. ``since_s`` and ``until_s`` (included, not included)
    bound the candidates' times, not the histories', so a split by time is two objects on one store.
    ``left_out`` says how many events are no candidates, and why.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        max_history: int,
        min_history: int = 1,
        since_s: float = -math.inf,
        until_s: float = math.inf,
        rule: Rule = "recorded",
        negatives: int = 1,
        seed: int = 0,
        num_cross: int = 2,
    ) -> None:
        check_seed(seed)
        check_crosses(num_cross)
        if max_history < 0 or min_history < 0:
            raise ModelError(
                "a history cannot be that long",
                where="max_history, min_history",
                value=(max_history, min_history),
                expected="0 or more",
            )
        if rule not in ("recorded", "next"):
            raise ModelError("unknown rule", where="rule", value=rule, expected="recorded or next")
        if rule == "next" and negatives < 0:
            raise ModelError(
                "no such number", where="negatives", value=negatives, expected="0 or more"
            )
        self.store = store
        self.rule = rule
        self.seed = seed
        self.max_history = max_history
        self.num_cross = num_cross
        self.per_event = 1 + (negatives if rule == "next" else 0)
        self._user_of = np.repeat(np.arange(len(store.users)), store.lengths)
        self._before = _earlier(store, self._user_of)
        self.left_out, self.events = self._candidates(min_history, since_s, until_s)
        self._others = _item_blocks(store) if self.per_event > 1 else None

    def _candidates(
        self, min_history: int, since_s: float, until_s: float
    ) -> tuple[tuple[tuple[str, int], ...], Ints]:
        """Return who is no candidate and why, and the candidates in order of time."""
        time_s = self.store.time_s
        timely = (time_s >= since_s) & (time_s < until_s)
        known = self._before - self.store.offsets[self._user_of] >= min_history
        events = np.flatnonzero(timely & known)
        reasons = (
            ("outside the candidates' times", int((~timely).sum())),
            (f"fewer than {min_history} events before", int((timely & ~known).sum())),
        )
        if not len(events):
            raise ModelError(
                "no event is a candidate: " + ", ".join(f"{why}: {n}" for why, n in reasons),
                where=self.store.source,
            )
        return reasons, events[np.argsort(time_s[events], kind="stable")]

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return len(self.events) * self.per_event

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return samples, each with its newest ``visible`` events (None: ``max_history``).

        Raises :class:`ModelError` for indices outside 0..num_samples-1.
        """
        store = self.store
        index = checked_indices(indices, self.num_samples)
        if visible is not None and visible < 0:
            raise ModelError("no such view", where="visible", value=visible, expected="0 or more")
        most = self.max_history if visible is None else min(visible, self.max_history)
        event = self.events[index // self.per_event]
        shown, label = self._shown(index, event)
        user = self._user_of[event]
        lengths = np.minimum(self._before[event] - store.offsets[user], most)
        history = ranges(self._before[event] - lengths, lengths)
        return collate(
            lengths=lengths,
            item=store.item[history],
            category=store.category[history],
            action=store.action[history],
            age_s=np.repeat(store.time_s[event], lengths) - store.time_s[history],
            candidate_item=store.item[shown],
            candidate_category=store.category[shown],
            user=store.users[user],
            label=label,
            num_cross=self.num_cross,
        )

    def _shown(self, index: Ints, event: Ints) -> tuple[Ints, NDArray[np.float32]]:
        """Return the events whose item is shown, and the labels."""
        if self.rule == "recorded":
            return event, self.store.label[event]
        if self._others is None:
            return event, np.ones(len(index), dtype=np.float32)
        by_item, block = self._others
        first, count = block[:, event]
        high, low, _, _ = words(self.seed, Stream.NEGATIVE, index)
        # A place among the events of all other items: those of the positive's own are skipped.
        drawn = ((high << np.uint64(32)) | low) % (len(self.store) - count).astype(np.uint64)
        place = drawn.astype(np.int64)
        place += np.where(place >= first, count, 0)
        positive = index % self.per_event == 0
        return np.where(positive, event, by_item[place]), positive.astype(np.float32)


def _earlier(store: EventStore, user_of: Ints) -> Ints:
    """Return for each event the end of its user's strictly earlier events, (T,)."""
    place = np.arange(len(store))
    fresh = np.ones(len(store), dtype=bool)
    fresh[1:] = (user_of[1:] != user_of[:-1]) | (store.time_s[1:] != store.time_s[:-1])
    return np.maximum.accumulate(np.where(fresh, place, 0))


def _item_blocks(store: EventStore) -> tuple[Ints, Ints]:
    """Return the events by item, and (2, T): where each event's item begins there, and its size."""
    by_item = np.argsort(store.item, kind="stable")
    _, which, counts = np.unique(store.item, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ModelError("a log of one item has no negatives", where=store.source)
    first = np.cumsum(counts) - counts
    return by_item, np.stack([first[which], counts[which]])
