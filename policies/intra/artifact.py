"""EasyScale's planning as its SC'23 artifact does it, each of its quirks named and switchable.

A job has ``max_p`` logical workers. On GPU type i one of them runs ``C_i`` micro-batches a second
(the last type counts as 1). A *plan* is a placement (GPUs of each type), the threads ``A_i`` that a
GPU of each type runs, and what that is worth (paper, Equation 1)::

    f = max A_i / C_i over the types used              (f_overload)
    waste = sum N_i (C_i - A_i / f) + (sum N_i A_i - max_p) / f,  as a share of sum N_i C_i
    speedup = (sum N_i C_i) (1 - waste)

Plans are enumerated from ``A = floor or ceil of k C_i`` for ``k = 1..max_p``, over all subsets of
two or more types, and from A = 1..max_p on one type; for each A, every smallest set of GPUs with
``sum N_i A_i >= max_p``. Facts: github.com/sUntvoOk/EasyScale_info_for_SC23, ``simulator/``.
Left out: several processes per GPU, which the artifact switches off.

Plans that are worth the same are told apart in the artifact by the last bits of sums, added up GPU
by GPU, and by the order of a Python set. The first is done here as there (``rounds``). The second
is a drawn order, the same on every machine; ``ties`` draws others, to show what hangs on it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import combinations, product
from math import ceil, floor
from typing import NamedTuple

from traces import UsageError
from traces.errors import did_you_mean

Counts = tuple[int, ...]
MAX_WASTE = 0.30


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """What the artifact does and the paper does not say. All true: the artifact.

    ``single_waste``: a plan on one type has waste 0, even if its GPUs do not divide the logical
    workers. ``keeps_worst``: of the plans of one placement the worst is kept (a speed-up is
    compared with a waste). ``absent_threads``: threads of types that a placement does not hold
    stay in the plan and slow the job down. ``keeps_idle``: a job that grows keeps the GPUs that
    its new plan gives nothing to do. ``doubles_at_most``: never more than twice the GPUs held.
    ``rounds``: sums are added up GPU by GPU at ``k`` times the speeds, and equal plans differ in
    their last bits (else one formula, and equal plans are equal). ``relative_gain``: proposals are
    ranked by the relative speed-up per GPU (else by the absolute one). ``first_is_worst``: a job
    starts on its plan of least speed-up (else on the best of fewest GPUs). ``ties``: seed of the
    order among equal plans.
    """

    single_waste: bool = True
    keeps_worst: bool = True
    absent_threads: bool = True
    keeps_idle: bool = True
    doubles_at_most: bool = True
    rounds: bool = True
    relative_gain: bool = True
    first_is_worst: bool = True
    ties: int = 0

    @classmethod
    def of(cls, text: str) -> Quirks:
        """Parse ``all``, ``none``, or names joined by ``;`` (``-name``: all but that one).

        Raises :class:`UsageError` for a name that is not a quirk.
        """
        names = [f.name for f in fields(cls) if f.type == "bool"]
        parts = [part.strip() for part in text.split(";") if part.strip()]
        less = bool(parts) and all(part.startswith("-") for part in parts)
        chosen = dict.fromkeys(names, less or parts == ["all"])
        if parts not in (["all"], ["none"]):
            for part in parts:
                name = part.removeprefix("-")
                if name not in chosen or (part.startswith("-") and not less):
                    raise UsageError(
                        f"quirk {part!r}; {did_you_mean(name, [*names, 'all', 'none'])}"
                    )
                chosen[name] = not less
        return cls(**chosen)


ARTIFACT = Quirks()


class Plan(NamedTuple):
    """GPUs and threads per type, the wasted share of the GPUs' speed, and the speed-up."""

    placement: Counts
    threads: Counts
    waste: float
    speedup: float


class Growth(NamedTuple):
    """``more`` GPUs of one type (its position) for ``gain``, the speed-up per GPU, by ``plan``.

    ``plan.placement`` is what the job will hold.
    """

    type_index: int
    more: int
    gain: float
    plan: Plan


def plans(
    seconds: tuple[float, ...], max_p: int, capacity: Counts, quirks: Quirks = ARTIFACT
) -> tuple[Plan, ...]:
    """Return one plan per placement, the fastest first.

    ``seconds``: of one micro-batch by GPU type (the last type is the unit of speed); ``capacity``:
    GPUs of each type in the cluster. Raises :class:`UsageError` if there is no plan at all.
    """
    found = _plans(seconds, max_p, capacity, quirks)
    if not found:
        raise UsageError(
            f"no plan for {max_p} logical workers on {capacity} GPUs of each type: a cluster needs"
            " at least one GPU"
        )
    return found


