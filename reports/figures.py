"""Figures of distributions: JCT, queueing, slowdown, rho, and bars per group.

Every function takes data and an ``Axes`` and draws on it; ``style.figure`` makes one. Times on the
x axis are logarithmic, because durations in cluster traces span six decades. What lies below the
axis (a queueing delay of 0) is in the curve's first level.

Leaves out: anything over time (``timeplots.py``) and devices (``gantt.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from reports.metrics import size_classes
from reports.style import HATCHES, INK, PALETTE, axis_words, duration_axis, legend, line, nothing
from reports.style import label as style_label
from reports.style import thin as thin_steps
from reports.tables import RunTables

Floats = NDArray[np.float64]


def duration_cdf(ax: Axes, groups: Mapping[str, Floats], what: str, *, of: str = "jobs") -> None:
    """Distribution functions of durations (s), one line per group, on a logarithmic time axis."""
    known = {name: v[~np.isnan(v)] for name, v in groups.items()}
    known = {name: v for name, v in known.items() if len(v)}
    if not known:
        nothing(ax, f"no finished job has a {what}")
        return
    together = np.concatenate(list(known.values()))
    high_s = max(float(together.max()), 10.0)
    low_s = 1.0 if together.min() < 60 else float(together.min())
    _lines(ax, known, low_s / 2, high_s * 2)
    duration_axis(ax, low_s, high_s)
    ax.set_xlabel(what)
    ax.set_ylabel(f"fraction of {of} at most this")


def ratio_cdf(ax: Axes, groups: Mapping[str, Floats], what: str, fair: float | None = None) -> None:
    """Distribution functions of a ratio (slowdown, rho), one line per group, logarithmic.

    ``fair`` draws a vertical line at the value that separates good from bad.
    """
    known = {name: v[~np.isnan(v)] for name, v in groups.items()}
    known = {name: v for name, v in known.items() if len(v)}
    if not known:
        nothing(ax, f"no finished job has a {what}")
        return
    together = np.concatenate(list(known.values()))
    low, high = min(float(together.min()), 1.0), max(float(together.max()), 2.0)
    _lines(ax, known, low / 1.1, high * 1.1)
    ax.set_xscale("log")
    ax.set_xlim(low / 1.1, high * 1.1)
    if high / low < 30:
        ticks = [t for t in (0.2, 0.5, 1, 2, 3, 5, 10, 20) if low / 1.1 <= t <= high * 1.1]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}")
    if fair is not None:
        ax.axvline(fair, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.annotate(
            "fair", (fair, 0.02), xytext=(3, 0), textcoords="offset points", va="bottom", fontsize=8
        )
    ax.set_xlabel(what)
    ax.set_ylabel("fraction of jobs at most this")


def _lines(ax: Axes, known: Mapping[str, Floats], low: float, high: float) -> None:
    for index, (name, values) in enumerate(known.items()):
        x, y = thin_steps(values)
        below = float((values < low).mean())
        x = np.concatenate([[low], np.maximum(x, low), [high]])
        ax.step(
            x,
            np.concatenate([[below], y, [1.0]]),
            where="post",
            label=style_label(name),
            **line(index),
        )
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if len(known) > 1:
        legend(ax, beside=True)


def jct_by_size(ax: Axes, tables: RunTables) -> None:
    """JCT distribution of one run, a line per size class (GPUs asked for)."""
    classes = size_classes(tables)
    done = tables.jobs.finished
    groups = {}
    for name in classes.cat.categories:
        values = tables.jobs.jct_s[(classes == name).to_numpy() & done]
        if len(values):
            unit = "" if name == "CPU only" else " GPU" if name in ("1", "below 1") else " GPUs"
            groups[f"{name}{unit} ({len(values):,})"] = values
    duration_cdf(ax, groups, "JCT", of="finished jobs")


def group_bars(ax: Axes, tables: Mapping[str, pd.DataFrame], column: str, what: str) -> None:
    """Bars of one breakdown column per group (rows) and run (colours); at most 12 groups.

    ``tables`` are breakdowns by label; groups are those of the first run, in its order.
    """
    first = next(iter(tables.values()))
    groups = list(first.index[:12])
    if not groups:
        nothing(ax, f"no group has a {what}")
        return
    height = 0.8 / len(tables)
    place = np.arange(len(groups), dtype=np.float64)
    for index, (label, table) in enumerate(tables.items()):
        values = table[column].reindex(groups).to_numpy(dtype=np.float64)
        ax.barh(
            place + (index - (len(tables) - 1) / 2) * height,
            np.nan_to_num(values),
            height * 0.9,
            label=style_label(label),
            color=PALETTE[index % len(PALETTE)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor=INK,
            linewidth=0.4,
        )
    ax.set_yticks(place, axis_words([str(g) for g in groups]))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(what)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    if len(tables) > 1:
        legend(ax, beside=True)


_TIMES = ((0, "0"), (1, "1"), (2, "2"), (5, "3-5"), (10, "6-10"), (np.inf, "above 10"))


def preemption_bars(ax: Axes, runs: Mapping[str, RunTables]) -> None:
    """How many jobs were preempted how often, on a logarithmic axis, a colour per run."""
    bounds = np.array([bound for bound, _ in _TIMES])
    width = 0.8 / len(runs)
    place = np.arange(len(_TIMES), dtype=np.float64)
    for index, (label, tables) in enumerate(runs.items()):
        times = tables.jobs.preemptions[tables.jobs.active]
        counts = np.bincount(np.searchsorted(bounds, times), minlength=len(_TIMES))
        bars = ax.bar(
            place + (index - (len(runs) - 1) / 2) * width,
            counts,
            width * 0.9,
            label=style_label(label),
            color=PALETTE[index % len(PALETTE)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor=INK,
            linewidth=0.4,
        )
        if len(runs) <= 2:
            ax.bar_label(bars, labels=[f"{c:,}" for c in counts], fontsize=7, padding=1)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=0)
    ax.margins(y=0.15)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.minorticks_off()
    ax.set_xticks(place, [name for _, name in _TIMES])
    ax.grid(visible=False, axis="x")
    ax.set_xlabel("times preempted")
    ax.set_ylabel("jobs")
    if len(runs) > 1:
        legend(ax, beside=True)


def interval_dots(
    ax: Axes, rows: Mapping[str, tuple[float, float | None, float | None]], what: str
) -> None:
    """Differences against a baseline, one row each: the value and its confidence interval.

    ``rows`` maps a name to (value, low, high); low and high are None where there is no interval.
    """
    place = np.arange(len(rows), dtype=np.float64)
    for y, (value, low, high) in zip(place, rows.values(), strict=True):
        if low is not None and high is not None:
            ax.plot([low, high], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        ax.plot([value], [y], marker="o", markersize=5, color=PALETTE[0])
    ax.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    ax.set_yticks(place, axis_words(list(rows), 40))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(what)
