"""The worker maps of elastic jobs over time: how many GPUs of which type, how full of workers.

One lane per job. While it runs its lane is filled from below, a band per GPU type, as high as the
number of GPUs; full height is the most that any shown job held at once. A band is the darker the
more logical workers sit on its fullest GPU, and says so where there is room ("4 x 8": 8 GPUs, 4
workers on the fullest). Hatched grey are GPUs without a logical worker; a black front is time held
without progress.

Shown are the elastic jobs whose size changed most often, and of these the earliest; the title says
how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reports.style import GREY, INK, STACK, axis_words, legend, nothing, time_unit
from reports.tables import RunTables

MOST_JOBS = 14
MOST_STAYS = 600
_COLUMNS = ["job_id", "gpu_type", "workers", "start_s", "begin_s", "end_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """GPUs of one type that a job held for a time; ``idle`` of them without a logical worker.

    ``fullest``: logical workers on the GPU that has most of them.
    """

    job_id: str
    gpu_type: str
    gpus: int
    idle: int
    fullest: int
    start_s: float
    begin_s: float
    end_s: float


def bands(tables: RunTables) -> list[Band]:
    """Return what the elastic jobs of a run held, by job, start and type; none for rigid jobs."""
    frame = tables.log.arrow("allocations", _COLUMNS).to_pandas()
    frame = frame[frame["workers"].notna()]
    found = []
    keys = ["job_id", "start_s", "gpu_type"]
    for (job_id, start_s, gpu_type), rows in frame.groupby(keys, sort=True, observed=True):
        workers = [int(n) for row in rows["workers"] for n in row]
        found.append(
            Band(
                job_id=str(job_id),
                gpu_type=str(gpu_type),
                gpus=len(workers),
                idle=workers.count(0),
                fullest=max(workers),
                start_s=float(start_s),
                begin_s=float(rows["begin_s"].iloc[0]),
                end_s=float(rows["end_s"].iloc[0]),
            )
        )
    return found


def choose(found: list[Band]) -> list[str]:
    """Return the jobs to show: those with most stays, earliest first."""
    stays = pd.Series([b.job_id for b in found]).groupby([b.job_id for b in found]).size()
    first = {b.job_id: b.start_s for b in sorted(found, key=lambda b: b.start_s, reverse=True)}
    ranked = sorted(stays.index, key=lambda job: (-int(stays[job]), first[job], job))
    chosen: list[str] = []
    total = 0
    for job in ranked[:MOST_JOBS]:
        total += int(stays[job])
        if chosen and total > MOST_STAYS:
            break
        chosen.append(job)
    return sorted(chosen, key=lambda job: (first[job], job))


def worker_gantt(ax: Axes, tables: RunTables) -> list[str]:
    """Draw the worker maps of a run's elastic jobs; returns the jobs shown."""
    found = bands(tables)
    if not found:
        nothing(ax, "no elastic job ran")
        return []
    jobs = choose(found)
    shown = [b for b in found if b.job_id in set(jobs)]
    start_s, end_s = min(b.start_s for b in shown), max(b.end_s for b in shown)
    unit = time_unit(end_s - start_s)
    types = [t for t in tables.gpu_types if any(b.gpu_type == t for b in shown)]
    most = max(sum(b.gpus for b in stay) for stay in _stays(shown))
    top = max(b.fullest for b in shown)
    ax.set_xlim(start_s / unit.seconds, end_s / unit.seconds)
    for stay in _stays(shown):
        floor = jobs.index(stay[0].job_id) + 0.95
        for band in sorted(stay, key=lambda b: types.index(b.gpu_type)):
            color = STACK[types.index(band.gpu_type) % len(STACK)]
            height = 0.9 * band.gpus / most
            _draw(ax, band, color, floor, height, top=top, unit_s=unit.seconds)
            floor -= height
    for index, gpu_type in enumerate(types):
        ax.add_patch(Rectangle((0, 0), 0, 0, facecolor=STACK[index % len(STACK)], label=gpu_type))
    ax.set_ylim(len(jobs), 0)
    ax.set_yticks([i + 0.5 for i in range(len(jobs))], axis_words(jobs, 20))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel(f"time since the trace's origin ({unit.name})")
    count = len({b.job_id for b in found})
    ax.set_title(f"Worker maps: {len(jobs)} of {count} elastic jobs; full height is {most} GPUs")
    legend(ax, beside=True)
    return jobs


def _stays(found: list[Band]) -> list[list[Band]]:
    stays: dict[tuple[str, float], list[Band]] = {}
    for band in found:
        stays.setdefault((band.job_id, band.start_s), []).append(band)
    return list(stays.values())


def _draw(
    ax: Axes, band: Band, color: str, floor: float, height: float, *, top: int, unit_s: float
) -> None:
    """One band: its GPUs from ``floor`` upward on the page."""
    x, width = band.start_s / unit_s, (band.end_s - band.start_s) / unit_s
    strength = 0.35 + 0.65 * band.fullest / max(top, 1)
    used = height * (band.gpus - band.idle) / band.gpus
    box: Any = {"edgecolor": "white", "linewidth": 0.3}
    ax.add_patch(Rectangle((x, floor - used), width, used, facecolor=color, alpha=strength, **box))
    if band.idle:
        ax.add_patch(
            Rectangle((x, floor - height), width, height - used, facecolor=GREY, hatch="xxx", **box)
        )
    if band.begin_s > band.start_s:
        front = (min(band.begin_s, band.end_s) - band.start_s) / unit_s
        ax.add_patch(Rectangle((x, floor - height), front, height, facecolor="black", alpha=0.6))
    low, high = ax.get_xlim()
    if width > 0.06 * (high - low) and height > 0.25:
        ax.text(
            x + width / 2,
            floor - used / 2,
            f"{band.fullest} x {band.gpus - band.idle}",
            ha="center",
            va="center",
            fontsize=6.5,
            color=INK,
        )
