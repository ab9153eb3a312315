"""What a job's own progress teaches: corrected rates, and whether a change of GPUs helped.

EasyScale's companion learns the C_i of a job from what its processes report, and falls back to the
GPUs it had when a change made it slower, handing the new ones back (SC'23, section 3.3, role 3).
Both are pure functions here: what a job must remember is a :class:`Memory`, a value that the view
can keep, so a run can be resumed or explained at any instant.

Reports by device teach each GPU type by itself: factors on the profile's micro-batch times, moved
by ``weight`` of the (logarithmic) error each time. A step time alone says only how long the slowest
device took. So of step times the last few are remembered, one for each different map, and read
together: no type can be slower than each of them allows (its bound), and each must have been set by
some type at its bound. Of the sets of types that explain all of them, the one that departs least
from what was believed is taken (at most 2^types sets, so all are looked at). It learns less: a type
that is never the slowest is never heard of (``benchmarks/rate_learning.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from policies.rates import UNLIMITED, Comm, Layout, device_s, step_time_of
from traces import DataError, Profile
from traces.profile import JobRates

Held = tuple[tuple[str, int], ...]
"""GPUs by type, types in order, none of them 0: a GpuCounts that can be remembered."""

_MOST = 1e3  # a factor beyond is a broken clock, not a slow device
_REMEMBERED = 16  # different worker maps; older ones may be of another time
_TOLERANCE = 0.05  # within which an observation is explained


class Trial(NamedTuple):
    """A change of GPUs under observation: those before and after, and the step time before."""

    before: Held
    before_step_s: float
    after: Held


class Step(NamedTuple):
    """Observed steps on one map: the most workers on a GPU of each type, and their computation."""

    most: Held
    computed_s: float


class Memory(NamedTuple):
    """What is remembered of one job.

    ``factors``: by GPU type in order, observed over recorded micro-batch time (types not named: 1);
    ``told``: the same as far as devices reported it; ``steps``: step times, the latest last.
    ``observations``: how many taught it. ``trial``: the last change, until it is judged.
    ``refused``: GPUs that did not help, never to be proposed again.
    """

    factors: tuple[tuple[str, float], ...] = ()
    told: tuple[tuple[str, float], ...] = ()
    steps: tuple[Step, ...] = ()
    observations: int = 0
    trial: Trial | None = None
    refused: tuple[Held, ...] = ()


class Verdict(NamedTuple):
    """Whether a change helped. If not: the GPUs to go back to, and those to hand back."""

    helped: bool
    back_to: Held
    release: Held
    memory: Memory


def held_of(counts: Mapping[str, int]) -> Held:
    """Return counts in the form that is remembered."""
    return tuple((t, n) for t, n in sorted(counts.items()) if n)


def learned(rates: JobRates, memory: Memory) -> JobRates:
    """Return a job's rates, corrected by what was observed; the same object if nothing was."""
    return _learned(rates, memory.factors) if memory.factors else rates


def learned_profile(profile: Profile, model: str, memory: Memory) -> Profile:
    """Return a profile with the rates of one model corrected."""
    return _learned_profile(profile, model, memory.factors) if memory.factors else profile


def observe(
    memory: Memory,
    rates: JobRates,
    layout: Layout,
    step_s: float,
    comm: Comm = UNLIMITED,
    *,
    weight: float = 0.5,
) -> Memory:
    """Learn from the observed time of a global step; ``rates`` are the profile's own.

    Raises :class:`DataError` for a step time that cannot be.
    """
    _positive("step", step_s)
    _share(weight)
    predicted = step_time_of(rates, layout, comm)
    computed_s = max(step_s - predicted.reduce_s - predicted.update_s, 0.01 * step_s)
    by_type: dict[str, int] = {}
    for gpu_type, workers in layout:
        by_type[gpu_type] = max(by_type.get(gpu_type, 0), workers)
    most = held_of(by_type)
    for step in memory.steps:
        if step.most == most:
            computed_s = step.computed_s ** (1.0 - weight) * computed_s**weight
    others = [step for step in memory.steps if step.most != most]
    steps = (*others, Step(most, computed_s))[-_REMEMBERED:]
    return memory._replace(
        steps=steps,
        factors=_explained(rates, dict(memory.told), steps),
        observations=memory.observations + 1,
    )


