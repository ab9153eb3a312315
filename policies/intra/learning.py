"""What a job's own progress teaches: corrected rates, and whether a change of GPUs helped.

EasyScale's companion learns the C_i of a job from what its processes report, and falls back to the
GPUs it had when a change made it slower, handing the new ones back (SC'23, section 3.3, role 3).
Both are pure functions here: what a job must remember is a :class:`Memory`, a value that the view
can keep, so a run can be resumed or explained at any instant.

An observed step says only how long the slowest device took. So a type whose device should have
taken longer than that is faster than thought; if none should have, the one that was thought slowest
is slower. Reports by device say more and teach each type by itself. Corrections are factors on the
profile's micro-batch times, moved by ``weight`` of the (logarithmic) error each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from policies.rates import UNLIMITED, Comm, Layout, device_s, step_time_of
from traces import DataError, Profile
from traces.profile import JobRates

Held = tuple[tuple[str, int], ...]
"""GPUs by type, types in order, none of them 0: a GpuCounts that can be remembered."""

_MOST = 1e3  # a factor beyond is a broken clock, not a slow device


class Trial(NamedTuple):
    """A change of GPUs under observation: those before and after, and the step time before."""

    before: Held
    before_step_s: float
    after: Held


class Memory(NamedTuple):
    """What is remembered of one job.

    ``factors``: by GPU type in order, observed over recorded micro-batch time (types not named: 1).
    ``observations``: how many taught it. ``trial``: the last change, until it is judged.
    ``refused``: GPUs that did not help, never to be proposed again.
    """

    factors: tuple[tuple[str, float], ...] = ()
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
    believed = learned(rates, memory)
    predicted = step_time_of(believed, layout, comm)
    rest_s = predicted.reduce_s + predicted.update_s
    computed_s = max(step_s - rest_s, 0.01 * step_s)
    by_type: dict[str, float] = {}
    for gpu_type, workers in layout:
        by_type[gpu_type] = max(by_type.get(gpu_type, 0.0), device_s(believed, gpu_type, workers))
    slowest_s = max(by_type.values())
    wrong = {t: s for t, s in by_type.items() if s > computed_s or s == slowest_s}
    return _moved(memory, {t: computed_s / s for t, s in wrong.items()}, weight)


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
    believed = learned(rates, memory)
    logs: dict[str, list[float]] = {}
    for gpu_type, workers, seconds in devices:
        _positive(f"{workers} micro-batches on {gpu_type}", seconds)
        expected_s = device_s(believed, gpu_type, workers)
        logs.setdefault(gpu_type, []).append(math.log(seconds / expected_s))
    errors = {t: math.exp(math.fsum(some) / len(some)) for t, some in logs.items()}
    return _moved(memory, errors, weight)


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


def _moved(memory: Memory, errors: Mapping[str, float], weight: float) -> Memory:
    if not 0.0 < weight <= 1.0:
        raise DataError("learning: weight", value=weight, expected="more than 0, at most 1")
    factors = dict(memory.factors)
    for gpu_type, error in errors.items():
        moved = factors.get(gpu_type, 1.0) * error**weight
        factors[gpu_type] = min(max(moved, 1.0 / _MOST), _MOST)
    return memory._replace(
        factors=tuple(sorted(factors.items())), observations=memory.observations + 1
    )


def _positive(what: str, seconds: float) -> None:
    if not 0.0 < seconds < math.inf:
        raise DataError(
            f"observed time of {what}", value=seconds, expected="a positive number of seconds"
        )
