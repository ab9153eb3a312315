"""Exact step functions of time, and how to draw them without losing a peak.

Everything a run log says about load (GPUs held, jobs waiting, capacity) is a function that is
constant between events. :class:`Steps` keeps it exactly. Integrals and time averages are exact;
:meth:`Steps.bins` gives, for each bin of a plot, the time-weighted mean and the lowest and highest
value inside it, so a peak narrower than a pixel is still drawn.

Source: the run-log tables (``traces/runlog.py``); nothing is taken from the ``samples`` table.
Leaves out: anything between two events that the log does not record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.tables import MILLI, RunTables

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """A right-continuous step function: ``value[i]`` from ``time_s[i]`` until the next time.

    It is 0 before ``time_s[0]`` and keeps its last value for ever. Times ascend strictly.
    """

    time_s: Floats
    value: Floats

    @classmethod
    def from_changes(cls, time_s: NDArray[Any], change: NDArray[Any], scale: float = 1.0) -> Steps:
        """Sum changes in any order; pass integers and a ``scale`` to keep the sums exact."""
        if len(time_s) == 0:
            return cls(np.zeros(0), np.zeros(0))
        order = np.argsort(time_s, kind="stable")
        times = np.asarray(time_s, dtype=np.float64)[order]
        total = np.cumsum(change[order])
        last = np.append(times[1:] != times[:-1], True)  # all of one instant is one step
        times, total = times[last], total[last]
        moved = np.append(total[0] != 0, total[1:] != total[:-1])
        return cls(times[moved], total[moved] * scale)

    @classmethod
    def from_intervals(
        cls,
        start_s: NDArray[Any],
        end_s: NDArray[Any],
        weight: NDArray[Any],
        scale: float = 1.0,
    ) -> Steps:
        """Sum of ``weight * scale`` over the intervals ``[start_s, end_s)`` that hold at a time."""
        return cls.from_changes(
            np.concatenate([start_s, end_s]), np.concatenate([weight, -weight]), scale
        )

    def at(self, time_s: Floats) -> Floats:
        """Value at each instant (after everything that happened in it)."""
        padded = np.concatenate([[0.0], self.value])
        found: Floats = padded[np.searchsorted(self.time_s, time_s, side="right")]
        return found

    def accumulated(self, time_s: Floats) -> Floats:
        """Integral from the beginning to each instant (value times seconds)."""
        if len(self.time_s) == 0:
            return np.zeros(np.shape(time_s))
        area = np.concatenate([[0.0], np.cumsum(self.value[:-1] * np.diff(self.time_s))])
        place = np.searchsorted(self.time_s, time_s, side="right") - 1
        inside = np.maximum(place, 0)
        grown = area[inside] + self.value[inside] * (time_s - self.time_s[inside])
        result: Floats = np.where(place < 0, 0.0, grown)
        return result

    def integral(self, start_s: float, end_s: float) -> float:
        """Integral over ``[start_s, end_s]``."""
        low, high = self.accumulated(np.array([start_s, end_s]))
        return float(high - low)

    def mean(self, start_s: float, end_s: float) -> float | None:
        """Time average over ``[start_s, end_s]``; None for an empty window."""
        return self.integral(start_s, end_s) / (end_s - start_s) if end_s > start_s else None

    def peak(self) -> float:
        """Largest value; 0 for a function without steps."""
        return float(self.value.max()) if len(self.value) else 0.0

    def bins(self, edges_s: Floats) -> Bins:
        """Time-weighted mean, lowest and highest value in each bin between ascending edges."""
        mean = np.diff(self.accumulated(edges_s)) / np.diff(edges_s)
        padded = np.concatenate([[0.0], self.value])
        low = np.searchsorted(self.time_s, edges_s[:-1], side="right")
        high = np.searchsorted(self.time_s, edges_s[1:], side="left") + 1
        pairs = np.column_stack([low, high]).ravel()
        padded = np.append(padded, padded[-1])  # reduceat wants every index inside
        return Bins(
            edges_s=edges_s,
            mean=mean,
            low=np.minimum.reduceat(padded, pairs)[::2],
            high=np.maximum.reduceat(padded, pairs)[::2],
        )

    def plus(self, other: Steps, sign: int = 1) -> Steps:
        """Return ``self + sign * other``."""
        times = np.union1d(self.time_s, other.time_s)
        value = self.at(times) + sign * other.at(times)
        if len(times) == 0:
            return Steps(times, value)
        moved = np.append(value[0] != 0, value[1:] != value[:-1])
        return Steps(times[moved], value[moved])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A step function over bins: ``edges_s`` (n + 1), and ``mean``, ``low``, ``high`` (n each)."""

    edges_s: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The load of a run over time, exact.

    ``allocated``, ``progressing`` and ``capacity`` are GPUs by GPU type (shares as fractions):
    those that jobs hold (also while they leave them to a service), those on which they get on, and
    those in service; ``serving``: those that online services use, ``serving_waits``:
    those that they wait for;
    ``demand_gpus`` are the GPUs asked for by all active jobs, ``waiting_gpus`` by those of them
    that hold nothing.
    """

    allocated: dict[str, Steps]
    progressing: dict[str, Steps]
    capacity: dict[str, Steps]
    serving: dict[str, Steps]
    serving_waits: Steps
    active_jobs: Steps
    running_jobs: Steps
    waiting_jobs: Steps
    demand_gpus: Steps
    waiting_gpus: Steps

    def total(self, name: str) -> Steps:
        """Sum over GPU types of ``allocated``, ``progressing``, ``capacity`` or ``serving``."""
        sums = Steps(np.zeros(0), np.zeros(0))
        for steps in getattr(self, name).values():
            sums = sums.plus(steps)
        return sums


def series(tables: RunTables) -> Series:
    """Derive the exact step functions of a run from its tables."""
    holds, jobs = tables.holds, tables.jobs
    allocated, progressing, capacity = {}, {}, {}
    serving, leaving, waits = _of_services(tables)
    change = tables.device_changes
    for code, name in enumerate(tables.gpu_types):
        of = holds.gpu_type == code
        weight = holds.milli[of]
        allocated[name] = Steps.from_intervals(
            holds.start_s[of], holds.end_s[of], weight, 1 / MILLI
        )
        progressing[name] = Steps.from_intervals(
            holds.begin_s[of], holds.end_s[of], weight, 1 / MILLI
        )
        if name in leaving:
            allocated[name] = allocated[name].plus(leaving[name])
        of = change.gpu_type == code
        base = np.array([tables.gpus_by_type.get(name, 0)], dtype=np.int64)
        capacity[name] = Steps.from_changes(
            np.concatenate([[min(0.0, tables.start_s)], change.time_s[of]]),
            np.concatenate([base, change.change[of]]),
        )
    active = jobs.active
    ones = np.ones(int(active.sum()), dtype=np.int64)
    span = (jobs.submit_s[active], jobs.end_s[active])
    first = holds.first_of_interval
    running = (holds.start_s[first], holds.end_s[first])
    active_jobs = Steps.from_intervals(*span, ones)
    running_jobs = Steps.from_intervals(*running, np.ones(int(first.sum()), dtype=np.int64))
    demand = Steps.from_intervals(*span, jobs.milli[active], 1 / MILLI)
    served = Steps.from_intervals(*running, jobs.milli[holds.job[first]], 1 / MILLI)
    return Series(
        allocated=allocated,
        progressing=progressing,
        capacity=capacity,
        serving=serving,
        serving_waits=waits,
        active_jobs=active_jobs,
        running_jobs=running_jobs,
        waiting_jobs=active_jobs.plus(running_jobs, -1),
        demand_gpus=demand,
        waiting_gpus=demand.plus(served, -1),
    )


def _of_services(tables: RunTables) -> tuple[dict[str, Steps], dict[str, Steps], Steps]:
    """What services use by type, what jobs are still leaving for them, and what they wait for."""
    loans = tables.loans
    none = Steps(np.zeros(0), np.zeros(0))
    if loans is None:
        return dict.fromkeys(tables.gpu_types, none), {}, none
    serving, leaving = {}, {}
    for code, name in enumerate(tables.gpu_types):
        of = loans.gpu_type == code
        used = of & loans.got
        left = of & loans.reclaimed
        serving[name] = Steps.from_intervals(
            loans.ready_s[used], loans.end_s[used], np.ones(int(used.sum()), dtype=np.int64)
        )
        leaving[name] = Steps.from_intervals(
            loans.asked_s[left], loans.ready_s[left], np.ones(int(left.sum()), dtype=np.int64)
        )
    ones = np.ones(len(loans.asked_s), dtype=np.int64)
    return serving, leaving, Steps.from_intervals(loans.asked_s, loans.ready_s, ones)