def on_type(found: Sequence[Plan], type_index: int) -> tuple[Plan, ...]:
    """Those plans that use one type alone: for jobs that may not mix types."""
    return tuple(p for p in found if sum(p.placement) == p.placement[type_index])


def first(found: Sequence[Plan], quirks: Quirks = ARTIFACT) -> Plan:
    """The plan a job starts with."""
    if quirks.first_is_worst:
        return found[-1]
    fewest = min(sum(p.placement) for p in found)
    return max((p for p in found if sum(p.placement) == fewest), key=lambda p: p.speedup)


def proposals(found: Sequence[Plan], held: Plan, quirks: Quirks = ARTIFACT) -> list[Growth]:
    """Return the best growth for each type, types in order: more of one type, of no other.

    ``found`` by falling speed-up, as :func:`plans` gives it; among equal gains the faster plan.
    """
    have = held.placement
    total = sum(have)
    most = 2 * total if quirks.doubles_at_most else sys.maxsize
    best: list[Growth | None] = [None] * len(have)
    for plan in found:
        if plan.speedup < held.speedup:
            break
        if plan.waste > MAX_WASTE or sum(plan.placement) > most:
            continue
        up = [i for i, n in enumerate(plan.placement) if n > have[i]]
        if len(up) != 1:
            continue
        (g,) = up
        more = plan.placement[g] - have[g]
        if total + more > most:
            continue
        if quirks.relative_gain:
            gain = (plan.speedup / held.speedup - 1.0) / more + 1.0
        else:
            gain = (plan.speedup - held.speedup) / more
        rival = best[g]
        if rival is None or gain > rival.gain:
            grown = plan
            if quirks.keeps_idle:
                kept = tuple(n + more if i == g else n for i, n in enumerate(have))
                grown = plan._replace(placement=kept)
            best[g] = Growth(g, more, gain, grown)
    return [growth for growth in best if growth is not None]


def decide(
    waiting: Sequence[Sequence[Plan]],
    running: Sequence[tuple[Sequence[Plan], Plan]],
    free: Sequence[int],
    quirks: Quirks = ARTIFACT,
) -> tuple[dict[int, Plan], dict[int, Plan]]:
    """One round (the artifact has one every 60 s): who starts, and who grows, on which plan.

    ``waiting``: the plans of each waiting job, ``running``: plans and present plan of each running
    one, both in the order of the trace's rows; ``free``: GPUs of each type that no running job
    holds. First every waiting job whose first plan fits starts; then growths are accepted by gain,
    one a job, while GPUs of the type are free. Equal gains go by job, then by type (the paper says:
    more GPUs first). A job that starts does not grow in the same round.
    """
    left = list(free)
    started = start([first(found, quirks) for found in waiting], left)
    return started, accept([proposals(found, held, quirks) for found, held in running], left)


def start(plans: Sequence[Plan], left: list[int]) -> dict[int, Plan]:
    """Which of these first plans start, in order; takes their GPUs from ``left``."""
    started: dict[int, Plan] = {}
    for job, plan in enumerate(plans):
        if all(n <= f for n, f in zip(plan.placement, left, strict=True)):
            left[:] = [f - n for n, f in zip(plan.placement, left, strict=True)]
            started[job] = plan
    return started


def accept(proposed: Sequence[Sequence[Growth]], left: list[int]) -> dict[int, Plan]:
    """Which growths are accepted, by gain, one a job; takes their GPUs from ``left``."""
    ranked = [(growth, job) for job, growths in enumerate(proposed) for growth in growths]
    ranked.sort(key=lambda offer: -offer[0].gain)
    grown: dict[int, Plan] = {}
    for growth, job in ranked:
        if job not in grown and growth.more <= left[growth.type_index]:
            left[growth.type_index] -= growth.more
            grown[job] = growth.plan
    return grown


def step_seconds(seconds: Sequence[float], plan: Plan) -> float:
    """Seconds of one global step as the artifact counts: no switch, no communication."""
    return max(s * a for s, a in zip(seconds, plan.threads, strict=True))


