"""How many GPUs of which type are worth having: the sizes of an elastic job, per class of jobs.

Jobs of one class (model, batch size, logical workers, bounds, types they may use) have the same
answers, so a scheduler asks this table and never enumerates plans per job. A size is GPUs by pool;
its rate is that of the best worker map (``policies.rates``): a device of type t is busy
``d_t(a) = a x micro-batch + (a - 1) x switch`` with a logical workers, so for every level f of
these times, type t carries ``a_t(f)`` of them, and a size is done within f if its devices carry
all. ``best`` looks at every level; at each it takes the cheapest GPUs that are done within it.

Left out: where the GPUs stand. A reduction costs what the profile says, on unlimited links.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from policies.elastic import Kind
from policies.rates import UNLIMITED, device_s, reduce_time

Counts = tuple[int, ...]


class Size(NamedTuple):
    """GPUs by pool, progress per second on them, and their price."""

    counts: Counts
    rate: float
    price: float


class Step(NamedTuple):
    """A number of GPUs of one type that is faster than any smaller one."""

    gpus: int
    rate: float


class Sizes:
    """The sizes of one class of jobs on one cluster."""

    def __init__(self, kind: Kind) -> None:
        elastic = kind.elastic
        self.pools = pools = kind.pools
        self.most = elastic.max_gpus
        self.least = elastic.least_gpus
        self.workers = elastic.num_workers
        self.mixes = elastic.mixes_types and len(pools) > 1
        self.prices = prices = kind.prices
        self._rates = rates = kind.rates
        self._types = gpu_types = kind.gpu_types
        self._reference = kind.reference
        self._refused = kind.refused
        self._times = [
            [device_s(rates, gpu_types[p], a) for a in range(1, self.workers + 1)] for p in pools
        ]
        self._levels = sorted({t for times in self._times for t in times})
        self._best: dict[tuple[Counts, float], Size | None] = {}
        self._rate: dict[Counts, float] = {}
        self._steps: dict[int, tuple[Step, ...]] = {}
        self.full = (0,) * len(gpu_types)  # what it takes where there is plenty
        # The most progress that a unit of price buys: the yardstick of thrift.
        self.density = max(self.rate(self._one(p)) / prices[p] for p in pools)
        plenty = self.best((self.most,) * len(gpu_types), 0.0)
        if plenty is not None:
            self.full = plenty.counts

    def _one(self, pool: int) -> Counts:
        return tuple(1 if i == pool else 0 for i in range(len(self._types)))

    def rate(self, counts: Counts) -> float:
        """Progress per second on these GPUs with the best worker map (0 on none)."""
        known = self._rate.get(counts)
        if known is None:
            known = self._rate[counts] = self._rate_of(counts)
        return known

    def _rate_of(self, counts: Counts) -> float:
        used = [(j, counts[p]) for j, p in enumerate(self.pools) if counts[p]]
        if not used:
            return 0.0
        low, high = 0, len(self._levels) - 1
        while low < high:
            middle = (low + high) // 2
            if sum(n * self._carried(j, self._levels[middle]) for j, n in used) >= self.workers:
                high = middle
            else:
                low = middle + 1
        devices = min(sum(n for _, n in used), self.workers)
        return self._progress(self._levels[low], [self.pools[j] for j, _ in used], devices)

    def _progress(self, level: float, pools: Sequence[int], devices: int) -> float:
        rates = self._rates
        update_s = max(rates.update_s[self._types[p]] for p in pools)
        reduce_s = reduce_time(rates.reduce, rates.gradient_bytes, devices, UNLIMITED)
        return self._reference / (level + update_s + reduce_s)

    def _carried(self, position: int, level: float) -> int:
        """Logical workers that a device of a pool carries within ``level`` seconds."""
        return bisect_right(self._times[position], level)

    def steps(self, pool: int) -> tuple[Step, ...]:
        """The sizes on one pool that make a difference, within the bounds, smallest first."""
        known = self._steps.get(pool)
        if known is None:
            found: list[Step] = []
            for gpus in range(self.least, min(self.most, self.workers) + 1):
                counts = tuple(gpus if p == pool else 0 for p in range(len(self._types)))
                rate = self.rate(counts)
                if not found or rate > found[-1].rate * (1.0 + 1e-9):
                    found.append(Step(gpus, rate))
            known = self._steps[pool] = tuple(found)
        return known

    def price(self, counts: Counts) -> float:
        """What these GPUs cost."""
        return sum(n * p for n, p in zip(counts, self.prices, strict=True))

    def best(self, limits: Counts, thrift: float) -> Size | None:
        """The size within ``limits`` that is worth most: rate - thrift x density x price.

        None if there is no size within them. ``thrift`` 0 takes the fastest, 1 only what is as
        efficient as a single GPU.
        """
        most = self.most
        key = (tuple(min(n, most) for n in limits), thrift)
        if key not in self._best:
            self._best[key] = self._search(key[0], thrift)
        return self._best[key]

    def _search(self, limits: Counts, thrift: float) -> Size | None:
        found: Size | None = None
        worth = 0.0
        weight = thrift * self.density
        groups = [range(len(self.pools))] if self.mixes else [[j] for j in range(len(self.pools))]
        for group in groups:
            usable = [j for j in group if limits[self.pools[j]]]
            if sum(limits[self.pools[j]] for j in usable) < self.least:
                continue
            for level in self._levels:
                size = self._at(level, usable, limits)
                if size is None or size.counts in self._refused:
                    continue
                value = size.rate - weight * size.price
                if found is None or value > worth + 1e-12:
                    found, worth = size, value
        return found

    def _at(self, level: float, usable: Sequence[int], limits: Counts) -> Size | None:
        """The cheapest size that is done within ``level``, about: cheapest per worker first."""
        offers = [(self._carried(j, level), j) for j in usable]
        carried = [(a, j) for a, j in offers if a]
        for order in (
            sorted(carried, key=lambda o: (self.prices[self.pools[o[1]]] / o[0], o[1])),
            sorted(carried, key=lambda o: (-o[0], o[1])),
        ):
            counts = self._fill(order, usable, limits)
            if counts is not None:
                pools = [p for p in self.pools if counts[p]]
                devices = min(sum(counts), self.workers)
                return Size(counts, self._progress(level, pools, devices), self.price(counts))
        return None

    def _fill(
        self, order: Sequence[tuple[int, int]], usable: Sequence[int], limits: Counts
    ) -> Counts | None:
        left, room = self.workers, self.most
        counts = [0] * len(self._types)
        for carried, j in order:
            pool = self.pools[j]
            n = min(-(-left // carried), limits[pool], room)
            counts[pool] = n
            left -= n * carried
            room -= n
            if left <= 0:
                break
        if left > 0:
            return None
        short = self.least - sum(counts)
        for j in sorted(usable, key=lambda j: self.prices[self.pools[j]]):
            if short <= 0:
                break  # else it must have more than would do: the cheapest
            more = min(short, limits[self.pools[j]] - counts[self.pools[j]])
            counts[self.pools[j]] += more
            short -= more
        return tuple(counts) if short <= 0 else None


@lru_cache(maxsize=16_384)
def sizes_of(kind: Kind | None, *, preferred: bool = False) -> Sizes:
    """The sizes of a class of elastic jobs; ``preferred``: on its preferred type alone."""
    assert kind is not None, "a rigid job has no sizes"
    if preferred:
        kind = replace(kind, pools=(kind.preferred,))
    return Sizes(kind)
