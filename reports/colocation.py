"""Runs that an online service shares, side by side: one table, one figure.

Each run is one setting of the same cluster and service; the first is what the others are compared
with. The number that EasyScale's abstract reports stands below, with what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reports.metrics import Number, metrics_of
from reports.quantities import number
from reports.series import Series, series
from reports.style import GREY, INK, PALETTE, RED, STACK, legend, nothing, paper, png, svg
from reports.tables import RunTables, read
from reports.timeplots import bin_edges, time_axis
from traces.errors import DataError, UsageError
from traces.runlog import RunLog

PUBLISHED = (
    "EasyScale (SC'23, abstract) reports +62.1 % utilisation and no violation of service levels,"
    " in a production cluster whose demand, jobs and meaning of utilisation are not published."
)
COLUMNS: tuple[tuple[str, str], ...] = (
    ("allocation_ratio", "allocation"),
    ("utilisation", "utilisation"),
    ("serving_ratio", "serving"),
    ("gpu_hours_done", "training GPU-h"),
    ("serving_wait_gpu_s", "waited GPU-s"),
    ("sla_violation_gpu_s", "violation GPU-s"),
    ("reclaimed_gpus", "GPUs given up"),
    ("mean_scale_in_s", "scale-in mean"),
    ("p50_scale_in_s", "p50"),
    ("p99_scale_in_s", "p99"),
    ("max_scale_in_s", "max"),
    ("preemptions", "stops"),
    ("resizes", "resizes"),
    ("failures", "failures"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """One run: its metrics, and its utilisation over the first run's, less 1."""

    label: str
    metrics: dict[str, Number]
    gain: float | None
    tables: RunTables
    load: Series

    def as_dict(self) -> dict[str, Any]:
        """The row, for machines."""
        return {"setting": self.label, "utilisation_gain": self.gain, **self.metrics}


def side_by_side(runs: Sequence[RunLog]) -> list[Shared]:
    """Read the runs; raises :class:`DataError` for one without an online service."""
    found: list[Shared] = []
    base: Number = None
    for run in runs:
        tables = read(run)
        if tables.loans is None:
            raise DataError(
                "no online service shared this run",
                file=run.path / "run.json",
                column="services",
                expected="a run of tandem run --serving, or of tandem reproduce co-location",
            )
        load = series(tables)
        numbers = metrics_of(tables, load)
        used = numbers["utilisation"]
        base = used if not found else base
        gain = used / base - 1.0 if used is not None and base else None
        found.append(
            Shared(label=tables.label, metrics=numbers, gain=gain, tables=tables, load=load)
        )
    return found


def table(rows: Sequence[Shared]) -> list[tuple[str, ...]]:
    """The runs as columns: name of the quantity, then its value in each run."""
    lines: list[tuple[str, ...]] = [("", *(row.label for row in rows))]
    for name, title in COLUMNS:
        lines.append((title, *(_cell(name, row.metrics.get(name)) for row in rows)))
        if name == "utilisation":
            gains = ["" if row.gain is None else f"{row.gain:+.1%}" for row in rows]
            lines.append(("  against the first", *gains))
    return lines


def _cell(name: str, value: Number) -> str:
    if value is None:
        return "-"
    if name in {"allocation_ratio", "utilisation", "serving_ratio"}:
        return f"{value:.1%}"
    return f"{value:.1f}" if name.endswith("scale_in_s") else number(value)


def stacked(
    ax: Axes, tables: RunTables, load: Series, bins: int = 240, *, legend_beside: bool = False
) -> None:
    """Serving and training over time, stacked, under the line of capacity: means of bins.

    What the service asks for (used or waited for) is a dashed line.
    """
    if tables.end_s <= tables.start_s:
        nothing(ax, "nothing happened in this run")
        return
    edges = bin_edges(tables.start_s, tables.end_s, bins)
    unit = time_axis(ax, tables.start_s, tables.end_s)
    x = edges / unit.seconds
    serving = load.total("serving").bins(edges).mean
    held = load.total("allocated").bins(edges).mean
    busy = np.minimum(load.total("progressing").bins(edges).mean, held)
    floor = np.zeros(bins)
    for values, label, color, hatch in (
        (serving, "serving", STACK[0], ""),
        (busy, "training", STACK[1], "////"),
        (held - busy, "training, paused", RED, ""),
    ):
        ax.stairs(
            floor + values,
            x,
            baseline=floor,
            fill=True,
            facecolor=color,
            hatch=hatch,
            edgecolor=INK if hatch else "none",
            linewidth=0,
            label=label,
        )
        floor = floor + values
    capacity = load.total("capacity").bins(edges)
    ax.stairs(
        capacity.low, x, baseline=floor, fill=True, facecolor=GREY, alpha=0.35, linewidth=0,
        label="idle",
    )  # fmt: skip
    ax.stairs(capacity.low, x, baseline=None, color=INK, linewidth=1.5, label="in service")
    asked = serving + load.serving_waits.bins(edges).mean
    ax.stairs(
        asked, x, baseline=None, color=PALETTE[0], linewidth=1.0, linestyle=(0, (3, 1.5)),
        label="asked for by the service",
    )  # fmt: skip
    ax.set_ylim(0, max(float(capacity.high.max()), 1.0) * 1.06)
    ax.set_ylabel("GPUs")
    if legend_beside:
        legend(ax, beside=True)


def write_figure(rows: Sequence[Shared], out: Path) -> None:
    """Write serving and training over time, a panel per run, as SVG or PNG by the suffix.

    Raises :class:`UsageError` for another suffix.
    """
    if out.suffix not in {".png", ".svg"}:
        raise UsageError(f"{out}: expected a file that ends in .png or .svg")
    with paper(7.4, 0.6 + 2.1 * len(rows)) as (drawing, only):
        only.remove()
        panels = drawing.subplots(len(rows), 1, squeeze=False)[:, 0]
        for ax, row in zip(panels, rows, strict=True):
            stacked(ax, row.tables, row.load)
            ax.set_title(row.label, loc="left")
        for ax in panels[:-1]:
            ax.set_xlabel("")
        legend(panels[-1], beside=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".svg":
            out.write_text(svg(drawing), encoding="utf-8")
        else:
            out.write_bytes(png(drawing))
