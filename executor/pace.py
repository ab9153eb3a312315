"""How fast a machine is now, over what its profile says; and the profile of the machine as it is.

The speed of a machine drifts: others share it, its clock follows its heat. Virtual machines have
been seen to change by a tenth within minutes. A profile is of the minutes in which it was measured.
So around an execution whose times matter, steps of small jobs on all lanes at once are timed again,
for a few seconds, and the profile's times are scaled by what they took.

What the speed does in between can only be told afterwards, from the run itself: over all its steps,
how much longer they took than the profile says. That is no prediction any more, but it parts the
errors of a simulation into those of the machine's speed and all others.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from executor.devices import DeviceLane
from executor.levels import agree, together, usual_level
from executor.trials import Trials, apart
from policies.rates import step_time_of
from traces.errors import DataError
from traces.profile import BY_TYPE, Profile, ReduceCost, Transfer
from traces.workermap import WorkerMap

SECONDS = 12.0
PREDICTED = ("compute", "waiting", "switch", "reduce", "update")
"""Of a run's device time, what a profile predicts; the rest is unexplained, or no training."""
_WORKERS = 2  # logical workers of a job


def pace(
    profile: Profile,
    cases: Sequence[tuple[str, int]],
    lanes: Sequence[DeviceLane],
    *,
    seconds: float = SECONDS,
) -> dict[str, float]:
    """Return by GPU type how many times as long a job's step takes now as the profile says.

    Means over steps (a run pays for the slow ones too), over ``cases`` (a model and a batch size
    per logical worker, about ``seconds`` each, each must be in the profile) and over the lanes of a
    type; a job on every lane at once, as far as they share no core and one level stretches over
    them. Raises ExecutorError if a job fails.
    """
    found: dict[str, list[float]] = defaultdict(list)
    level = usual_level(lanes)
    for group in together(level, lanes):
        places = apart(group)
        maps = [WorkerMap.of([place], [_WORKERS]) for place in places]
        with Trials(group, agree(level, group)) as trials:
            for model, batch in cases:
                rates = profile.rates(model, batch, _WORKERS)
                kinds = [group[place[1]].gpu_type for place in places]
                said = [step_time_of(rates, ((kind, _WORKERS),)).total_s for kind in kinds]
                trials.at_once(model, batch, maps, steps=1)  # so that all are warm
                steps = math.ceil(seconds / max(said))
                times = trials.at_once(model, batch, maps, steps=steps)
                for kind, said_s, one in zip(kinds, said, times, strict=True):
                    found[kind].append(statistics.fmean(one) / said_s)
    return {kind: statistics.fmean(factors) for kind, factors in found.items()}


def pace_of(record: Mapping[str, Any]) -> float:
    """Return how many times as long an executed run's training took as its profile said.

    ``record``: the run's record. Raises DataError if it does not say where its time went.
    """
    spent = (record.get("executor") or {}).get("device_s") or {}
    said_s = sum(float(spent.get(part, 0.0)) for part in PREDICTED)
    if said_s <= 0:
        raise DataError("the run does not say where its device time went", column="device_s")
    return 1.0 + float(spent.get("unexplained", 0.0)) / said_s


def at_pace(profile: Profile, factors: Mapping[str, float]) -> Profile:
    """Return the profile of a machine on which everything takes so many times as long, by type.

    A reduction concerns several types; it is scaled by the slowest. Costs of start, rescale and
    checkpoint wait for more than the processor, and stay.
    """
    slowest = max(factors.values(), default=1.0)
    by_devices = {
        devices: Transfer(one.latency_s * slowest, one.bytes_per_s / slowest)
        for devices, one in profile.reduce.by_devices.items()
    }
    reduce = ReduceCost(
        latency_s=profile.reduce.latency_s * slowest,
        bytes_per_s=profile.reduce.bytes_per_s / slowest,
        by_devices=by_devices,
    )
    models = {
        name: replace(
            model,
            microbatch_s={
                batch: _scaled(times, factors) for batch, times in model.microbatch_s.items()
            },
            switch_s=_scaled(model.switch_s, factors),
            update_s=_scaled(model.update_s, factors),
            interval_s={
                batch: {
                    kind: (low * factors.get(kind, 1.0), high * factors.get(kind, 1.0))
                    for kind, (low, high) in intervals.items()
                }
                for batch, intervals in model.interval_s.items()
            },
        )
        for name, model in profile.models.items()
    }
    said = ", ".join(f"{kind} {factor:.4f}" for kind, factor in sorted(factors.items()))
    notes = (*profile.notes, f"times scaled by the machine's pace: {said}")
    return replace(profile, models=models, reduce=reduce, notes=notes)


def _scaled(times: BY_TYPE, factors: Mapping[str, float]) -> dict[str, float]:
    return {kind: seconds * factors.get(kind, 1.0) for kind, seconds in times.items()}
