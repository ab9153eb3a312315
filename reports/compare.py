"""Comparison of runs: differences against the first, with bootstrap confidence intervals.

Two kinds of chance can stand behind a difference, and each has its own interval:

* **Seeds.** Runs that share everything but the seed are one group; their metrics are averaged.
  Between two groups the seeds are drawn again with replacement (in pairs where both groups have
  the same seeds), and the interval holds for every metric.
* **Jobs.** Between two single runs of the same workload, jobs are paired and drawn again in moving
  blocks over submission order (Kuensch 1989), because neighbours wait in the same queue. Blocks
  are ceil(sqrt(n)) jobs long: longer than the n^(1/3) of short memory, since congestion lasts.
  This answers "would another stretch of such jobs say the same", for metrics that are means or
  quantiles over jobs. Makespan, ratios and counts belong to the run as a whole and get none.

Intervals are percentile intervals, and the random numbers are seeded: the same runs give the same
table. Leaves out: corrections for looking at many metrics at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.definitions import definition
from reports.fairness import slowdowns
from reports.metrics import BOUND_S, Number, metrics_of
from reports.series import series
from reports.tables import Jobs, RunTables, read
from traces.errors import UsageError
from traces.runlog import RunLog

Floats = NDArray[np.float64]

Bounds = tuple[float, float]
Drawn = tuple[Bounds, Bounds | None]

_QUANTILES = {"median": 0.5, "p50": 0.5, "p90": 0.9, "p99": 0.99}
# What a record says that does not decide the run; the workload is compared by content.
_DECIDES_NOTHING = (
    "counts", "created", "name", "revision", "span", "status", "versions", "wall_s", "workload",
)  # fmt: skip
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _WORK = 1_000, 100, 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one run (or group of seeds) against the baseline's.

    ``value`` and ``difference`` are None where a run has no such metric; ``relative`` is the
    difference over the baseline's value. ``interval`` bounds the difference and
    ``relative_interval`` the relative difference; they are None where none can be given.
    """

    value: Number
    difference: Number
    relative: float | None
    interval: Bounds | None
    relative_interval: Bounds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All metrics of several runs or groups of seeds against the first of them.

    ``labels[0]`` is the baseline; ``rows[metric][i]`` is the difference of ``labels[i]``.
    ``methods[i]`` says where the intervals of ``labels[i]`` come from, or why there are none, and
    ``directories[i]`` which run directories it is.
    """

    labels: tuple[str, ...]
    rows: dict[str, tuple[Difference, ...]]
    methods: tuple[str, ...]
    directories: tuple[tuple[str, ...], ...]
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        return {
            "baseline": self.labels[0],
            "confidence": self.confidence,
            "runs": [
                {
                    "label": label,
                    "interval": method,
                    "directories": list(self.directories[i]),
                    "metrics": {
                        name: {
                            "unit": definition(name).unit,
                            "value": row[i].value,
                            "difference": row[i].difference,
                            "relative": row[i].relative,
                            "interval": row[i].interval,
                            "relative_interval": row[i].relative_interval,
                        }
                        for name, row in self.rows.items()
                    },
                }
                for i, (label, method) in enumerate(zip(self.labels, self.methods, strict=True))
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A run with its metrics."""

    tables: RunTables
    metrics: Mapping[str, Number]