@lru_cache(maxsize=4096)
def _plans(
    seconds: tuple[float, ...], max_p: int, capacity: Counts, quirks: Quirks
) -> tuple[Plan, ...]:
    speeds = [seconds[-1] / s for s in seconds]
    every = [
        _plan(speeds, k, max_p, threads, placement, quirks)
        for threads, k in _threads(speeds, max_p, quirks)
        for placement in sorted(_smallest(threads, max_p, capacity), key=sum)
    ]
    # The artifact's three sorts: by waste, by GPUs of the first type, by speed-up, each stable.
    every.sort(key=lambda p: p.waste)
    every.sort(key=lambda p: -p.placement[0])
    every.sort(key=lambda p: -p.speedup)
    kept: dict[Counts, Plan] = {}
    for plan in every:
        if quirks.keeps_worst or plan.placement not in kept:
            kept[plan.placement] = plan
    return tuple(sorted(kept.values(), key=lambda p: -p.speedup))


def _threads(speeds: list[float], max_p: int, quirks: Quirks) -> list[tuple[Counts, int]]:
    """The lists A, each with the k it comes from, by rising A of the first type."""
    found: dict[tuple[Counts, int], None] = {}
    number = len(speeds)
    for k in range(1, max_p + 1):
        for rounded in product(*(sorted({floor(k * c), ceil(k * c)}) for c in speeds)):
            for size in range(2, number + 1):
                for some in combinations(range(number), size):
                    if any(rounded[i] <= max_p for i in some):
                        threads = tuple(a if i in some else 0 for i, a in enumerate(rounded))
                        found[threads, k if quirks.rounds else 1] = None
    for i in range(number):
        for a in range(1, max_p + 1):
            threads = tuple(a if j == i else 0 for j in range(number))
            found[threads, a if quirks.rounds else 1] = None

    def drawn(item: tuple[Counts, int]) -> bytes:
        return hashlib.blake2b(repr((quirks.ties, *item)).encode(), digest_size=8).digest()

    return sorted(found, key=lambda item: (item[0][0], drawn(item)))


def _smallest(threads: Counts, max_p: int, capacity: Counts) -> Iterator[Counts]:
    """Yield the sets of GPUs that hold ``max_p`` threads and would not without their smallest.

    Deepest first, in falling order of A.
    """
    order = sorted((i for i, a in enumerate(threads) if a), key=lambda i: -threads[i])
    held = [0] * len(threads)

    def descend(depth: int, left: int) -> Iterator[Counts]:
        if depth == len(order):
            return
        i = order[depth]
        need = -(-left // threads[i])
        for n in range(min(need, capacity[i]), -1, -1):
            held[i] = n
            if n == need:
                yield tuple(held)
            else:
                yield from descend(depth + 1, left - n * threads[i])

    yield from descend(0, max_p)


def _plan(
    speeds: list[float], k: int, max_p: int, threads: Counts, placement: Counts, quirks: Quirks
) -> Plan:
    used = [i for i, n in enumerate(placement) if n]
    total = sum(n * c for n, c in zip(placement, speeds, strict=True))
    if len(used) == 1:
        (i,) = used
        each = -(-max_p // placement[i])
        threads = tuple(each if j == i else 0 for j in range(len(threads)))
        if quirks.single_waste:
            return Plan(placement, threads, 0.0, total)
    elif not quirks.absent_threads:
        threads = tuple(a if placement[j] else 0 for j, a in enumerate(threads))
    waste = (_added_up if quirks.rounds else _waste)(speeds, k, max_p, threads, placement)
    return Plan(placement, threads, waste, total * (1.0 - waste))


def _waste(speeds: list[float], k: int, max_p: int, threads: Counts, placement: Counts) -> float:
    """Equation 1 (c) and (d); ``k`` cancels."""
    used = [i for i, n in enumerate(placement) if n]
    overload = max(threads[i] / speeds[i] for i in used)
    waste = sum(placement[i] * (speeds[i] - threads[i] / overload) for i in used)
    waste += (sum(placement[i] * threads[i] for i in used) - max_p) / overload
    return waste / sum(placement[i] * speeds[i] for i in used)


def _added_up(speeds: list[float], k: int, max_p: int, threads: Counts, placement: Counts) -> float:
    """The same in the artifact's order of operations: GPU by GPU, those with most threads first."""
    order = sorted((i for i, n in enumerate(placement) if n), key=lambda i: -threads[i])
    scaled = [c * k for c in speeds]
    overload = max(threads[i] / scaled[i] for i in order)
    waste = total = 0.0
    for i in order:
        idle = scaled[i] - threads[i] / overload
        for _ in range(placement[i]):
            waste += idle
            total += scaled[i]
    waste += (sum(placement[i] * threads[i] for i in order) - max_p) / overload
    return waste / total
