"""What stands in the HTML report, section by section.

A report answers in this order: how good was it, what exactly was run, how do the runs differ, and
what happened inside each. Tables are values here and figures are functions still to be called; the
drawing and the escaping are in ``html.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from reports import colocation, figures, gantt, timeplots, workergantt
from reports.blocks import Block, Cell, Drawing, Facts, Section, Table
from reports.compare import Comparison, Read, compare_read
from reports.definitions import METRICS, TOPICS, definition, title
from reports.fairness import slowdowns
from reports.metrics import Number, breakdown
from reports.provenance import facts
from reports.quantities import duration, number, percent, signed
from reports.subject import Subject

IN_DETAIL = 4
GROUPS = 12


def sections(shown: Sequence[Subject]) -> list[Section]:
    """Return the sections of the report of these runs, in reading order."""
    compared = None
    if len(shown) > 1:
        compared = compare_read([Read(tables=s.tables, metrics=s.metrics) for s in shown])
    found = [_results(shown), _what_was_run(shown)]
    if compared is not None:
        found.append(_differences(compared))
    found += [_times(shown), _fairness(shown), _queue(shown)]
    for i, subject in enumerate(shown[:IN_DETAIL]):
        found.append(_inside(subject, i, left_out=[s.label for s in shown[IN_DETAIL:]]))
    found.append(_definitions())
    return found


def _value(name: str, value: Number) -> Cell:
    words = duration(value) if definition(name).unit == "s" else ""
    return Cell(text=number(value), note=words)


def _results(shown: Sequence[Subject]) -> Section:
    names = list(dict.fromkeys(name for s in shown for name in s.metrics))
    blocks = tuple(
        Table(
            heading="",
            caption=topic,
            header=("metric", "unit", *(s.label for s in shown)),
            rows=tuple(
                (
                    Cell(text=title(name)),
                    Cell(text=definition(name).unit),
                    *(_value(name, s.metrics.get(name)) for s in shown),
                )
                for name in names
                if definition(name).topic == topic
            ),
        )
        for topic in TOPICS
        if any(definition(name).topic == topic for name in names)
    )
    words = ("What each metric means stands at the end. A dash: it has no value here.",)
    return Section(anchor="results", title="Results", words=words, blocks=blocks)


def _what_was_run(shown: Sequence[Subject]) -> Section:
    told = [facts(s.log) for s in shown]
    if len(shown) == 1:
        blocks = [Facts(heading="", facts=told[0])]
    else:
        same = tuple(fact for fact in told[0] if all(fact in other for other in told[1:]))
        blocks = [Facts(heading="All runs", facts=same)]
        for subject, found in zip(shown, told, strict=True):
            own = tuple(fact for fact in found if fact not in same)
            blocks.append(Facts(heading=subject.label, facts=own))
    return Section(anchor="what-was-run", title="What was run", words=(), blocks=tuple(blocks))


def _differences(compared: Comparison) -> Section:
    blocks: list[Block] = []
    names = [n for n, row in compared.rows.items() if any(d.difference is not None for d in row)]
    bounds = round(100 * compared.confidence)
    for i, label in enumerate(compared.labels[1:], start=1):
        rows = []
        relative: dict[str, tuple[float, float | None, float | None]] = {}
        for name in names:
            d, base = compared.rows[name][i], compared.rows[name][0].value
            rows.append(
                (
                    Cell(text=title(name)),
                    Cell(text=definition(name).unit),
                    _value(name, base),
                    _value(name, d.value),
                    Cell(text=signed(d.difference)),
                    Cell(text=percent(d.relative)),
                    Cell(text=" to ".join(map(signed, d.interval or ()))),
                )
            )
            if d.relative is not None and d.relative_interval is not None:
                low, high = d.relative_interval
                relative[title(name)] = (100 * d.relative, 100 * low, 100 * high)
        blocks.append(
            Table(
                heading=f"{label} against {compared.labels[0]}",
                caption=f"Interval: {compared.methods[i]}.",
                header=(
                    "metric", "unit", compared.labels[0], label, "difference", "in percent",
                    f"{bounds} % interval",
                ),
                rows=tuple(rows),
            )
        )  # fmt: skip
        if relative:
            blocks.append(_interval_figure(label, compared.labels[0], relative))
    words = (
        "Differences are against the first run. An interval that leaves out 0 is unlikely to be"
        " the luck of the draw that its method describes; looking at many metrics at once, one in"
        " twenty will leave it out by chance.",
    )
    return Section(anchor="differences", title="Differences", words=words, blocks=tuple(blocks))


def _interval_figure(
    label: str, base: str, rows: Mapping[str, tuple[float, float | None, float | None]]
) -> Drawing:
    return Drawing(
        heading="",
        caption=f"Difference of {label} against {base} in percent of {base}'s value, with the"
        " interval of that percentage. Left of the line is lower.",
        draw=lambda ax: figures.interval_dots(ax, rows, "difference (%)"),
        height_in=0.8 + 0.22 * len(rows),
    )


def _times(shown: Sequence[Subject]) -> Section:
    done = {s.label: s.tables.jobs.finished for s in shown}
    jct = {s.label: s.tables.jobs.jct_s[done[s.label]] for s in shown}
    queueing = {s.label: s.tables.jobs.queueing_s[done[s.label]] for s in shown}
    slow = {s.label: slowdowns(s.tables.jobs) for s in shown}
    blocks: list[Block] = [
        Drawing(
            heading="Job completion time",
            caption="Fraction of finished jobs whose JCT is at most the time below. Logarithmic.",
            draw=lambda ax: figures.duration_cdf(ax, jct, "JCT", of="finished jobs"),
        ),
        Drawing(
            heading="Queueing delay",
            caption="The same for the time spent waiting. Where a line begins at the left is the"
            " fraction that waited less than the first tick.",
            draw=lambda ax: figures.duration_cdf(
                ax, queueing, "queueing delay", of="finished jobs"
            ),
        ),
        Drawing(
            heading="Slowdown",
            caption="JCT over duration: 1 is a job that never waited. Logarithmic.",
            draw=lambda ax: figures.ratio_cdf(ax, slow, "slowdown"),
        ),
    ]
    return Section(
        anchor="times", title="Completion, queueing, slowdown", words=(), blocks=tuple(blocks)
    )


def _fairness(shown: Sequence[Subject]) -> Section:
    blocks: list[Block] = [
        Drawing(
            heading="Finish-time fairness",
            caption="Fraction of finished jobs whose rho is at most the value below; right of the"
            " dashed line a job took longer than with its fair share of the cluster.",
            draw=lambda ax: figures.ratio_cdf(
                ax, {s.label: s.rho for s in shown}, "finish-time fairness rho", fair=1.0
            ),
        )
    ]
    by_vc = {s.label: breakdown(s.tables, s.load, "vc") for s in shown}
    if any(len(table) > 1 for table in by_vc.values()):
        first = next(iter(by_vc.values()))
        most = f" The {GROUPS} largest of {len(first):,}." if len(first) > GROUPS else ""
        hours = {k: t.assign(queueing_h=t["mean_queueing_s"] / 3600) for k, t in by_vc.items()}
        blocks += [
            Drawing(
                heading=f"By virtual cluster: {what}",
                caption="Finished jobs of each virtual cluster, most GPU-hours first." + most,
                draw=partial(figures.group_bars, tables=hours, column=column, what=what),
                height_in=1.0 + min(len(first), GROUPS) * (0.14 + 0.08 * len(shown)),
            )
            for column, what in (
                ("mean_rho", "mean rho"),
                ("queueing_h", "mean queueing delay (hours)"),
            )
        ]
    if any(s.metrics["preemptions"] for s in shown):
        blocks.append(
            Drawing(
                heading="Preemptions",
                caption="How many jobs were preempted how often. Logarithmic above 1.",
                draw=lambda ax: figures.preemption_bars(ax, {s.label: s.tables for s in shown}),
            )
        )
    return Section(anchor="fairness", title="Fairness", words=(), blocks=tuple(blocks))


def _queue(shown: Sequence[Subject]) -> Section:
    band = "Lines are means over each bin of the plot, bands its lowest and highest value."
    blocks: tuple[Block, ...] = (
        Drawing(
            heading="Waiting jobs",
            caption=f"Jobs submitted and holding nothing. {band}",
            draw=lambda ax: timeplots.over_time(
                ax, {s.label: (s.tables, s.load.waiting_jobs) for s in shown}, "waiting jobs"
            ),
        ),
        Drawing(
            heading="GPUs waited for",
            caption=f"GPUs that those jobs ask for. {band}",
            draw=lambda ax: timeplots.over_time(
                ax, {s.label: (s.tables, s.load.waiting_gpus) for s in shown}, "GPUs waited for"
            ),
        ),
        Drawing(
            heading="GPUs held",
            caption=f"GPUs held by jobs, all types. {band}",
            draw=lambda ax: timeplots.over_time(
                ax, {s.label: (s.tables, s.load.total("allocated")) for s in shown}, "GPUs held"
            ),
        ),
    )
    return Section(
        anchor="queue", title="The queue and the cluster over time", words=(), blocks=blocks
    )


def _inside(subject: Subject, place: int, left_out: Sequence[str]) -> Section:
    tables, load = subject.tables, subject.load
    words = (
        (f"Left out for size: {', '.join(left_out)}. Report them alone to see them.",)
        if left_out and place == IN_DETAIL - 1
        else ()
    )
    blocks: list[Block] = [
        Drawing(
            heading="GPUs held, by type",
            caption="Stacked means over each bin; the thin line is the highest total in the bin,"
            " the black line the GPUs in service. A dashed line is what makes progress, where that"
            " is less than what is held.",
            draw=lambda ax: timeplots.allocation(ax, tables, load),
            height_in=3.0,
        ),
        Drawing(
            heading="Utilisation, by type",
            caption="GPUs that make progress over GPUs in service, mean of each bin.",
            draw=lambda ax: timeplots.utilisation_by_type(ax, tables, load),
        ),
    ]
    if tables.loans is not None:
        blocks.append(
            Drawing(
                heading="Serving and training",
                caption="Stacked means over each bin: what online services use, what training gets"
                " on with, what it holds without progress, what is idle.",
                draw=lambda ax: colocation.stacked(ax, tables, load, legend_beside=True),
                height_in=3.0,
            )
        )
    if tables.samples["fragmented_gpus"].notna().any():
        blocks.append(
            Drawing(
                heading="Fragmentation",
                caption="Idle GPUs, and those of them that a typical job cannot use (FGD measure),"
                " from the run's samples.",
                draw=lambda ax: timeplots.fragmentation(ax, tables),
            )
        )
    blocks += [
        Drawing(
            heading="Devices",
            caption="A row is a GPU, a bar the time a job held it, coloured by job. A dark front"
            " is time held without progress; a red end is a preemption, migration or failure;"
            " a thinner bar is a share of the GPU; hatched grey is out of service.",
            draw=lambda ax: gantt.gantt(ax, tables),
            height_in=5.2,
        ),
        *_worker_maps(subject),
        Drawing(
            heading="JCT, by GPUs asked for",
            caption="Distribution of JCT in each size class, with its number of finished jobs.",
            draw=lambda ax: figures.jct_by_size(ax, tables),
        ),
    ]
    for by, what in (
        ("size_class", "GPUs asked for"),
        ("vc", "virtual cluster"),
        ("user", "user"),
        ("gpu_type", "GPU type held most"),
    ):
        table = breakdown(tables, load, by)
        if len(table) > 1 or by == "size_class":
            blocks.append(_breakdown_table(table, what))
    blocks.append(_worst(subject))
    return Section(
        anchor=f"inside-{place + 1}",
        title=f"Inside {subject.label}",
        words=words,
        blocks=tuple(blocks),
    )


def _worker_maps(subject: Subject) -> list[Block]:
    """The worker maps, where a job is elastic."""
    if not workergantt.bands(subject.tables):
        return []
    return [
        Drawing(
            heading="Worker maps of elastic jobs",
            caption="A lane is a job, its height the GPUs it holds, by type. The darker, the more"
            " logical workers share a GPU; hatched grey holds none; a black front is time held"
            " without progress.",
            draw=lambda ax: workergantt.worker_gantt(ax, subject.tables),
            height_in=4.2,
        )
    ]


def _breakdown_table(table: pd.DataFrame, what: str) -> Table:
    columns = (
        "jobs", "finished", "mean_jct_s", "median_jct_s", "p99_jct_s", "mean_queueing_s",
        "mean_slowdown", "mean_rho", "preemptions", "gpu_hours_held",
    )  # fmt: skip
    header = (
        what, "jobs", "finished", "mean JCT (s)", "median JCT (s)", "p99 JCT (s)",
        "mean queueing delay (s)", "mean slowdown", "mean rho", "preemptions", "GPU-hours held",
    )  # fmt: skip
    rows = []
    for name, row in table.head(GROUPS).iterrows():
        cells = [Cell(text=str(name))]
        for column in columns:
            whole = column in {"jobs", "finished", "preemptions"}
            value = int(row[column]) if whole else float(row[column])
            note = duration(value) if column.endswith("_s") else ""
            cells.append(Cell(text=number(value), note=note))
        rows.append(tuple(cells))
    more = f" The first {GROUPS} of {len(table):,}." if len(table) > GROUPS else ""
    return Table(
        heading=f"By {what}",
        caption=f"Means and quantiles over finished jobs.{more}",
        header=header,
        rows=tuple(rows),
    )


def _worst(subject: Subject, most: int = 10) -> Table:
    jobs = subject.tables.jobs
    rho = subject.rho
    known = np.flatnonzero(~np.isnan(rho))
    rows = []
    for i in known[np.argsort(-rho[known], kind="stable")][:most].tolist():
        names = [jobs.user.iloc[i], jobs.vc.iloc[i]]
        rows.append(
            (
                Cell(text=str(jobs.job_id.iloc[i])),
                *(Cell(text="-" if pd.isna(n) else str(n), words=True) for n in names),
                Cell(text=f"{jobs.milli[i] / 1000:g}"),
                *(
                    Cell(text=number(float(v)), note=duration(float(v)))
                    for v in (
                        jobs.submit_s[i], jobs.duration_s[i], jobs.queueing_s[i], jobs.jct_s[i]
                    )
                ),
                Cell(text=number(int(jobs.preemptions[i]))),
                Cell(text=number(float(rho[i]))),
            )
        )  # fmt: skip
    return Table(
        heading="Jobs served worst",
        caption="The finished jobs with the highest rho: where to begin when asking why.",
        header=(
            "job", "user", "virtual cluster", "GPUs", "submitted (s)", "duration (s)",
            "queueing delay (s)", "JCT (s)", "preemptions", "rho",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _definitions() -> Section:
    rows = tuple(
        (
            Cell(text=m.name),
            Cell(text=m.unit),
            Cell(text=m.better or "-"),
            Cell(text=m.meaning, words=True),
            Cell(text=m.formula, words=True),
        )
        for m in METRICS
    )
    table = Table(
        heading="",
        caption="Names as in --json output. Quantiles interpolate linearly between jobs.",
        header=("metric", "unit", "better", "meaning", "formula"),
        rows=rows,
    )
    return Section(anchor="definitions", title="What the metrics mean", words=(), blocks=(table,))
