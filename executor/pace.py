"""How fast a machine is now, over what its profile says; and the profile of the machine as it is.

The speed of a machine drifts: others share it, its clock follows its heat. Virtual machines have
been seen to change by a tenth within minutes. A profile is of the minutes in which it was measured.
So before an execution whose times matter, micro-batches are timed again on all lanes at once, for a
few seconds, and the profile's times are scaled by what they took.

Leaves out: what the speed does after that.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from executor.alone import Alone
from executor.devices import DeviceLane
from executor.levels import Level, agree
from traces.profile import BY_TYPE, Profile, ReduceCost, Transfer

SECONDS = 3.0


def pace(
    profile: Profile,
    cases: Sequence[tuple[str, int]],
    lanes: Sequence[DeviceLane],
    *,
    seconds: float = SECONDS,
) -> dict[str, float]:
    """Return by GPU type how many times as long a micro-batch takes now as the profile says.

    Means over ``cases`` (a model and a batch size per logical worker, ``seconds`` each, each must
    be in the profile) and over the lanes of a type. Raises DataError if a process fails.
    """
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        alone = [
            stack.enter_context(Alone(lane, agree(Level.D1, [lane]), cases, seconds))
            for lane in lanes
        ]
        threads = stack.enter_context(ThreadPoolExecutor(len(alone)))
        for process, samples in zip(alone, threads.map(Alone.round, alone), strict=True):
            kind = process.lane.gpu_type
            for (model, batch), one in samples.items():
                said_s = profile.rates(model, batch).seconds(kind)
                found[kind].append(statistics.median(one.micro_s) / said_s)
    return {kind: statistics.fmean(factors) for kind, factors in found.items()}


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
