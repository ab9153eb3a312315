"""The Gantt chart of devices: which job held which GPU, when.

One row per GPU, grouped by node. A bar is one allocation interval, coloured by job (colours repeat;
a job keeps its colour on all its GPUs); a dark front part is time held without progress (start,
restore and migration costs), a bar that ends in a red edge was preempted, migrated or failed. A
share of a GPU is as much thinner as it is smaller. Hatched grey is a device out of service.

A cluster has more devices and intervals than a page has room for, so :func:`choose` takes the nodes
on which most was interrupted or changed, and, if those are still too crowded, the stretch of time
in which most of it happened; the title says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reports.style import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, axis_words, time_unit
from reports.tables import MILLI, RunTables, device_events

MAX_ROWS = 48
MAX_BARS = 1_200
DENSE = 300  # above this many bars a picture is smaller than their outlines
_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, "#a6cee3", "#b5a36a", "#7f9c96")
_INTERRUPTED = ("preempt", "migrate", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a device chart shows: node names, a stretch of time, and the words that say so."""

    nodes: tuple[str, ...]
    start_s: float
    end_s: float
    words: str


def bars(tables: RunTables) -> pd.DataFrame:
    """Return the allocations table with each row's number of GPUs (``count``)."""
    wanted = ["job_id", "node", "gpus", "gpu_milli", "start_s", "begin_s", "end_s", "end_reason"]
    frame = tables.log.arrow("allocations", wanted).to_pandas()
    frame["count"] = frame["gpus"].map(len)
    return frame[frame["count"] > 0]


def choose(tables: RunTables, frame: pd.DataFrame) -> Scope:
    """Choose the nodes and the stretch of time that tell most within the chart's room."""
    spec = tables.log.spec
    names = [n.name for n in spec.nodes if n.num_gpus]
    sizes = {n.name: n.num_gpus for n in spec.nodes}
    interrupted = frame["end_reason"].isin(_INTERRUPTED)
    events = pd.DataFrame(
        {"node": frame["node"].astype(str), "interrupted": interrupted.to_numpy(dtype=bool)}
    )
    rank = events.groupby("node")["interrupted"].agg(["sum", "size"])
    order = sorted(
        range(len(names)),
        key=lambda i: (*(-rank.loc[names[i]] if names[i] in rank.index else (0, 0)), i),
    )
    chosen: list[int] = []
    rows = 0
    for i in order:
        if chosen and rows + sizes[names[i]] > MAX_ROWS:
            break
        chosen.append(i)
        rows += sizes[names[i]]
    nodes = tuple(names[i] for i in sorted(chosen))
    part = frame[frame["node"].isin(nodes)]
    start_s, end_s = _stretch(part, tables.start_s, tables.end_s)
    words = "all nodes"
    if len(nodes) < len(names):
        why = "most interrupted" if interrupted.any() else "most often reassigned"
        words = f"the {len(nodes)} {why} of {len(names)} nodes"
    if (start_s, end_s) != (tables.start_s, tables.end_s):
        words += ", the busiest stretch of the run"
    return Scope(nodes=nodes, start_s=start_s, end_s=end_s, words=words)


def _stretch(part: pd.DataFrame, start_s: float, end_s: float) -> tuple[float, float]:
    """Halve the window around where most happens until its bars are few enough."""
    starts = part["start_s"].to_numpy(dtype=np.float64)
    ends = part["end_s"].to_numpy(dtype=np.float64)
    counts = part["count"].to_numpy(dtype=np.int64)
    weight = counts * np.where(part["end_reason"].isin(_INTERRUPTED), 3, 1)
    low, high = start_s, end_s
    for _ in range(30):
        inside = (starts < high) & (ends > low)
        if counts[inside].sum() <= MAX_BARS:
            break
        eighths = np.linspace(low, high, 9)
        happened = np.histogram(ends, eighths, weights=weight)[0]
        best = int(np.convolve(happened, np.ones(4), mode="valid").argmax())
        low, high = float(eighths[best]), float(eighths[best + 4])
    return low, high


def gantt(ax: Axes, tables: RunTables) -> Scope | None:
    """Draw the devices of a run; returns what is shown, or None when nothing was ever held."""
    frame = bars(tables)
    if frame.empty or tables.end_s <= tables.start_s:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no GPU was held at any time", ha="center", transform=ax.transAxes)
        return None
    scope = choose(tables, frame)
    unit = time_unit(scope.end_s - scope.start_s)
    rows, ticks = _rows(tables, scope)
    _out_of_service(ax, tables, scope, rows, unit.seconds)
    _bars(ax, frame, scope, rows, unit.seconds)
    ax.set_xlim(scope.start_s / unit.seconds, scope.end_s / unit.seconds)
    ax.set_ylim(max(rows.values()) + 1, 0)
    ax.set_yticks(list(ticks.values()), axis_words(list(ticks), 16))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel(f"time since the trace's origin ({unit.name})")
    ax.set_ylabel("GPUs, by node")
    for edge in _node_edges(rows):
        ax.axhline(edge, color=INK, linewidth=0.5)
    ax.set_title(f"Devices: {scope.words}")
    return scope


