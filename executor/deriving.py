"""What a profile says, derived from what was measured: the arithmetic of ``executor.profiler``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from executor.devices import DeviceLane
from executor.levels import Agreement
from executor.measure import Samples
from executor.pool import Place
from executor.trials import apart
from traces.profile import ReduceCost, Transfer
from traces.workermap import WorkerMap

REDUCED = ("dense:width=64", "dense:width=512")  # two sizes of gradient, hardly any work
_MOST_DEVICES = 4
SINGLE = (1, 2, 4)  # logical workers of jobs on one lane; those of 2 are held out
_USUAL = 50.0  # percentile that is reported

Case = tuple[str, int]
"""A model and a batch size per logical worker."""


@dataclass(slots=True)
class Group:
    """Lanes that one job may have together at a level, and what was measured on them.

    ``alone``: by GPU type and case; ``steps``: by case and worker map, seconds.
    """

    lanes: Sequence[DeviceLane]
    agreement: Agreement
    alone: dict[str, dict[Case, Samples]] = field(default_factory=dict)
    steps: dict[tuple[Case, WorkerMap], list[float]] = field(default_factory=dict)

    def add(self, gpu_type: str, found: Mapping[Case, Samples]) -> None:
        """Add what a lane of a type measured in a round."""
        known = self.alone.setdefault(gpu_type, {})
        for case, samples in found.items():
            known[case] = known[case].joined(samples) if case in known else samples


def single_maps(group: Group, workers: int) -> dict[str, WorkerMap]:
    """So many logical workers on one lane of each type: what its steps are kept under."""
    maps: dict[str, WorkerMap] = {}
    for place in apart(group.lanes):
        maps.setdefault(group.lanes[place[1]].gpu_type, WorkerMap.of([place], [workers]))
    return maps


def _alike(lanes: Sequence[DeviceLane]) -> list[Place]:
    """Places of the first lane's type, apart, at most ``_MOST_DEVICES``."""
    places = [p for p in apart(lanes) if lanes[p[1]].gpu_type == lanes[0].gpu_type]
    return places[:_MOST_DEVICES]


def widest(groups: Sequence[Group]) -> Group:
    """Return the group whose jobs can be on most lanes of one type: there reduction is measured."""
    return max(groups, key=lambda group: len(_alike(group.lanes)))


def even_maps(lanes: Sequence[DeviceLane]) -> list[WorkerMap]:
    """One logical worker on each of 1, 2, ... lanes of the first one's type."""
    places = _alike(lanes)
    return [WorkerMap.of(places[:k], [1] * k) for k in range(1, len(places) + 1)]


def widest_maps(lanes: Sequence[DeviceLane]) -> list[WorkerMap]:
    """One and two logical workers on each of the most lanes of the first one's type."""
    places = _alike(lanes)
    return [WorkerMap.of(places, [n] * len(places)) for n in (1, 2)]


def reduction(group: Group) -> ReduceCost:
    """Seconds of a reduction over 1, 2, ... devices of the first lane's type, by bytes."""
    alone = group.alone[group.lanes[0].gpu_type]
    sizes = [alone[model, 1].gradient_bytes for model in REDUCED]
    by_devices: dict[int, Transfer] = {}
    for one in even_maps(group.lanes):
        rest = []
        for model in REDUCED:
            own = usual(alone[model, 1].micro_s) + usual(alone[model, 1].update_s)
            rest.append(max(0.0, usual(group.steps[(model, 1), one]) - own))
        by_devices[len(one.gpus)] = line(sizes[0], rest[0], sizes[1], rest[1])
    return ReduceCost(by_devices=by_devices)


