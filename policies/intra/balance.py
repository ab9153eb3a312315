"""Logical workers onto GPUs of different speeds: the assignment with the shortest step, exactly.

``n`` identical workers go to devices; a device of type t with c of them takes
``c x micro-batch + (c - 1) x switch`` seconds; the longest counts. This is scheduling identical
tasks on uniform machines, and a threshold solves it: within T seconds a device of type t holds
``cap_t(T)`` workers, so the least T with ``sum N_t cap_t(T) >= n`` is the shortest computation.
Only the times of 1..n workers on each type can be that T (:class:`Ladder`). What follows the
computation, the reduction over K devices and the slowest update, can make fewer devices faster:
then for every T that may still win, the fewest devices that hold all workers are found (those with
most room first).

So the result is never worse than any other assignment on any subset of the devices
(``tests/property/test_intra.py`` compares with exhaustive search). Devices it does not need are not
in it. Among equally fast choices: fewer devices, then slower ones, which leaves the fast ones free.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from policies.rates import UNLIMITED, Comm, reduce_time
from traces import UsageError
from traces.profile import JobRates

Counts = tuple[int, ...]
"""One number for each GPU type of the rates, in their order."""


class Ladder(NamedTuple):
    """Every time that can decide a step, ascending, and what a GPU of each type holds in it.

    ``device_s[t][c]``: seconds of c workers on type t, from c = 0.
    """

    times_s: tuple[float, ...]
    caps: tuple[Counts, ...]
    device_s: tuple[tuple[float, ...], ...]


class Fit(NamedTuple):
    """GPUs used of each type, the most workers on one of them, and what a step takes."""

    gpus: Counts
    caps: Counts
    compute_s: float
    step_s: float

    @property
    def num_gpus(self) -> int:
        """GPUs used."""
        return sum(self.gpus)


@lru_cache(maxsize=4096)
def ladder(rates: JobRates, workers: int) -> Ladder:
    """Return the times of 1..``workers`` logical workers on each type of ``rates``, merged."""
    device_s = []
    steps: list[tuple[float, int]] = []
    for i, (gpu_type, micro_s) in enumerate(rates.microbatch_s.items()):
        switch_s = rates.switch_s[gpu_type]
        row = [0.0] + [c * micro_s + (c - 1) * switch_s for c in range(1, workers + 1)]
        device_s.append(tuple(row))
        steps += [(seconds, i) for seconds in row[1:]]
    steps.sort()
    held = [0] * len(device_s)
    times_s: list[float] = []
    caps: list[Counts] = []
    for seconds, i in steps:
        held[i] += 1
        if times_s and times_s[-1] == seconds:
            caps[-1] = tuple(held)
        else:
            times_s.append(seconds)
            caps.append(tuple(held))
    return Ladder(tuple(times_s), tuple(caps), tuple(device_s))


@lru_cache(maxsize=65_536)
def best(
    rates: JobRates, workers: int, gpus: Counts, most: int, comm: Comm = UNLIMITED
) -> Fit | None:
    """Return the fastest way to hold all workers on at most ``most`` of some GPUs, if there is one.

    ``gpus``: those there are of each type, in the order of ``rates.microbatch_s``.
    """
    types = tuple(rates.microbatch_s)
    updates = [rates.update_s[t] for t in types]
    found: Fit | None = None
    # All types first: what that takes is hard to beat, and most of the others are given up at once.
    for update_s in sorted({u for u, n in zip(updates, gpus, strict=True) if n}, reverse=True):
        usable = tuple(n if u <= update_s else 0 for n, u in zip(gpus, updates, strict=True))
        fit = _within(rates, workers, usable, most, comm, update_s, found)
        if fit is not None and (found is None or _better(fit, found)):
            found = fit
    return found


def _better(fit: Fit, than: Fit) -> bool:
    return (fit.step_s, fit.num_gpus) < (than.step_s, than.num_gpus)


def _within(
    rates: JobRates,
    workers: int,
    gpus: Counts,
    most: int,
    comm: Comm,
    update_s: float,
    rival: Fit | None,
) -> Fit | None:
    """The best fit on types whose update takes at most ``update_s``."""
    most = min(most, workers, sum(gpus))
    if most < 1:
        return None
    rungs = ladder(rates, workers)
    caps, times_s = rungs.caps, rungs.times_s
    micro_s = tuple(rates.microbatch_s.values())
    reduce_s = _reductions(rates, most, comm)
    floor_s = min(reduce_s[1:]) + update_s
    rising = all(a <= b for a, b in pairwise(reduce_s[1:]))

    def room(j: int) -> int:
        return sum(n * c for n, c in zip(gpus, caps[j], strict=True))

    found = rival
    start = bisect_left(range(len(times_s)), workers, key=room)
    for j in range(start, len(times_s)):
        if found is not None and times_s[j] + floor_s > found.step_s:
            break
        used = _fewest(gpus, caps[j], workers, micro_s)
        least = sum(used)
        if least > most:
            continue
        if rising:
            number = least
        else:
            widest = min(most, sum(n for n, c in zip(gpus, caps[j], strict=True) if c))
            number = min(range(least, widest + 1), key=lambda k: reduce_s[k])
            used = _widened(used, gpus, caps[j], number)
        step_s = times_s[j] + reduce_s[number] + update_s
        fit = Fit(used, caps[j], times_s[j], step_s)
        if found is None or _better(fit, found):
            found = fit
        if rising and least == 1:
            break  # longer computations cannot save any more devices
    return None if found is rival else found


@lru_cache(maxsize=16_384)
def _reductions(rates: JobRates, most: int, comm: Comm) -> tuple[float, ...]:
    """Seconds of a reduction over 0..``most`` devices."""
    cost, size = rates.reduce, rates.gradient_bytes
    return (0.0, *(reduce_time(cost, size, k, comm) for k in range(1, most + 1)))


def _fewest(gpus: Counts, caps: Counts, workers: int, micro_s: tuple[float, ...]) -> Counts:
    """The fewest GPUs that hold all workers, those with most room first.

    Of those, slower types in the place of faster ones where their room is enough.
    """
    order = sorted((i for i, n in enumerate(gpus) if n), key=lambda i: (-caps[i], -micro_s[i]))
    used = [0] * len(gpus)
    left = workers
    for i in order:
        used[i] = min(gpus[i], -(-left // caps[i])) if caps[i] else 0
        left -= used[i] * caps[i]
        if left <= 0:
            break
    spare = -left
    if not spare:
        return tuple(used)
    for fast in order:
        for slow in reversed(order):
            less = caps[fast] - caps[slow]
            if less > 0 and caps[slow]:
                swaps = min(used[fast], gpus[slow] - used[slow], spare // less)
                used[fast] -= swaps
                used[slow] += swaps
                spare -= swaps * less
    return tuple(used)


def _widened(used: Counts, gpus: Counts, caps: Counts, number: int) -> Counts:
    """The same and more GPUs, up to a number at which the reduction is cheaper."""
    wide = list(used)
    for i in sorted(range(len(gpus)), key=lambda i: -caps[i]):
        if caps[i]:
            wide[i] += min(gpus[i] - wide[i], number - sum(wide))
    return tuple(wide)


def spread(rates: JobRates, workers: int, gpus: Counts) -> tuple[tuple[int, ...], ...]:
    """Return the workers on each GPU, by type, most first: every GPU holds one or more.

    One after another to the GPU that would be done first with it; the optimum, because workers are
    alike. Raises :class:`UsageError` for more GPUs than workers, or none.
    """
    total = sum(gpus)
    if not 1 <= total <= workers:
        raise UsageError(
            f"{workers} logical workers cannot sit on {total} GPUs, one on each or more"
        )
    device_s = ladder(rates, workers).device_s
    level = [1] * len(gpus)  # workers on those that have least, of each type
    above = [0] * len(gpus)  # GPUs that hold one more
    used = [i for i, n in enumerate(gpus) if n]
    for _ in range(workers - total):
        i = min(used, key=lambda i: device_s[i][level[i] + 1])
        above[i] += 1
        if above[i] == gpus[i]:
            level[i], above[i] = level[i] + 1, 0
    return tuple(
        (level[i] + 1,) * above[i] + (level[i],) * (n - above[i]) for i, n in enumerate(gpus)
    )