def _rows(tables: RunTables, scope: Scope) -> tuple[dict[tuple[str, int], float], dict[str, float]]:
    rows: dict[tuple[str, int], float] = {}
    ticks: dict[str, float] = {}
    top = 0.0
    shown = set(scope.nodes)
    for node in tables.log.spec.nodes:
        if node.name in shown:
            ticks[node.name] = top + node.num_gpus / 2
            for gpu in range(node.num_gpus):
                rows[node.name, gpu] = top + gpu
            top += node.num_gpus
    return rows, ticks


def _node_edges(rows: dict[tuple[str, int], float]) -> list[float]:
    return [top for (_, gpu), top in rows.items() if gpu == 0 and top > 0]


def job_color(job_id: str) -> str:
    """Return the colour of a job, the same in every figure and run."""
    return _COLORS[hashlib.sha256(job_id.encode()).digest()[0] % len(_COLORS)]


def _bars(
    ax: Axes,
    frame: pd.DataFrame,
    scope: Scope,
    rows: dict[tuple[str, int], float],
    unit_s: float,
) -> None:
    of = (
        frame["node"].isin(scope.nodes)
        & (frame["start_s"] < scope.end_s)
        & (frame["end_s"] > scope.start_s)
    )
    part = frame[of].sort_values(["start_s", "job_id"], kind="stable")
    taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    held: list[Rectangle] = []
    idle: list[Rectangle] = []
    colors: list[str] = []
    cuts: list[tuple[float, float, float]] = []
    for row in part.itertuples():
        share = row.gpu_milli / MILLI
        start, begin, end = (
            min(max(t, scope.start_s), scope.end_s) / unit_s
            for t in (row.start_s, row.begin_s, row.end_s)
        )
        for gpu in row.gpus:
            device = (str(row.node), int(gpu))
            low = _free_offset(taken.setdefault(device, []), row.start_s, row.end_s, share)
            y, height = rows[device] + 0.06 + low * 0.88, share * 0.88
            held.append(Rectangle((start, y), end - start, height))
            colors.append(job_color(str(row.job_id)))
            if begin > start:
                idle.append(Rectangle((start, y), begin - start, height))
            if row.end_reason in _INTERRUPTED and row.end_s < scope.end_s:
                cuts.append((end, y, y + height))
    dense = len(held) > DENSE
    ax.add_collection(
        PatchCollection(
            held, facecolors=colors, edgecolors="white", linewidths=0.15, rasterized=dense
        )
    )
    ax.add_collection(
        PatchCollection(idle, facecolors="black", alpha=0.55, linewidths=0, rasterized=dense)
    )
    if cuts:
        x, low_y, high_y = zip(*cuts, strict=True)
        ax.vlines(x, low_y, high_y, colors=RED, linewidth=1.3, rasterized=dense)


def _free_offset(
    taken: list[tuple[float, float, float]], start_s: float, end_s: float, share: float
) -> float:
    """Lowest free part of a device for a share, among those held when it starts."""
    taken[:] = [t for t in taken if t[0] > start_s]
    low = 0.0
    for _, used_low, used_high in sorted(taken, key=lambda t: t[1]):
        if used_low >= low + share - 1e-9:
            break
        low = max(low, used_high)
    low = min(low, 1.0 - share)
    taken.append((end_s, low, low + share))
    return low


def _out_of_service(
    ax: Axes,
    tables: RunTables,
    scope: Scope,
    rows: dict[tuple[str, int], float],
    unit_s: float,
) -> None:
    events = device_events(tables.log)
    gone: dict[tuple[str, int], float] = {}
    patches: list[Rectangle] = []

    def close(device: tuple[str, int], end_s: float) -> None:
        low, high = max(gone.pop(device), scope.start_s), min(end_s, scope.end_s)
        if device in rows and high > low:
            patches.append(Rectangle((low / unit_s, rows[device]), (high - low) / unit_s, 1))

    for event in events.itertuples():
        device = (str(event.node), int(event.gpu))
        if event.lost:
            gone[device] = event.time_s
        elif device in gone:
            close(device, event.time_s)
    for device in list(gone):
        close(device, scope.end_s)
    ax.add_collection(
        PatchCollection(
            patches, facecolors=GREY, alpha=0.5, hatch="xxxx", edgecolors=INK, linewidths=0
        )
    )