def dilation(group: Group, case: Case, gpu_type: str) -> float:
    """How many times as long a micro-batch takes in a job, by the clock, as a process says alone.

    What a job's step gains per logical worker beyond the first on one lane, less the switch. Never
    below 1 on a CPU: the clock is not slower than the processor. On a GPU a job launches the next
    micro-batch while the last one runs, and a process that times each of them cannot.
    """
    if gpu_type not in single_maps(group, SINGLE[0]):
        return 1.0  # its lane shares a core with another, and takes no part in trials
    few, many = (
        usual(group.steps[case, single_maps(group, workers)[gpu_type]])
        for workers in (SINGLE[0], SINGLE[-1])
    )
    alone = group.alone[gpu_type][case]
    each_s = (many - few) / (SINGLE[-1] - SINGLE[0]) - switch_s(alone)
    longer = each_s / usual(alone.micro_s)
    if any(lane.gpu_type == gpu_type and lane.cuda_index is not None for lane in group.lanes):
        return longer if longer > 0 else 1.0
    return max(1.0, longer)


def _micro_s(group: Group, case: Case, gpu_type: str) -> float:
    return usual(group.alone[gpu_type][case].micro_s) * dilation(group, case, gpu_type)


def update_s(group: Group, case: Case, gpu_type: str, reduce: ReduceCost) -> float:
    """What a step of one logical worker takes beside its micro-batch and the reduction.

    The optimizer, and what the engine does once a step however many logical workers there are.
    """
    alone = group.alone[gpu_type][case]
    own = reduce.by_devices[1]
    one = single_maps(group, 1).get(gpu_type)
    if one is None:
        return usual(alone.update_s)
    rest_s = usual(group.steps[case, one]) - _micro_s(group, case, gpu_type)
    rest_s -= own.latency_s + alone.gradient_bytes / own.bytes_per_s
    return max(usual(alone.update_s), rest_s)


def reduced_bytes(group: Group, case: Case, reduce: ReduceCost) -> tuple[float, float]:
    """Return bytes of gradient that a reduction moves: of the model, and more per logical worker.

    The second for the rows of sparse tables, which every logical worker adds to: as many bytes as
    would take as long, from one and from two logical workers on each of several devices.
    """
    kind = group.lanes[0].gpu_type
    alone = group.alone[kind][case]
    maps = widest_maps(group.lanes)
    devices, dense = len(maps[0].gpus), float(alone.gradient_bytes)
    cost = reduce.by_devices[devices]
    if not alone.has_tables or devices == 1 or not math.isfinite(cost.bytes_per_s):
        return dense, 0.0
    micro_s, switched_s = _micro_s(group, case, kind), switch_s(alone)
    few, many = (
        (
            usual(group.steps[case, one])
            - (workers * micro_s + (workers - 1) * switched_s)
            - update_s(group, case, kind, reduce)
            - cost.latency_s
        )
        * cost.bytes_per_s
        for workers, one in enumerate(maps, 1)
    )
    each = max(0.0, (many - few) / devices)
    return max(dense, few - devices * each), each


def line(small_bytes: float, small_s: float, large_bytes: float, large_s: float) -> Transfer:
    """Return latency and rate of a reduction from two sizes; bytes that cost nothing are free."""
    if large_s <= small_s:
        return Transfer((small_s + large_s) / 2, float("inf"))
    bytes_per_s = (large_bytes - small_bytes) / (large_s - small_s)
    return Transfer(max(0.0, small_s - small_bytes / bytes_per_s), bytes_per_s)


def usual(values: Sequence[float]) -> float:
    """Return the median: what a thing takes on the machine as it is."""
    return float(np.percentile(values, _USUAL))


def usual_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.asarray(values), size=(1000, len(values)))
    low, high = np.percentile(np.percentile(drawn, _USUAL, axis=1), [2.5, 97.5])
    return float(low), float(high)


def switch_s(samples: Samples) -> float:
    """Return what a step gains per logical worker, less a micro-batch; never below 0."""
    counts = sorted(samples.steps_s)
    times = [usual(samples.steps_s[n]) for n in counts]
    slope = float(np.polyfit(counts, times, 1)[0])
    return max(0.0, slope - usual(samples.unslowed_s))
