"""Time and memory of workloads beside one another, in one run on one device.

A shared machine is not the same from minute to minute, so workloads that are to be compared take
turns, and ratios are formed turn by turn; what is reported is their median. On a CPU the clock is
the process's own time, which others do not lengthen (but their use of caches does); on CUDA it is
wall time between synchronisations. Memory and traffic are measured in steps of their own, because
watching costs time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from models.bench.memory import peak_bytes
from models.bench.peaks import Peak
from models.bench.traffic import traffic_bytes
from models.bench.workload import Prepared, Workload
from models.longer.flops import mfu

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step of a workload costs.

    ``seconds``: of each timed step, in order. ``samples``, ``events``: of a step. ``flops``: model
    operations (forward and backward, without recomputation); ``traffic``: bytes, as ``traffic``
    counts them. ``peak_bytes``: the most held during a step beyond ``state_bytes``, which stay.
    ``half``: is any part in bfloat16.
    """

    seconds: tuple[float, ...]
    samples: int
    events: int
    flops: int
    traffic: int
    peak_bytes: int
    state_bytes: int
    half: bool

    @property
    def median_s(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def samples_per_s(self) -> float:
        """Samples per second at the median."""
        return self.samples / self.median_s

    @property
    def flops_per_s(self) -> float:
        """Model operations per second at the median."""
        return self.flops / self.median_s

    @property
    def bytes_per_s(self) -> float:
        """Achieved bandwidth at the median."""
        return self.traffic / self.median_s

    def mfu(self, peak: Peak) -> float:
        """Return the share of ``peak`` in the precision that the step computes in."""
        best = peak.half_flops_per_s if self.half else peak.full_flops_per_s
        return mfu(self.flops, seconds=self.median_s, peak_flops_per_s=best)

    def bandwidth_share(self, peak: Peak) -> float:
        """Return the achieved bandwidth over that of ``peak``."""
        return self.bytes_per_s / peak.bytes_per_s


def costs(
    workloads: Mapping[str, Workload],
    device: torch.device | str = "cpu",
    *,
    repeats: int = 5,
    clock: Clock | None = None,
) -> dict[str, Cost]:
    """Measure workloads by name, taking turns, ``repeats`` steps each after two to warm up.

    ``clock``: None takes processor time on a CPU and wall time elsewhere. All workloads are held at
    once. Raises ModelError as workloads do.
    """
    device = torch.device(device)
    clock = clock or clock_of(device)
    held = {name: Prepared(workload, device) for name, workload in workloads.items()}
    for prepared in held.values():
        prepared.step()  # rows and moments come into being
    peaks = {name: peak_bytes(prepared.step, device) for name, prepared in held.items()}
    traffic = {name: traffic_bytes(prepared.step, device) for name, prepared in held.items()}
    taken = alternately({name: p.step for name, p in held.items()}, repeats, clock)
    return {
        name: Cost(
            seconds=tuple(taken[name]),
            samples=prepared.workload.batch,
            events=prepared.events,
            flops=prepared.flops,
            traffic=traffic[name],
            peak_bytes=peaks[name],
            state_bytes=prepared.state_bytes,
            half=bool(prepared.workload.execution.half),
        )
        for name, prepared in held.items()
    }


def alternately(
    calls: Mapping[str, Callable[[], None]], repeats: int, clock: Clock
) -> dict[str, list[float]]:
    """Return the seconds of ``repeats`` calls of each, the calls taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = clock()
            call()
            taken[name].append(clock() - began)
    return taken


def clock_of(device: torch.device) -> Clock:
    """Return processor time for a CPU, wall time for anything else."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def ratio(cost: Cost, base: Cost) -> float:
    """Return how many times as long a step takes as one of ``base``: the median over turns."""
    return statistics.median(a / b for a, b in zip(cost.seconds, base.seconds, strict=True))