def compare(runs: Sequence[RunLog], *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two or more run directories; the first (with its other seeds) is the baseline.

    Raises :class:`traces.errors.UsageError` for fewer than two runs, and
    :class:`traces.errors.DataError` when tables cannot be read.
    """
    if len(runs) < 2:
        raise UsageError("compare needs at least two runs")
    everything = [Read(tables=t, metrics=metrics_of(t, series(t))) for t in read_all(runs)]
    return compare_read(everything, confidence=confidence, seed=seed)


def read_all(runs: Sequence[RunLog]) -> list[RunTables]:
    """Read runs and give each a label of its own, as short as it can be.

    That is the run's name, and its folder where names repeat. Of several names the words (between
    dashes) with which all begin and end are left out: ``week-fifo-s1`` and ``week-srtf-s1`` are
    ``fifo`` and ``srtf``.
    """
    names = [str(run.record.get("name") or run.path.name) for run in runs]
    if len(set(names)) < len(names):
        pairs = zip(names, runs, strict=True)
        names = [n if names.count(n) == 1 else f"{n} ({run.path.name})" for n, run in pairs]
    labels = [
        name if names.count(name) == 1 else f"{name} #{names[:i].count(name) + 1}"
        for i, name in enumerate(names)
    ]
    return [read(run, label) for run, label in zip(runs, _own_parts(labels), strict=True)]


def _own_parts(labels: Sequence[str]) -> list[str]:
    words = [label.split("-") for label in labels]
    if len(labels) < 2:
        return list(labels)
    room = min(map(len, words)) - 1
    before = 0
    while before < room and len({tuple(w[: before + 1]) for w in words}) == 1:
        before += 1
    after = 0
    while before + after < room and len({tuple(w[len(w) - after - 1 :]) for w in words}) == 1:
        after += 1
    return ["-".join(w[before : len(w) - after]) for w in words]


def compare_read(
    everything: Sequence[Read], *, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare runs that are read already (see :func:`compare`)."""
    groups = group_by_seed(everything)
    names = list(dict.fromkeys(name for item in everything for name in item.metrics))
    labels = tuple(g[0].tables.label + (f" ({len(g)} seeds)" if len(g) > 1 else "") for g in groups)
    means = [
        {name: _mean([item.metrics.get(name) for item in g]) for name in names} for g in groups
    ]
    methods = ["baseline"]
    intervals: list[dict[str, Drawn]] = [{}]
    for group in groups[1:]:
        rng = np.random.default_rng(seed)
        method, found = _intervals(groups[0], group, names, confidence, rng)
        methods.append(method)
        intervals.append(found)
    rows = {
        name: tuple(
            _difference(mean[name], means[0][name], found.get(name), first=i == 0)
            for i, (mean, found) in enumerate(zip(means, intervals, strict=True))
        )
        for name in names
    }
    return Comparison(
        labels=labels,
        rows=rows,
        methods=tuple(methods),
        directories=tuple(tuple(str(i.tables.log.path) for i in g) for g in groups),
        confidence=confidence,
    )


def _difference(value: Number, base: Number, drawn: Drawn | None, *, first: bool) -> Difference:
    if first or value is None or base is None:
        return Difference(
            value=value, difference=None, relative=None, interval=None, relative_interval=None
        )
    relative = (value - base) / abs(base) if base else None
    return Difference(
        value=value,
        difference=value - base,
        relative=relative,
        interval=None if drawn is None else drawn[0],
        relative_interval=None if drawn is None or relative is None else drawn[1],
    )


def _mean(values: Sequence[Number]) -> Number:
    if len(values) == 1:
        return values[0]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def group_by_seed(everything: Sequence[Read]) -> list[list[Read]]:
    """Group runs that share everything but the seed, in order of first appearance.

    Runs of one configuration and one seed stay apart, and so do all when there is but one group.
    """
    groups: dict[str, list[Read]] = {}
    for item in everything:
        groups.setdefault(_configuration(item.tables.log.record), []).append(item)
    together: list[list[Read]] = []
    for group in groups.values():
        seeds = [_seed(item) for item in group]
        distinct = len(set(seeds)) == len(seeds) and None not in seeds
        together.extend([group] if distinct else [[item] for item in group])
    return together if len(together) > 1 else [[item] for item in everything]


def _seed(item: Read) -> object:
    value: object = item.tables.log.record.get("seed")
    return value


def _configuration(record: Mapping[str, Any]) -> str:
    """Everything that decides a run, but for seeds, as one string."""
    workload = record.get("workload") or {}
    options = workload.get("options") or {}
    if "seed" in options:  # generated: another seed is another sample of the same thing
        load: Any = (workload.get("format"), options)
    else:
        load = workload.get("digest")
    decided = {k: v for k, v in record.items() if k not in _DECIDES_NOTHING}
    return json.dumps(_without_seeds([load, decided]), sort_keys=True, default=str)


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_seeds(v) for k, v in value.items() if k != "seed"}
    return [_without_seeds(v) for v in value] if isinstance(value, list | tuple) else value


def _intervals(
    base: Sequence[Read],
    other: Sequence[Read],
    names: Sequence[str],
    confidence: float,
    rng: np.random.Generator,
) -> tuple[str, dict[str, Drawn]]:
    if len(base) > 1 and len(other) > 1:
        return _over_seeds(base, other, names, confidence, rng)
    if len(base) > 1 or len(other) > 1:
        return "no interval: one side has several seeds and the other only one", {}
    return _over_jobs(base[0].tables, other[0].tables, confidence, rng)


