"""Fidelity: how far a simulation is from the execution that it predicts, job by job.

A *pair* is an executed run and the simulation of the same workload under the same policy, fed with
the measured profile. Several executions of one workload are repeats, and intervals are over them:
percentile bootstrap (Efron 1979) of the mean over repeats, with the random numbers seeded.

- JCT error of a job: simulated JCT / measured JCT - 1. Its mean absolute value and 95th percentile
  are over the jobs of a run; the error of the makespan likewise.
- At the run's pace: the same with a second simulation, of a machine on which all training takes
  longer or shorter by one factor, that by which the run's steps differed from the profile in total.
  What is left of the error does not come from the machine's speed on the day.
- Decisions: starts, preemptions, resizes and migrations, in order. Both worlds decided alike if
  the sequences are equal; otherwise the first that differs is named, with what each world had seen
  last.

Reads run directories only. Leaves out: why an error is what it is, beyond where the time went.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.metrics import metrics_of
from reports.series import series
from reports.tables import RunTables, read
from traces.errors import DataError
from traces.runlog import RunLog

MANIFEST = "validation.json"
_DECIDED = ("start", "preempt", "resize", "migrate")
_SEEN = ("submit", "finish", "fail", "give_up", "device_lost", "device_returned")
_RESAMPLES = 2_000
Floats = NDArray[np.float64]
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first decision that differs: its number from 1, and what each world decided, and why."""

    number: int
    measured: str
    simulated: str
    measured_after: str
    simulated_after: str

    def __str__(self) -> str:
        return (
            f"decision {self.number}: measured {self.measured} (after {self.measured_after}),"
            f" simulated {self.simulated} (after {self.simulated_after})"
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One execution and its simulation; errors are relative, times in seconds.

    ``job_error``: by job in rank order, NaN where one of the two did not finish it.
    """

    measured: RunTables
    simulated: RunTables
    job_error: Floats
    makespan_error: float
    decisions: int
    divergence: Divergence | None
    metrics: Mapping[str, tuple[float | None, float | None]]
    same_bits: int
    other_bits: int
    unknown_bits: int

    @property
    def mean_error(self) -> float:
        """Mean absolute JCT error."""
        return float(np.nanmean(np.abs(self.job_error)))

    @property
    def p95_error(self) -> float:
        """95th percentile of the absolute JCT error."""
        return float(np.nanquantile(np.abs(self.job_error), 0.95))


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One policy: its pairs, and the mean of each error over them with its 95 % interval.

    ``at_pace``: the same executions with the simulations at their own pace, if there are any.
    """

    policy: str
    pairs: tuple[Pair, ...]
    at_pace: Fidelity | None = None

    def over_repeats(self, values: Sequence[float]) -> tuple[float, Bounds | None]:
        """Return the mean over repeats, and its interval if there are at least two."""
        found = np.asarray(values, dtype=np.float64)
        if len(found) < 2:
            return float(found.mean()), None
        rng = np.random.default_rng(2208)
        drawn = found[rng.integers(len(found), size=(_RESAMPLES, len(found)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(found.mean()), (float(low), float(high))

    @property
    def mean_error(self) -> tuple[float, Bounds | None]:
        """Mean absolute JCT error over jobs, then over repeats."""
        return self.over_repeats([pair.mean_error for pair in self.pairs])

    @property
    def p95_error(self) -> tuple[float, Bounds | None]:
        """95th percentile over jobs, mean over repeats."""
        return self.over_repeats([pair.p95_error for pair in self.pairs])

    @property
    def bias(self) -> tuple[float, Bounds | None]:
        """Mean signed JCT error: above 0 the simulation is slower."""
        return self.over_repeats([float(np.nanmean(pair.job_error)) for pair in self.pairs])

    @property
    def makespan_error(self) -> tuple[float, Bounds | None]:
        """Mean absolute error of the makespan over repeats."""
        return self.over_repeats([abs(pair.makespan_error) for pair in self.pairs])

    @property
    def decided_alike(self) -> int:
        """Repeats in which both worlds took the same decisions in the same order."""
        return sum(pair.divergence is None for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, for JSON."""
        found: dict[str, Any] = {"policy": self.policy, "repeats": len(self.pairs)}
        found |= self._errors()
        found["at_pace"] = None if self.at_pace is None else self.at_pace._errors()
        found["jobs"] = len(self.pairs[0].job_error)
        for name in ("same_bits", "other_bits", "unknown_bits"):
            found[name] = sum(getattr(pair, name) for pair in self.pairs)
        found["shares"] = shares(self.pairs)
        return found

    def _errors(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("mean_error", "p95_error", "bias", "makespan_error"):
            value, interval = getattr(self, name)
            found[name] = {"value": value, "interval": interval}
        found["decided_alike"] = self.decided_alike
        found["divergences"] = [str(p.divergence) for p in self.pairs if p.divergence is not None]
        return found


def open_validation(folder: Path) -> list[Fidelity]:
    """Read a folder that ``tandem validate`` left; its manifest names the pairs of each policy.

    Raises :class:`DataError` if it is none, or if a run cannot be read.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        named = [
            (p["policy"], p["executed"], p["simulated"], p.get("paced")) for p in manifest["pairs"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "not a validation", file=file, expected=f"what `tandem validate` leaves ({error})"
        ) from error
    if not named:
        raise DataError("a validation without runs", file=file)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    paced: dict[str, list[Pair]] = defaultdict(list)
    for policy, executed, simulated, at_pace in named:
        measured = RunLog.open(folder / executed)
        pairs[policy].append(compared(measured, RunLog.open(folder / simulated)))
        if at_pace is not None:
            paced[policy].append(compared(measured, RunLog.open(folder / at_pace)))
    return [
        Fidelity(
            policy=policy,
            pairs=tuple(found),
            at_pace=Fidelity(policy=policy, pairs=tuple(paced[policy])) if paced[policy] else None,
        )
        for policy, found in pairs.items()
    ]


def compared(measured: RunLog, simulated: RunLog) -> Pair:
    """Compare an executed run with its simulation. Raises :class:`DataError` for other jobs."""
    real, model = read(measured, "measured"), read(simulated, "simulated")
    if not real.jobs.job_id.equals(model.jobs.job_id):
        raise DataError("the two runs have other jobs", file=simulated.path)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = model.jobs.jct_s / real.jobs.jct_s - 1.0
    spans = [t.end_s - t.start_s for t in (real, model)]
    decided = [decisions(log) for log in (measured, simulated)]
    numbers = [metrics_of(t, series(t)) for t in (real, model)]
    names = ("makespan_s", "mean_jct_s", "mean_queueing_s", "allocation_ratio", "utilisation")
    bits = measured.table("training")["same_bits"] if measured.has("training") else pd.Series([])
    known = bits.dropna().astype(bool)
    return Pair(
        measured=real,
        simulated=model,
        job_error=error,
        makespan_error=spans[1] / spans[0] - 1.0,
        decisions=len(decided[0]),
        divergence=_first_other(decided[0], decided[1]),
        metrics={name: (numbers[0].get(name), numbers[1].get(name)) for name in names},
        same_bits=int(known.sum()),
        other_bits=int((~known).sum()),
        unknown_bits=len(bits) - len(known),
    )


def decisions(log: RunLog) -> list[tuple[str, str]]:
    """(decision, what the world had told last before it), in order."""
    events = log.table("events")
    seen = "the beginning"
    found: list[tuple[str, str]] = []
    for event in events.itertuples():
        said = f"{event.kind} of {event.job_id} at {event.time_s:.2f} s"
        if event.kind in _SEEN:
            seen = said
        elif event.kind in _DECIDED:
            found.append((f"{event.kind} {event.job_id}", seen))
    return found


def _first_other(
    measured: Sequence[tuple[str, str]], simulated: Sequence[tuple[str, str]]
) -> Divergence | None:
    for number in range(max(len(measured), len(simulated))):
        real = measured[number] if number < len(measured) else ("nothing more", "the end")
        model = simulated[number] if number < len(simulated) else ("nothing more", "the end")
        if real[0] != model[0]:
            return Divergence(
                number=number + 1,
                measured=real[0],
                simulated=model[0],
                measured_after=real[1],
                simulated_after=model[1],
            )
    return None


def shares(pairs: Sequence[Pair]) -> dict[str, float]:
    """Where the held device time of the executed runs went, as shares; empty if it is not known."""
    total: dict[str, float] = defaultdict(float)
    for pair in pairs:
        said = (pair.measured.log.record.get("executor") or {}).get("device_s") or {}
        for name, seconds in said.items():
            total[name] += float(seconds)
    whole = sum(total.values())
    return {name: seconds / whole for name, seconds in total.items()} if whole > 0 else {}
