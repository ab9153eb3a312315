"""The fidelity page: both worlds side by side, in one HTML file.

The numbers are those of ``reports.fidelity``.

For each policy: a table of errors with intervals over repeats, predicted against measured JCT, both
worlds' devices on one time axis, where the device time went, and every job's bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from reports import gantt
from reports.blocks import Block, Cell, Drawing, Section, Table
from reports.definitions import title
from reports.fidelity import Bounds, Fidelity, Pair, shares
from reports.files import writing
from reports.html import page
from reports.quantities import number
from reports.style import INK, PALETTE, legend, nothing, time_unit


def write_fidelity(found: Sequence[Fidelity], out: Path) -> Path:
    """Write the page; returns ``out``. Raises ``UsageError`` where it cannot be written."""
    jobs = len(found[0].pairs[0].job_error)
    repeats = sorted({len(one.pairs) for one in found})
    many = f"{repeats[0]} to {repeats[-1]} times" if len(repeats) > 1 else f"{repeats[0]} times"
    many = "once" if repeats == [1] else many
    lead = f"{jobs} jobs, executed {many} under each policy, and simulated from the profile."
    sections = [_errors(found)]
    for index, one in enumerate(found):
        sections.append(_policy(one, index))
    with writing(out) as file:
        file.write(
            page(title="Simulated against measured", lead=lead, partial=[], sections=sections)
        )
    return out


def percent(value: tuple[float, Bounds | None]) -> tuple[str, str]:
    """Write an error in percent, and its interval."""
    mean, interval = value
    note = "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
    return f"{100 * mean:.2f} %", note


def _errors(found: Sequence[Fidelity]) -> Section:
    rows = []
    for one in found:
        bits = sum(pair.same_bits for pair in one.pairs)
        wrong = sum(pair.other_bits for pair in one.pairs)
        cells = [Cell(text=one.policy)]
        for value in (one.mean_error, one.p95_error, one.bias, one.makespan_error):
            text, note = percent(value)
            cells.append(Cell(text=text, note=note))
        cells.append(Cell(text=f"{one.decided_alike} of {len(one.pairs)}"))
        cells += _at_pace(one)
        cells.append(Cell(text=f"{bits} equal, {wrong} other" if bits + wrong else "not compared"))
        rows.append(tuple(cells))
    header = ("policy", "JCT error", "95th percentile", "bias", "makespan error")
    words = (
        "JCT error: mean over the jobs of |simulated / measured - 1|, then over repeats; under it"
        " the 95 % bootstrap interval over repeats, in percent. Bias: the same with its sign. At"
        " the run's pace: against a simulation of a machine on which all training takes longer or"
        " shorter by one factor, that by which this run's steps differed from the profile in total;"
        " what is left does not come from the machine's speed on the day."
        " Decisions are starts, preemptions, resizes and migrations, in order. Bits: digests of all"
        " state at a job's end against those of the same job alone on one device.",
    )
    table = Table(
        heading="",
        caption="Errors",
        header=(
            *header,
            "runs decided alike",
            "JCT error at the run's pace",
            "decided alike at it",
            "bits of jobs",
        ),
        rows=tuple(rows),
    )
    return Section(anchor="errors", title="How far apart", words=words, blocks=(table,))


def _at_pace(one: Fidelity) -> list[Cell]:
    paced = one.at_pace
    if paced is None:
        return [Cell(text="not simulated"), Cell(text="")]
    text, note = percent(paced.mean_error)
    return [
        Cell(text=text, note=note),
        Cell(text=f"{paced.decided_alike} of {len(paced.pairs)}"),
    ]


def _policy(one: Fidelity, index: int) -> Section:
    pair = one.pairs[0]
    words = tuple(
        f"Repeat {i + 1}: {p.divergence}."
        for i, p in enumerate(one.pairs)
        if p.divergence is not None
    )
    blocks: list[Block] = [
        Drawing(
            heading="Predicted against measured",
            caption="Job completion time of every job and repeat; on the line both agree.",
            draw=partial(scatter, pairs=one.pairs),
            height_in=3.4,
        ),
        Drawing(
            heading="Devices in both worlds",
            caption="Above measured, below simulated, on one time axis; the first repeat. A dark"
            " front is time without progress, a red edge an interruption.",
            draw=partial(both_gantts, pair=pair),
            height_in=0.9 + 0.5 * 2 * max(2, pair.measured.num_gpus),
        ),
        _numbers(pair),
    ]
    found = shares(one.pairs)
    if found:
        blocks.append(
            Drawing(
                heading="Where the device time went",
                caption="Shares of the time for which jobs held devices, measured; training time is"
                " split by the profile, and the rest of it is what the profile does not explain.",
                draw=partial(share_bars, found=found),
                height_in=0.7 + 0.3 * len(found),
            )
        )
    return Section(anchor=f"policy-{index}", title=one.policy, words=words, blocks=tuple(blocks))


def _numbers(pair: Pair) -> Table:
    rows = []
    for name, (real, model) in pair.metrics.items():
        off = "" if not real or model is None else f"{100 * (model / real - 1):+.2f} %"
        rows.append(
            (
                Cell(text=title(name)),
                Cell(text=number(real)),
                Cell(text=number(model)),
                Cell(text=off),
            )
        )
    header = ("metric", "measured", "simulated", "error")
    return Table(heading="", caption="The first repeat", header=header, rows=tuple(rows))


def scatter(ax: Axes, pairs: Sequence[Pair]) -> None:
    """Simulated over measured JCT, a colour per repeat, with the line on which both agree."""
    most = 0.0
    for index, pair in enumerate(pairs):
        real, model = pair.measured.jobs.jct_s, pair.simulated.jobs.jct_s
        ax.plot(
            real,
            model,
            linestyle="",
            marker="os^Dvx+"[index % 7],
            markersize=4,
            color=PALETTE[index % len(PALETTE)],
            label=f"repeat {index + 1}",
        )
        most = max(most, float(np.nanmax(real)), float(np.nanmax(model)))
    ax.plot([0, most], [0, most], color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set_xlabel("measured JCT (s)")
    ax.set_ylabel("simulated JCT (s)")
    if len(pairs) > 1:
        legend(ax)


def both_gantts(ax: Axes, pair: Pair) -> None:
    """Both worlds' device charts, one above the other, on one time axis."""
    ax.set_axis_off()
    end_s = max(pair.measured.end_s, pair.simulated.end_s)
    start_s = min(pair.measured.start_s, pair.simulated.start_s)
    unit = time_unit(end_s - start_s).seconds
    for low, tables, name in (
        (0.56, pair.measured, "measured"),
        (0.0, pair.simulated, "simulated"),
    ):
        part = ax.inset_axes((0.0, low, 1.0, 0.36))
        gantt.gantt(part, replace(tables, start_s=start_s, end_s=end_s))
        part.set_xlim(start_s / unit, end_s / unit)
        part.set_title(name)
        if low:
            part.set_xlabel("")
            part.tick_params(labelbottom=False)


def share_bars(ax: Axes, found: dict[str, float]) -> None:
    """Horizontal bars of shares, in percent."""
    if not found:
        nothing(ax, "not recorded")
        return
    place = np.arange(len(found))
    bars = ax.barh(place, [100 * v for v in found.values()], 0.6, color=PALETTE[0])
    ax.bar_label(bars, labels=[f"{100 * v:.1f} %" for v in found.values()], padding=3, fontsize=8)
    ax.set_yticks(place, list(found))
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("share of held device time (%)")
