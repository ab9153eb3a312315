"""Figures over time: GPUs held, jobs waiting, utilisation, fragmentation.

All but fragmentation are drawn from the exact step functions of ``series.py``. A bin of the plot
shows the time-weighted mean as a line and everything between the lowest and highest value in it
as a band, so peaks stay visible at any width. Fragmentation is drawn from the samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from reports.series import Series, Steps
from reports.style import (
    GREY,
    HATCHES,
    INK,
    PALETTE,
    RED,
    STACK,
    TimeUnit,
    legend,
    line,
    nothing,
    time_unit,
)
from reports.style import label as style_label
from reports.tables import RunTables

Floats = NDArray[np.float64]
BINS = 240


def bin_edges(start_s: float, end_s: float, bins: int = BINS) -> Floats:
    """Edges of so many bins of one width."""
    return np.linspace(start_s, end_s, bins + 1)


def time_axis(ax: Axes, start_s: float, end_s: float) -> TimeUnit:
    """Make x an axis of time since the trace's origin, in a unit for the span; returns the unit."""
    unit = time_unit(end_s - start_s)
    ax.set_xlim(start_s / unit.seconds, end_s / unit.seconds)
    ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel(f"time since the trace's origin ({unit.name})")
    return unit


def allocation(ax: Axes, tables: RunTables, load: Series) -> None:
    """GPUs held by jobs over time, stacked by GPU type, under the line of capacity.

    The thin line is the highest total in each bin. A dashed line is what makes progress, where that
    is less than what is held.
    """
    start_s, end_s = tables.start_s, tables.end_s
    if end_s <= start_s:
        nothing(ax, "no GPU was held at any time")
        return
    edges = bin_edges(start_s, end_s)
    unit = time_axis(ax, start_s, end_s)
    x = edges / unit.seconds
    floor = np.zeros(BINS)
    names = _main_types(tables, load)
    for index, (name, members) in enumerate(names.items()):
        mean = sum((load.allocated[m].bins(edges).mean for m in members), np.zeros(BINS))
        with mpl.rc_context({"hatch.linewidth": 0.5}):
            ax.stairs(
                floor + mean,
                x,
                baseline=floor,
                fill=True,
                facecolor=STACK[index % len(STACK)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor=INK if index else "none",
                linewidth=0,
                label=f"held, {name}",
            )
        floor = floor + mean
    total = load.total("allocated").bins(edges)
    ax.stairs(total.high, x, color=PALETTE[0], linewidth=0.7, label="held, peak in bin")
    busy = load.total("progressing").bins(edges).mean
    if np.abs(floor - busy).sum() > 1e-3 * floor.sum():  # else it would only blur the edge
        dash = (0, (3, 1.5))
        ax.stairs(busy, x, color=RED, linewidth=1.1, linestyle=dash, label="progressing")
    capacity = load.total("capacity").bins(edges)
    ax.stairs(capacity.low, x, color=INK, linewidth=1.5, label="in service (lowest in bin)")
    ax.set_ylim(0, max(float(capacity.high.max()), float(total.high.max()), 1.0) * 1.06)
    ax.set_ylabel("GPUs")
    legend(ax, beside=True)


def _main_types(tables: RunTables, load: Series, most: int = 6) -> dict[str, list[str]]:
    names = [n for n in tables.gpu_types if tables.gpus_by_type[n]]
    if len(names) <= most:
        return {n: [n] for n in names}
    window = (tables.start_s, tables.end_s)
    names.sort(key=lambda n: -load.allocated[n].integral(*window))
    return {
        **{n: [n] for n in names[: most - 1]},
        f"{len(names) - most + 1} more types": names[most - 1 :],
    }


def utilisation_by_type(ax: Axes, tables: RunTables, load: Series) -> None:
    """Utilisation of each GPU type over time: mean of each bin, as a fraction of its capacity."""
    start_s, end_s = tables.start_s, tables.end_s
    if end_s <= start_s:
        nothing(ax, "no GPU was held at any time")
        return
    edges = bin_edges(start_s, end_s, 120)
    unit = time_axis(ax, start_s, end_s)
    for index, (name, members) in enumerate(_main_types(tables, load).items()):
        busy = sum((load.progressing[m].bins(edges).mean for m in members), np.zeros(120))
        there = sum((load.capacity[m].bins(edges).mean for m in members), np.zeros(120))
        share = np.divide(busy, there, out=np.full(120, np.nan), where=there > 0)
        ax.stairs(
            share, edges / unit.seconds, baseline=None, label=style_label(name), **line(index)
        )
    ax.set_ylim(0, max(1.03, ax.get_ylim()[1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_ylabel("utilisation")
    legend(ax, beside=True)


def over_time(
    ax: Axes, groups: Mapping[str, tuple[RunTables, Steps]], what: str, *, band: bool = True
) -> None:
    """One step function per run over the runs' common span: mean lines, min-max bands."""
    groups = {k: v for k, v in groups.items() if v[0].end_s > v[0].start_s}
    if not groups:
        nothing(ax, "nothing happened in this run")
        return
    if not any(steps.peak() for _, steps in groups.values()):
        nothing(ax, f"{what}: none at any time")
        return
    start_s = min(t.start_s for t, _ in groups.values())
    end_s = max(t.end_s for t, _ in groups.values())
    edges = bin_edges(start_s, end_s)
    unit = time_axis(ax, start_s, end_s)
    for index, (label, (_, steps)) in enumerate(groups.items()):
        bins = steps.bins(edges)
        style = line(index)
        if band:
            ax.stairs(
                bins.high,
                edges / unit.seconds,
                baseline=bins.low,
                fill=True,
                facecolor=style["color"],
                alpha=0.3,
                linewidth=0,
            )
        middle = (edges[:-1] + edges[1:]) / 2 / unit.seconds
        ax.plot(middle, bins.mean, label=style_label(label), **style)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v == int(v) else f"{v:g}")
    ax.set_ylabel(what)
    if len(groups) > 1:
        legend(ax, beside=True)


def waiting_by_kind(ax: Axes, tables: RunTables, load: Series) -> None:
    """Jobs of one run over time: how many wait, how many run."""
    over_time(
        ax, {"waiting": (tables, load.waiting_jobs), "running": (tables, load.running_jobs)}, "jobs"
    )


def fragmentation(ax: Axes, tables: RunTables) -> None:
    """Idle GPUs and those of them that a typical job cannot use, over time, from the samples."""
    samples = tables.samples
    samples = samples[samples["fragmented_gpus"].notna()]
    if samples.empty or tables.end_s <= tables.start_s:
        nothing(ax, "this run recorded no fragmentation samples")
        return
    sums = samples.groupby("time_s")[["capacity_gpus", "allocated_gpus", "fragmented_gpus"]].sum()
    time_s = sums.index.to_numpy(dtype=np.float64)
    idle = (sums["capacity_gpus"] - sums["allocated_gpus"]).to_numpy(dtype=np.float64)
    stuck = sums["fragmented_gpus"].to_numpy(dtype=np.float64)
    edges = bin_edges(tables.start_s, max(tables.end_s, float(time_s[-1])))
    unit = time_axis(ax, float(edges[0]), float(edges[-1]))
    x = edges / unit.seconds
    for values, label, color, hatch in (
        (idle, "idle", GREY, ""),
        (stuck, "idle and fragmented", PALETTE[4], "////"),
    ):
        bins = Steps(time_s, values).bins(edges)
        ax.stairs(
            bins.mean,
            x,
            fill=True,
            facecolor=color,
            alpha=0.45 if label == "idle" else 0.85,
            hatch=hatch,
            edgecolor=INK,
            linewidth=0,
            label=style_label(label),
        )
    ax.set_ylim(bottom=0)
    ax.set_ylabel("GPUs")
    legend(ax, beside=True)
