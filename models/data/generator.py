"""Samples whose answer lies at a known depth of a long history, with the best possible AUC known.

A history has events of age a = 1 (newest) to L. Each event has a category, uniform over C, an item
of it (Zipf), and an action, 0 or 1: the sign s = -1 or +1, a fair coin. A candidate has a category,
uniform too. With weights b(a) = 0 for a <= ``silent``, else a^(-decay/2),

    T = tau * sum over {a : c_a = c} of b(a) s_a / sqrt(sum of b^2 / C) + e,   e ~ N(0, 1),

and the label is T > threshold. The divisor makes the signal's variance tau^2, whatever C and L.
Signs are independent of everything else visible, so who sees only the newest ``silent`` events has
an AUC of exactly one half; :mod:`models.data.bayes` has the best AUC for any visible length.
Weights are rounded to a lattice, so that T's signal is an integer times a step, exactly.

Options. ``pairs``: ages 2j-1 and 2j share a category and their sign is the product of both (an XOR
of the actions), with the weight of age 2j, so no action alone tells anything. ``min_length``:
lengths n with mass proportional to (n + 1)^-(1 + length_tail), from there to L; the divisor stays
that of L, so short histories carry less signal. ``distraction``: each history has one recent
interest; with this probability an event of age <= ``silent`` has its category, and so has a
candidate: look-alikes of evidence that carry none. ``item_noise``: with this probability an event's
item is of any category (the category column stays true). ``churn_every``: every item is replaced
by a new id after that many samples, its turn spread over the catalogue. ``candidates_per_user``: so
many consecutive samples share one history.

Every sample is a pure function of (seed, index); nothing is drawn in order. Users are ids without
meaning. Leaves out: drift of tastes, and time: events are ``gap_s`` apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from models.batch import Batch
from models.data.bayes import Lattice, Law
from models.data.collate import check_crosses, checked_indices, collate, offsets_of, ranges
from models.data.philox import Stream, below, check_seed, unit, words
from models.errors import ModelError

Ints = NDArray[np.int64]
_ID_BITS = 20  # of category and of rank in an item's id
_NOISE_BLOCK = 1 << 31  # positions of an event's second block of random words


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """What to generate; the module's text says what each option does.

    ``length`` is L, in events. ``tau`` is the signal's deviation in units of the noise
    (:func:`models.data.bayes.tau_for_auc`). ``base_rate`` is the share of positive labels.
    Raises :class:`ModelError` for values that make no generator.
    """

    length: int = 64
    categories: int = 8
    items_per_category: int = 64
    zipf: float = 1.0
    silent: int = 0
    decay: float = 0.5
    tau: float = 1.5
    base_rate: float = 0.5
    pairs: bool = False
    min_length: int | None = None
    length_tail: float = 1.0
    distraction: float = 0.0
    item_noise: float = 0.0
    churn_every: int = 0
    candidates_per_user: int = 1
    num_users: int = 1000
    num_cross: int = 2
    gap_s: float = 60.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("length", 1, 2**20),
            ("categories", 1, 2**_ID_BITS - 1),
            ("items_per_category", 1, 2**_ID_BITS - 1),
            ("zipf", 0, 100),
            ("decay", 0, 100),
            ("distraction", 0, 1),
            ("item_noise", 0, 1),
            ("churn_every", 0, 2**40),
            ("candidates_per_user", 1, 2**20),
            ("num_users", 1, 2**31),
            ("tau", 0.01, 100),
            ("base_rate", 1e-3, 1 - 1e-3),
            ("length_tail", 0, 100),
            ("gap_s", 1e-9, 1e12),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ModelError(
                    "outside its range", where=name, value=value, expected=f"{low} to {high}"
                )
        if self.min_length is not None and not 0 <= self.min_length <= self.length:
            raise ModelError(
                "outside its range",
                where="min_length",
                value=self.min_length,
                expected=f"0 to {self.length}",
            )
        if self.silent < 0 or not (self.shape > 0).any():
            raise ModelError(
                "no event would carry a signal",
                where="silent",
                value=self.silent,
                expected="fewer events than the length holds (whole pairs, with pairs)",
            )
        check_crosses(self.num_cross)

    @property
    def shape(self) -> NDArray[np.float64]:
        """Weights b by age - 1, (L,), before scaling; of pairs the older event has the weight."""
        age = np.arange(1, self.length + 1)
        counts = (age > self.silent) & ((age % 2 == 0) | (not self.pairs))
        return np.where(counts, age ** (-self.decay / 2), 0.0)

    @property
    def length_mass(self) -> NDArray[np.float64]:
        """Probability of each length 0..L."""
        mass: NDArray[np.float64] = np.zeros(self.length + 1)
        if self.min_length is None:
            mass[-1] = 1.0
            return mass
        lengths = np.arange(self.min_length, self.length + 1)
        mass[self.min_length :] = (lengths + 1.0) ** -(1 + self.length_tail)
        mass /= mass.sum()
        return mass


@dataclass(frozen=True, slots=True)
class _Events:
    """The events of some histories, history after history, oldest first: columns (T,)."""

    row: Ints
    age: Ints
    category: Ints
    action: Ints
    sign: Ints


class Generator:
    """Samples 0, 1, 2, ... of one configuration and seed, up to 2^40; see the module's text."""

    num_samples = 2**40

    def __init__(self, config: GeneratorConfig, seed: int) -> None:
        check_seed(seed)
        self.config = config
        self.seed = seed
        match = 1 / config.categories
        self.law = Law(
            Lattice.of(config.shape, match, config.tau),
            match=match,
            tau=config.tau,
            base_rate=config.base_rate,
            length_mass=config.length_mass,
        )
        self._length_sums = np.cumsum(config.length_mass)
        ranks = np.arange(1, config.items_per_category + 1, dtype=np.float64) ** -config.zipf
        self._rank_sums = np.cumsum(ranks) / ranks.sum()
        self._posteriors: dict[int, NDArray[np.float64]] = {}

    def bayes_auc(self, visible: int, *, exact: bool = True) -> float:
        """The best AUC for whoever sees the newest ``visible`` events.

        ``exact=False`` gives the closed form of the normal approximation, where it holds.
        """
        return self.law.auc(visible) if exact else self.law.auc_closed_form(visible)

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return samples with their newest ``visible`` events (None: all that there are).

        Labels, candidates and what is seen of an event do not depend on ``visible``. Raises
        :class:`ModelError` for indices outside 0..2^40-1.
        """
        index = checked_indices(indices, self.num_samples)
        history = index // self.config.candidates_per_user
        lengths, events = self._events(history)
        category, item = self._candidates(index, history)
        label = self._scores(index, events, category) > self._threshold
        seen = lengths if visible is None else np.minimum(lengths, self.law.check_visible(visible))
        keep = ranges(offsets_of(lengths)[1:] - seen, seen)
        user_word, _, _, _ = words(self.seed, Stream.HISTORY, history, 1)
        return collate(
            lengths=seen,
            item=self._items(history, events, keep),
            category=events.category[keep],
            action=events.action[keep],
            age_s=events.age[keep] * self.config.gap_s,
            candidate_item=item,
            candidate_category=category,
            user=below(user_word, self.config.num_users),
            label=label.astype(np.float32),
            num_cross=self.config.num_cross,
        )

    def posterior(
        self, indices: Sequence[int] | Ints, *, visible: int | None = None
    ) -> NDArray[np.float64]:
        """Return P(label = 1 | the newest ``visible`` events), (B,): the Bayes score."""
        index = checked_indices(indices, self.num_samples)
        cut = self.law.check_visible(self.config.length if visible is None else visible)
        history = index // self.config.candidates_per_user
        lengths, events = self._events(history)
        category, _ = self._candidates(index, history)
        total = self._signals(events, category, len(index), cut)
        if cut not in self._posteriors:
            self._posteriors[cut] = self.law.posterior_cut(cut)
        return np.where(
            lengths < cut, self.law.posterior_whole(total), self._posteriors[cut][total]
        )

    @cached_property
    def _threshold(self) -> float:
        return self.law.threshold

    def _events(self, history: Ints) -> tuple[Ints, _Events]:
        """Return the lengths and all events of some histories."""
        config = self.config
        high, low, recent, _ = words(self.seed, Stream.HISTORY, history, 0)
        lengths = np.searchsorted(self._length_sums, unit(high, low), side="right")
        lengths = np.minimum(lengths, config.length).astype(np.int64)
        row = np.repeat(np.arange(len(history)), lengths)
        age = lengths[row] - ranges(np.zeros_like(lengths), lengths)
        drawn, coin, _, _ = words(self.seed, Stream.EVENT, history[row], age)
        # With pairs, both events draw their category by the age of the older one.
        reach, chance = age, coin
        if config.pairs:
            reach = age + age % 2
            drawn, chance, _, _ = words(self.seed, Stream.PAIR, history[row], reach)
        category = below(drawn, config.categories)
        if config.distraction:
            distracted = (reach <= config.silent) & _happens(chance, config.distraction)
            interest = below(recent, config.categories)
            category = np.where(distracted, interest[row], category)
        action = below(coin, 2)
        sign = 2 * action - 1
        if config.pairs:
            # The newer partner comes next; ages that are odd carry no weight, whatever their sign.
            sign = sign * np.roll(sign, -1)
        return lengths, _Events(row, age, category, action, sign)

    def _candidates(self, index: Ints, history: Ints) -> tuple[Ints, Ints]:
        """Return the candidates' categories and items."""
        config = self.config
        drawn, coin, rank, _ = words(self.seed, Stream.SAMPLE, index, 0)
        category = below(drawn, config.categories)
        if config.distraction:
            _, _, recent, _ = words(self.seed, Stream.HISTORY, history, 0)
            interest = below(recent, config.categories)
            category = np.where(_happens(coin, config.distraction), interest, category)
        return category, self._item_ids(history, category, rank)

    def _signals(self, events: _Events, candidate: Ints, size: int, visible: int) -> Ints:
        """Return K of the newest ``visible`` events: integers, so no order of adding matters."""
        counts = (events.category == candidate[events.row]) & (events.age <= visible)
        terms = np.where(counts, self.law.lattice.weights[events.age - 1] * events.sign, 0)
        # Sums of integers far below 2^53 are exact in the doubles that bincount adds.
        return np.bincount(events.row, weights=terms, minlength=size).astype(np.int64)

    def _scores(self, index: Ints, events: _Events, candidate: Ints) -> NDArray[np.float64]:
        """Return T of each sample."""
        signal = self._signals(events, candidate, len(index), self.config.length)
        high, low, _, _ = words(self.seed, Stream.SAMPLE, index, 1)
        noise: NDArray[np.float64] = ndtri(unit(high, low))
        return signal * self.law.lattice.step + noise

    def _items(self, history: Ints, events: _Events, keep: Ints) -> Ints:
        """Return the item ids of the events at ``keep``."""
        config = self.config
        owner, age, category = history[events.row[keep]], events.age[keep], events.category[keep]
        _, _, rank, _ = words(self.seed, Stream.EVENT, owner, age)
        if config.item_noise:
            coin, other, _, _ = words(self.seed, Stream.EVENT, owner, age + _NOISE_BLOCK)
            strange = _happens(coin, config.item_noise)
            category = np.where(strange, below(other, config.categories), category)
        return self._item_ids(owner, category, rank)

    def _item_ids(self, history: Ints, category: Ints, word: NDArray[np.uint64]) -> Ints:
        """Return ids made of (generation, category, rank); the rank is drawn by Zipf's law."""
        config = self.config
        uniform = (word.astype(np.float64) + 0.5) * 2.0**-32
        rank = np.searchsorted(self._rank_sums, uniform, side="right")
        rank = np.minimum(rank, config.items_per_category - 1).astype(np.int64)
        known = category << _ID_BITS | rank
        if not config.churn_every:
            return known
        phase = rank * config.churn_every // config.items_per_category
        generation = (history * config.candidates_per_user + phase) // config.churn_every
        return generation << 2 * _ID_BITS | known


def _happens(word: NDArray[np.uint64], chance: float) -> NDArray[np.bool_]:
    """Whether an event of a probability happens, by the low 31 bits (the top bit is the action)."""
    return (word & np.uint64(0x7FFFFFFF)) < np.uint64(round(chance * 2**31))
