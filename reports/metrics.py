"""The metrics of a run, under the glossary's names, and their breakdowns.

Every definition stands in ``reports/definitions.py`` (and so in ``docs/metrics.md``). Allocation
ratio and utilisation are exact integrals over the allocations table; only fragmentation comes
from samples. A metric that a run cannot answer (no job finished, no capacity) is None, never 0.

Leaves out: warm-up and cool-down. The window is the whole run, first submission to last end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.fairness import jain, rhos, service_shares, slowdowns
from reports.series import Series, Steps, series
from reports.tables import MILLI, RunTables, read
from traces.runlog import RunLog

Number = float | int | None
Floats = NDArray[np.float64]

HOUR_S = 3600.0
BOUND_S = 10.0
_ROUNDING = 1e-9
_QUANTILES = {"median": 0.5, "p50": 0.5, "p90": 0.9, "p99": 0.99}

# Upper bounds (GPUs) of the size classes that the literature on these traces uses.
SIZE_CLASSES: tuple[tuple[str, float], ...] = (
    ("CPU only", 0),
    ("below 1", 0.999),
    ("1", 1),
    ("2-4", 4),
    ("5-8", 8),
    ("9-16", 16),
    ("above 16", np.inf),
)


def metrics(run: RunLog) -> dict[str, Number]:
    """Return every metric of a run directory (``reports.definitions.METRICS`` says what each is).

    Units are in the names; ratios are fractions. Raises :class:`traces.errors.DataError` when the
    tables cannot be read.
    """
    tables = read(run)
    return metrics_of(tables, series(tables))


def metrics_of(tables: RunTables, load: Series) -> dict[str, Number]:
    """Return every metric of a run that is read already."""
    jobs = tables.jobs
    done = jobs.finished
    slow = slowdowns(jobs)
    result: dict[str, Number] = {}
    result |= _spread("jct_s", jobs.jct_s[done], "mean median p90 p99")
    result |= _spread("queueing_s", jobs.queueing_s[done], "mean median p90 p99")
    first = jobs.submit_s[jobs.active]
    result["makespan_s"] = float(jobs.finish_s[done].max() - first.min()) if done.any() else None
    result |= _spread("slowdown", slow, "mean p50 p99")
    result |= _spread("bounded_slowdown", slowdowns(jobs, BOUND_S), "mean p50 p99")
    result |= _occupancy(tables, load)
    result["mean_fragmentation"] = _fragmentation(tables)
    result |= _service_level(tables, load)
    for name, column in (("held", "service"), ("lost", "lost"), ("overhead", "overhead")):
        result[f"gpu_hours_{name}"] = float(getattr(jobs, f"{column}_gpu_s").sum()) / HOUR_S
    result["gpu_hours_done"] = _done_gpu_s(tables) / HOUR_S
    rho = rhos(jobs, load.demand_gpus, tables.num_gpus)
    result |= _spread("rho", rho, "mean p50 p99")
    known = rho[~np.isnan(rho)]
    result["max_rho"] = float(known.max()) if len(known) else None
    result["unfair_fraction"] = float((known > 1 + _ROUNDING).mean()) if len(known) else None
    result["jain_users"] = jain(service_shares(jobs, jobs.user).to_numpy(dtype=np.float64))
    result["jain_vcs"] = jain(service_shares(jobs, jobs.vc).to_numpy(dtype=np.float64))
    result["jain_slowdown"] = jain(slow)
    status = jobs.status.value_counts()
    result["submitted_jobs"] = len(jobs) - int(status.get("unsubmitted", 0))
    for outcome in ("finished", "failed", "running", "waiting", "rejected", "unsubmitted"):
        result[f"{outcome}_jobs"] = int(status.get(outcome, 0))
    for name in ("preemptions", "migrations", "resizes", "failures"):
        result[name] = int(getattr(jobs, name).sum())
    return result


def _spread(stem: str, values: Floats, parts: str) -> dict[str, Number]:
    known = values[~np.isnan(values)]
    names = parts.split()
    if not len(known):
        return {f"{part}_{stem}": None for part in names}
    wanted = [_QUANTILES[part] for part in names if part != "mean"]
    found = dict(
        zip([p for p in names if p != "mean"], np.quantile(known, wanted).tolist(), strict=True)
    )
    found["mean"] = float(known.mean())
    return {f"{part}_{stem}": float(found[part]) for part in names}


def _occupancy(tables: RunTables, load: Series) -> dict[str, Number]:
    window = (tables.start_s, tables.end_s)

    def ratio(of: dict[str, Steps], names: tuple[str, ...]) -> float | None:
        capacity = sum(load.capacity[n].integral(*window) for n in names)
        held = sum(of[n].integral(*window) + load.serving[n].integral(*window) for n in names)
        return held / capacity if capacity > 0 else None

    types = tables.gpu_types
    result: dict[str, Number] = {
        "allocation_ratio": ratio(load.allocated, types),
        "utilisation": ratio(load.progressing, types),
    }
    for name in types:
        if tables.gpus_by_type[name]:
            result[f"allocation_ratio[{name}]"] = ratio(load.allocated, (name,))
    for name in types:
        if tables.gpus_by_type[name]:
            result[f"utilisation[{name}]"] = ratio(load.progressing, (name,))
    return result


def _service_level(tables: RunTables, load: Series) -> dict[str, Number]:
    """What online services had and waited for; nothing of a run without any."""
    loans = tables.loans
    if loans is None:
        return {}
    window = (tables.start_s, tables.end_s)
    capacity = load.total("capacity").integral(*window)
    used_gpu_s = load.total("serving").integral(*window)
    waited_s = loans.ready_s - loans.asked_s
    left_s = waited_s[loans.reclaimed & loans.got]
    result: dict[str, Number] = {
        "serving_ratio": used_gpu_s / capacity if capacity > 0 else None,
        "serving_gpu_hours": used_gpu_s / HOUR_S,
        "serving_wait_gpu_s": float(waited_s.sum()),
        # Beyond rounding: times of day are large beside a wait.
        "sla_violation_gpu_s": float(
            np.where(waited_s > loans.allowed_s + 1e-6, waited_s - loans.allowed_s, 0.0).sum()
        ),
        "reclaimed_gpus": int(loans.reclaimed.sum()),
    }
    result |= _spread("scale_in_s", left_s, "mean p50 p99")
    result["max_scale_in_s"] = float(left_s.max()) if len(left_s) else None
    return result


def _done_gpu_s(tables: RunTables) -> float:
    """Work done, at rate 1, less what was lost."""
    holds, jobs = tables.holds, tables.jobs
    first = holds.first_of_interval
    job = holds.job[first]
    work_s = (holds.end_s - holds.begin_s)[first] * holds.rate[first]
    done = float((work_s * jobs.full_milli[job]).sum()) / MILLI
    return done - float(jobs.lost_gpu_s.sum())


def _fragmentation(tables: RunTables) -> float | None:
    samples = tables.samples
    sampled = samples[samples["fragmented_gpus"].notna()]
    fragmented = capacity = 0.0
    for _, part in sampled.groupby("gpu_type", observed=True):
        time_s = part["time_s"].to_numpy(dtype=np.float64)
        held_s = np.diff(np.append(time_s, max(tables.end_s, float(time_s[-1]))))
        fragmented += float(part["fragmented_gpus"].to_numpy(dtype=np.float64) @ held_s)
        capacity += float(part["capacity_gpus"].to_numpy(dtype=np.float64) @ held_s)
    return fragmented / capacity if capacity > 0 else None


def size_classes(tables: RunTables) -> pd.Series:
    """Size class of every job, by GPUs asked for (an ordered category of ``SIZE_CLASSES``)."""
    names = [name for name, _ in SIZE_CLASSES]
    bounds = np.array([bound for _, bound in SIZE_CLASSES])
    codes = np.searchsorted(bounds, tables.jobs.milli / MILLI, side="left")
    return pd.Series(pd.Categorical.from_codes(codes, categories=names, ordered=True))


def main_gpu_type(tables: RunTables) -> pd.Series:
    """GPU type on which every job held most GPU-seconds (null: it never held a GPU)."""
    holds = tables.holds
    service = holds.milli * (holds.end_s - holds.start_s)
    width = max(len(tables.gpu_types), 1)
    sums = np.zeros(len(tables.jobs) * width)
    np.add.at(sums, holds.job * width + holds.gpu_type, service)
    table = sums.reshape(-1, width)
    codes = np.where(table.max(axis=1, initial=0) > 0, table.argmax(axis=1), -1)
    return pd.Series(pd.Categorical.from_codes(codes, categories=list(tables.gpu_types)))


def breakdown(tables: RunTables, load: Series, by: str) -> pd.DataFrame:
    """Metrics of the jobs of each group; one row per group.

    ``by`` is ``size_class``, ``vc``, ``user`` or ``gpu_type`` (where the job held most GPU time).
    Columns: ``jobs``, ``finished``, ``mean_jct_s``, ``median_jct_s``, ``p90_jct_s``,
    ``p99_jct_s``, ``mean_queueing_s``, ``p90_queueing_s``, ``mean_slowdown``, ``mean_rho``,
    ``preemptions``, ``gpu_hours_held``. Rejected and unsubmitted jobs are left out. Groups are in
    the order of their size class or by GPU-hours held, most first.
    """
    jobs = tables.jobs
    keys: dict[str, Any] = {
        "size_class": lambda: size_classes(tables),
        "vc": lambda: jobs.vc,
        "user": lambda: jobs.user,
        "gpu_type": lambda: main_gpu_type(tables),
    }
    done = jobs.finished
    frame = pd.DataFrame(
        {
            by: keys[by](),
            "finished": done,
            "jct_s": np.where(done, jobs.jct_s, np.nan),
            "queueing_s": np.where(done, jobs.queueing_s, np.nan),
            "slowdown": slowdowns(jobs),
            "rho": rhos(jobs, load.demand_gpus, tables.num_gpus),
            "preemptions": jobs.preemptions,
            "held": jobs.service_gpu_s / HOUR_S,
        }
    )[jobs.active]
    groups = frame.groupby(by, observed=True)
    jct, queueing = groups["jct_s"], groups["queueing_s"]
    table = pd.DataFrame(
        {
            "jobs": groups.size(),
            "finished": groups["finished"].sum(),
            "mean_jct_s": jct.mean(),
            "median_jct_s": jct.median(),
            "p90_jct_s": jct.quantile(0.9),
            "p99_jct_s": jct.quantile(0.99),
            "mean_queueing_s": queueing.mean(),
            "p90_queueing_s": queueing.quantile(0.9),
            "mean_slowdown": groups["slowdown"].mean(),
            "mean_rho": groups["rho"].mean(),
            "preemptions": groups["preemptions"].sum(),
            "gpu_hours_held": groups["held"].sum(),
        }
    )
    if by != "size_class":
        table = table.sort_values("gpu_hours_held", ascending=False, kind="stable")
    return table
