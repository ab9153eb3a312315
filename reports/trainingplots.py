"""Figures of training over steps: loss, AUC, throughput, MFU, what is seen, the learning rate.

A run may have a million steps; a figure shows some hundred bins of equally many steps, in each the
mean as a line and, where one run is shown, everything between the lowest and the highest value as a
band, so a spike is never lost. Evaluations are drawn one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reports.style import GREY, INK, ORANGE, legend, line, nothing
from reports.style import label as style_label
from reports.training import CONFIDENCE_SIGMAS, Floats, TrainingRun

BINS = 120


def loss(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """Training loss over steps; with one run the log loss of its evaluations as points."""
    _curves(ax, runs, "loss")
    if len(runs) == 1:
        _stages(ax, runs[0])
        (run,) = runs
        known = ~np.isnan(run.evaluated("logloss"))
        if known.any():
            ax.plot(
                run.evaluated("step")[known],
                run.evaluated("logloss")[known],
                linestyle="none",
                marker="o",
                markersize=4,
                color=ORANGE,
                label="held out",
            )
    ax.set_ylabel("loss (nats)")
    legend(ax, beside=True)


def auc(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """AUC on held-out samples with 95 % intervals, and the best possible where it is known."""
    shown = 0
    for index, run in enumerate(runs):
        step, value = run.evaluated("step"), run.evaluated("auc")
        known = ~np.isnan(value)
        if not known.any():
            continue
        shown += 1
        half = CONFIDENCE_SIGMAS * np.nan_to_num(run.evaluated("auc_deviation"))
        look = line(index)
        ax.errorbar(
            step[known],
            value[known],
            yerr=half[known],
            marker="o",
            markersize=3.5,
            capsize=2,
            elinewidth=0.9,
            label=style_label(run.label) if len(runs) > 1 else "held out",
            **look,
        )
        _best(ax, run, color=GREY if len(runs) == 1 else look["color"], named=len(runs) == 1)
    if not shown:
        nothing(ax, "no evaluation has an AUC")
        return
    if len(runs) == 1:
        _stages(ax, runs[0])
    _step_axis(ax, runs)
    ax.set_ylabel("AUC")
    legend(ax, beside=True)


def _best(ax: Axes, run: TrainingRun, *, color: str, named: bool) -> None:
    """A dotted line at the best AUC for what is seen, stage by stage."""
    stages = run.stages()
    ends = [first for first, _ in stages[1:]] + [int(run.column("step")[-1])]
    label = "best possible" if named else None
    for (first, visible), end in zip(stages, ends, strict=True):
        best = run.best_auc(visible)
        if not np.isnan(best):
            ax.plot(
                [first, end], [best, best], color=color, linewidth=1.2, linestyle=":", label=label
            )
            label = None


def throughput(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """Samples per second over steps."""
    _curves(ax, runs, "samples_per_s")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("samples per second")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    legend(ax, beside=True)


def mfu(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """Model FLOPs utilisation over steps, of those runs that were given a peak."""
    if all(np.isnan(run.column("mfu")).all() for run in runs):
        nothing(ax, "no run was given the peak of its device")
        return
    _curves(ax, runs, "mfu")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("MFU")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend(ax, beside=True)


def visible(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """How many of the newest events were seen, where it was not all of them throughout."""
    cut = [run for run in runs if np.isfinite([seen for _, seen in run.stages()]).any()]
    if not cut:
        nothing(ax, "every step saw whole histories")
        return
    most = max(seen for run in cut for _, seen in run.stages() if np.isfinite(seen))
    whole = 2 * most  # where "all" is drawn: nobody here knows how long a history is
    for index, run in enumerate(runs):
        stages = run.stages()
        edges = [first for first, _ in stages] + [int(run.column("step")[-1]) + 1]
        heights = [seen if np.isfinite(seen) else whole for _, seen in stages]
        ax.stairs(heights, edges, baseline=None, label=style_label(run.label), **line(index))
    ax.set_yscale("log", base=2)
    ticks = sorted({seen for run in cut for _, seen in run.stages() if np.isfinite(seen)})
    every = any(np.isinf(seen) for run in runs for _, seen in run.stages())
    ax.set_yticks(
        [*ticks, *([whole] if every else [])],
        [f"{t:,.0f}" for t in ticks] + (["all"] if every else []),
    )
    ax.minorticks_off()
    _step_axis(ax, runs)
    ax.set_ylabel("newest events seen")
    if len(runs) > 1:
        legend(ax, beside=True)


def learning_rate(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    """By what the learning rates were multiplied."""
    for index, run in enumerate(runs):
        ax.plot(
            run.column("step"), run.column("lr_scale"), label=style_label(run.label), **line(index)
        )
    ax.set_ylim(0, 1.1 * max(float(run.column("lr_scale").max()) for run in runs) or 1.0)
    _step_axis(ax, runs)
    ax.set_ylabel("learning-rate scale")
    if len(runs) > 1:
        legend(ax, beside=True)


def _curves(ax: Axes, runs: Sequence[TrainingRun], column: str) -> None:
    """A line per run that has the column; runs keep their colours from figure to figure."""
    alone = len(runs) == 1
    for index, run in enumerate(runs):
        x, mean, low, high = binned(run.column("step"), run.column(column))
        look = line(index)
        if not len(x):
            continue
        if alone and len(x) < len(run.steps):
            ax.fill_between(
                x,
                low,
                high,
                color=look["color"],
                alpha=0.25,
                linewidth=0,
                label="lowest to highest",
            )
        ax.plot(x, mean, label="training" if alone else style_label(run.label), **look)
    _step_axis(ax, runs)


def binned(step: Floats, value: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the middle, mean, lowest and highest of bins of equally many steps; NaN are left out.

    With no more than ``BINS`` known values each is a bin of its own.
    """
    known = ~np.isnan(value)
    step, value = step[known], value[known]
    width = max(1, -(-len(step) // BINS))
    parts = [slice(first, first + width) for first in range(0, len(step), width)]
    rows = [(step[p].mean(), value[p].mean(), value[p].min(), value[p].max()) for p in parts]
    x, mean, low, high = np.asarray(rows, dtype=np.float64).reshape(-1, 4).T
    return x, mean, low, high


def _stages(ax: Axes, run: TrainingRun) -> None:
    """A thin line where more of the histories comes into view, with how much."""
    for first, seen in run.stages()[1:]:
        ax.axvline(first, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        words = "all" if np.isinf(seen) else f"{seen:,.0f}"
        ax.annotate(
            words,
            (first, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )


def _step_axis(ax: Axes, runs: Sequence[TrainingRun]) -> None:
    last = max(run.column("step")[-1] for run in runs)
    ax.set_xlim(0, max(last, 2) * 1.01)
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.set_xlabel("step")
