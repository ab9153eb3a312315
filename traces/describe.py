"""What a trace holds, in numbers: ``tandem traces info``.

Counts, span, GPU sizes, run-time quantiles, demand, statuses, and what the loader repaired.
Whether a trace can be trusted is another question (:mod:`traces.check`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from traces.cluster import ClusterSpec
from traces.scale import gpu_seconds, mean_demand_gpus, offered_load, span_s
from traces.workload import Workload

QUANTILES = (5, 25, 50, 75, 95, 99, 100)


def describe(workload: Workload, cluster: ClusterSpec | None = None) -> dict[str, Any]:
    """Return the numbers of a workload as JSON types; ``offered_load`` only with a cluster.

    ``sizes`` has one entry per GPU count (and per share class for jobs on part of a GPU):
    ``gpus``, ``jobs``, ``median_duration_s``, ``gpu_hours``. What cannot be said is None.
    """
    table = workload.table
    seconds = gpu_seconds(workload)
    duration = table["duration_s"].dropna()
    quantiles = (
        {
            f"p{q}" if q < 100 else "max": float(v)
            for q, v in zip(QUANTILES, np.percentile(duration, QUANTILES), strict=True)
        }
        if len(duration)
        else {}
    )
    source = workload.source
    return {
        "path": source.path,
        "format": source.format,
        "sha256": source.sha256,
        "digest": workload.digest(),
        "origin": source.origin,
        "zone": source.zone,
        "jobs": len(workload),
        "first_submit_s": _number(table["submit_s"].min()),
        "span_s": span_s(workload),
        "users": int(table["user"].nunique()),
        "vcs": int(table["vc"].nunique()),
        "gpu_types": _counts(table["gpu_type"]),
        "sizes": _sizes(table, seconds),
        "duration_s": quantiles,
        "mean_duration_s": _number(duration.mean()) if len(duration) else None,
        "unknown_durations": len(table) - len(duration),
        "gpu_hours": float(np.nansum(seconds)) / 3600,
        "mean_demand_gpus": _number(mean_demand_gpus(workload)),
        "cluster_gpus": cluster.num_gpus if cluster else None,
        "offered_load": _number(offered_load(workload, cluster)) if cluster else None,
        "statuses": _counts(table["status"]),
        "kinds": _counts(table["kind"]),
        "repairs": [{"rule": r.rule, "rows": r.rows, "example": r.example} for r in source.repairs],
        "notes": list(source.notes),
    }


def describe_text(facts: dict[str, Any]) -> str:
    """Lay out what :func:`describe` found, for people."""
    span = facts["span_s"]
    lines = [
        f"{facts['path'] or 'workload'} ({facts['format'] or 'no format'})",
        _row("jobs", f"{facts['jobs']:,}"),
        _row("span", f"{span:,.0f} s ({span / 86_400:.1f} days)" if span else "one instant"),
        _row("origin", f"{facts['origin'] or 'unknown'}{_zone(facts['zone'])}"),
        _row("users", facts["users"] or "none named"),
        _row("virtual clusters", facts["vcs"] or "none named"),
        _row("statuses", _inline(facts["statuses"])),
        _row("kinds", _inline(facts["kinds"])),
        _row("GPU types", _inline(facts["gpu_types"])),
        _row("GPU-hours", f"{facts['gpu_hours']:,.1f}"),
    ]
    if facts["mean_demand_gpus"] is not None:
        lines.append(_row("mean demand", f"{facts['mean_demand_gpus']:,.1f} GPUs over the span"))
    if facts["offered_load"] is not None:
        lines.append(
            _row("offered load", f"{facts['offered_load']:.3f} of {facts['cluster_gpus']:,} GPUs")
        )
    if facts["unknown_durations"]:
        lines.append(_row("no run time", f"{facts['unknown_durations']:,} jobs"))
    lines += ["", f"{'GPUs':>8} {'jobs':>10} {'share':>7} {'median run':>12} {'GPU-hours':>14}"]
    for size in facts["sizes"]:
        median = size["median_duration_s"]
        lines.append(
            f"{size['gpus']:>8} {size['jobs']:>10,} {size['jobs'] / facts['jobs']:>7.1%}"
            f" {'unknown' if median is None else f'{median:,.0f} s':>12}"
            f" {size['gpu_hours']:>14,.1f}"
        )
    if facts["duration_s"]:
        quantiles = facts["duration_s"]
        lines += ["", "run time, s " + "".join(f"{name:>12}" for name in [*quantiles, "mean"])]
        values = [*quantiles.values(), facts["mean_duration_s"]]
        lines.append(" " * 12 + "".join(f"{value:>12,.0f}" for value in values))
    for repair in facts["repairs"]:
        example = f" (e.g. {repair['example']})" if repair["example"] else ""
        lines.append(_row("repaired", f"{repair['rows']:,} rows: {repair['rule']}{example}"))
    lines += [_row("note", note) for note in facts["notes"]]
    return "\n".join(lines)


def _sizes(table: pd.DataFrame, seconds: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    shared = (table["gpu_milli"] < 1000).to_numpy(dtype=bool)
    gpus = table["num_gpus"].to_numpy(dtype=np.int64)
    # Shares sort between CPU jobs and whole GPUs.
    frame = pd.DataFrame(
        {
            "order": np.where(shared, 0.5, gpus),
            "duration": table["duration_s"].to_numpy(dtype=np.float64),
            "hours": np.nan_to_num(seconds) / 3600,
        }
    )
    return [
        {
            "gpus": "<1" if order == 0.5 else str(int(order)),
            "jobs": len(group),
            "median_duration_s": _number(group["duration"].median()),
            "gpu_hours": float(group["hours"].sum()),
        }
        for order, group in frame.groupby("order", sort=True)
    ]


def _counts(column: pd.Series) -> dict[str, int]:
    counts = column.value_counts()
    return {str(name): int(n) for name, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))}


def _number(value: float) -> float | None:
    return None if not math.isfinite(value) else float(value)


def _row(name: str, value: object) -> str:
    return f"{name:<17} {value}"


def _zone(zone: str | None) -> str:
    return f", zone {zone}" if zone else ""


def _inline(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:8]]
    more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
    return ", ".join(shown) + more if shown else "none named"