def observe_devices(
    memory: Memory,
    rates: JobRates,
    devices: Sequence[tuple[str, int, float]],
    *,
    weight: float = 0.5,
) -> Memory:
    """Learn from reports by device: (GPU type, logical workers, seconds of their micro-batches).

    Several devices of one type teach their mean. Raises :class:`DataError` for a time that cannot
    be.
    """
    _share(weight)
    told = dict(memory.told)
    logs: dict[str, list[float]] = {}
    for gpu_type, workers, seconds in devices:
        _positive(f"{workers} micro-batches on {gpu_type}", seconds)
        factor = _bound(rates, gpu_type, workers, seconds)
        logs.setdefault(gpu_type, []).append(math.log(factor / told.get(gpu_type, 1.0)))
    for gpu_type, errors in logs.items():
        error = math.fsum(errors) / len(errors)
        told[gpu_type] = _kept(told.get(gpu_type, 1.0) * math.exp(weight * error))
    return memory._replace(
        told=tuple(sorted(told.items())),
        factors=_explained(rates, told, memory.steps),
        observations=memory.observations + 1,
    )


def changed(
    memory: Memory, before: Mapping[str, int], before_step_s: float, after: Mapping[str, int]
) -> Memory:
    """Remember a change of GPUs, to be judged when steps on the new ones were observed."""
    _positive("step before the change", before_step_s)
    return memory._replace(trial=Trial(held_of(before), before_step_s, held_of(after)))


def judge(memory: Memory, step_s: float, *, least_gain: float = 0.0) -> Verdict | None:
    """Say whether the last change helped, given a step time since; None if there is none to judge.

    Giving GPUs up is never undone. A growth helped if the step takes less than ``1 - least_gain``
    of what it took.
    """
    trial = memory.trial
    if trial is None:
        return None
    _positive("step after the change", step_s)
    before, after = dict(trial.before), dict(trial.after)
    gained = {t: n - before.get(t, 0) for t, n in after.items() if n > before.get(t, 0)}
    settled = memory._replace(trial=None)
    if not gained or step_s < trial.before_step_s * (1.0 - least_gain):
        return Verdict(True, trial.after, (), settled)
    refused = (*settled.refused, trial.after)
    return Verdict(False, trial.before, held_of(gained), settled._replace(refused=refused))


@lru_cache(maxsize=16_384)
def _learned(rates: JobRates, factors: tuple[tuple[str, float], ...]) -> JobRates:
    return rates.scaled(dict(factors))


@lru_cache(maxsize=4_096)
def _learned_profile(
    profile: Profile, model: str, factors: tuple[tuple[str, float], ...]
) -> Profile:
    return profile.scaled({(model, t): factor for t, factor in factors})


def _bound(rates: JobRates, gpu_type: str, workers: int, seconds: float) -> float:
    """The factor at which a device of this type takes exactly so long."""
    switches_s = device_s(rates, gpu_type, workers) - workers * rates.seconds(gpu_type)
    left_s = max(seconds - switches_s, 0.01 * seconds)
    return _kept(left_s / (workers * rates.seconds(gpu_type)))


def _explained(
    rates: JobRates, told: Mapping[str, float], steps: Sequence[Step]
) -> tuple[tuple[str, float], ...]:
    """Factors that explain all step times and depart least from what was told (or from 1).

    Types that devices reported on are not blamed for anything.
    """
    allowed = [{t: _bound(rates, t, n, step.computed_s) for t, n in step.most} for step in steps]
    bounds: dict[str, float] = {}
    for row in allowed:
        for gpu_type, bound in row.items():
            bounds[gpu_type] = min(bounds.get(gpu_type, math.inf), bound)
    open_types = sorted(t for t in bounds if t not in told)
    best: tuple[int, float, dict[str, float]] | None = None
    for chosen in product((False, True), repeat=len(open_types)):
        at_bound = {t for t, yes in zip(open_types, chosen, strict=True) if yes}
        factors = {t: bounds[t] if t in at_bound else min(1.0, bounds[t]) for t in open_types}
        factors.update(told)
        missed = sum(
            all(factors[t] < bound * (1.0 - _TOLERANCE) for t, bound in row.items())
            for row in allowed
        )
        moved = math.fsum(abs(math.log(factors[t])) for t in open_types)
        if best is None or (missed, moved) < best[:2]:
            best = missed, moved, factors
    assert best is not None
    return tuple(sorted(best[2].items()))


def _kept(factor: float) -> float:
    return min(max(factor, 1.0 / _MOST), _MOST)


def _share(weight: float) -> None:
    if not 0.0 < weight <= 1.0:
        raise DataError("learning: weight", value=weight, expected="more than 0, at most 1")


def _positive(what: str, seconds: float) -> None:
    if not 0.0 < seconds < math.inf:
        raise DataError(
            f"observed time of {what}", value=seconds, expected="a positive number of seconds"
        )