def _over_seeds(
    base: Sequence[Read],
    other: Sequence[Read],
    names: Sequence[str],
    confidence: float,
    rng: np.random.Generator,
) -> tuple[str, dict[str, Drawn]]:
    paired = sorted(map(str, map(_seed, base))) == sorted(map(str, map(_seed, other)))
    if paired:
        base, other = (sorted(group, key=lambda i: str(_seed(i))) for group in (base, other))
    first = rng.integers(len(base), size=(_MOST_RESAMPLES, len(base)))
    second = first if paired else rng.integers(len(other), size=(_MOST_RESAMPLES, len(other)))
    found = {}
    for name in names:
        a, b = ([item.metrics.get(name) for item in group] for group in (base, other))
        if None in a or None in b:
            continue
        drawn_a = np.array(a, dtype=np.float64)[first].mean(axis=1)
        drawn_b = np.array(b, dtype=np.float64)[second].mean(axis=1)
        found[name] = _bounds(drawn_a, drawn_b, confidence)
    how = "paired by seed" if paired else f"{len(base)} and {len(other)} different seeds"
    few = "; with so few seeds it is a rough guide" if min(len(base), len(other)) < 5 else ""
    return f"bootstrap over seeds ({how}), {_MOST_RESAMPLES} resamples{few}", found


def _over_jobs(
    base: RunTables, other: RunTables, confidence: float, rng: np.random.Generator
) -> tuple[str, dict[str, Drawn]]:
    digests = [(t.log.record.get("workload") or {}).get("digest") for t in (base, other)]
    same_ids = base.jobs.job_id.equals(other.jobs.job_id)  # in rank order, so row by row
    if digests[0] != digests[1] or not same_ids:
        return "no interval: the runs have different workloads", {}
    both = base.jobs.finished & other.jobs.finished
    n = int(both.sum())
    if n < 2:
        return "no interval: fewer than two jobs finished in both runs", {}
    sides = [_per_job(t.jobs, both) for t in (base, other)]
    resamples = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, _WORK // n))
    block = math.ceil(math.sqrt(n))
    drawn: dict[str, list[tuple[float, float]]] = {}
    for _ in range(resamples):
        weight = _block_weights(n, block, rng)
        first, second = (side.statistics(weight) for side in sides)
        for name, value in second.items():
            drawn.setdefault(name, []).append((first[name], value))
    dropped = int((base.jobs.finished | other.jobs.finished).sum()) - n
    words = (
        f"moving-block bootstrap over {n:,} paired jobs in submission order (blocks of {block:,}),"
        f" {resamples} resamples"
    )
    if dropped:
        words += f"; {dropped:,} jobs that finished in one run only are not in the interval"
    found = {}
    for name, pairs in drawn.items():
        base_drawn, other_drawn = np.array(pairs).T
        if not np.isnan(base_drawn + other_drawn).any():
            found[name] = _bounds(base_drawn, other_drawn, confidence)
    return words, found


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerJob:
    """Known values per job by metric stem, ascending, and the jobs in that order."""

    ascending: dict[str, Floats]
    order: dict[str, NDArray[np.intp]]

    def statistics(self, weight: Floats) -> dict[str, float]:
        """Weighted mean and quantiles of every stem, under the metrics' names."""
        found: dict[str, float] = {}
        for stem in self.order:
            order = self.order[stem]
            drawn = weight[order]
            share = np.cumsum(drawn)
            total = float(share[-1]) if len(share) else 0.0
            known = self.ascending[stem]
            found[f"mean_{stem}"] = float(known @ drawn) / total if total else np.nan
            parts = ("median", "p90", "p99") if stem.endswith("_s") else ("p50", "p99")
            for part in parts:
                place = np.searchsorted(share, _QUANTILES[part] * total, side="left")
                found[f"{part}_{stem}"] = float(known[place]) if total else np.nan
        return found


def _per_job(jobs: Jobs, which: NDArray[np.bool_]) -> _PerJob:
    values = {
        "jct_s": jobs.jct_s[which],
        "queueing_s": jobs.queueing_s[which],
        "slowdown": slowdowns(jobs)[which],
        "bounded_slowdown": slowdowns(jobs, BOUND_S)[which],
    }
    order = {}
    for stem, x in values.items():
        sorted_places = np.argsort(x, kind="stable")
        order[stem] = sorted_places[: int((~np.isnan(x)).sum())]  # NaN sorts last
    return _PerJob(ascending={s: x[order[s]] for s, x in values.items()}, order=order)


def _block_weights(n: int, block: int, rng: np.random.Generator) -> Floats:
    """How often each job is drawn when blocks are drawn until there are n jobs or more."""
    starts = rng.integers(n - block + 1, size=math.ceil(n / block))
    change = np.zeros(n + 1)
    np.add.at(change, starts, 1.0)
    np.add.at(change, starts + block, -1.0)
    return np.cumsum(change)[:n]


def _bounds(base: Floats, other: Floats, confidence: float) -> Drawn:
    """Percentile intervals of the difference, and of the relative one where no base is 0."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(other - base, tails).tolist()
    if not base.all():
        return (low, high), None
    relative_low, relative_high = np.quantile((other - base) / np.abs(base), tails).tolist()
    return (low, high), (relative_low, relative_high)
