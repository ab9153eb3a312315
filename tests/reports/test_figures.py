"""Figures: the same bytes every time, legible labels, and something sensible for any data."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from reports import figures, gantt, timeplots
from reports.html import draw, inline
from reports.metrics import breakdown
from reports.series import series
from reports.style import PALETTE, axis_words, label, line, paper, png, thin, time_unit
from reports.tables import RunTables, read
from tests.reports.runs import Hold, MakeRun
from traces import RunLog

SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return ["".join(t.itertext()).strip() for t in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


@pytest.fixture
def tables(one_run: RunLog) -> RunTables:
    return read(one_run, "a run")


def test_every_figure_of_a_run_is_drawn_and_labelled(tables: RunTables) -> None:
    load = series(tables)
    jct = {"a": tables.jobs.jct_s, "b": tables.jobs.jct_s + 60}
    drawings: dict[str, tuple[Callable[..., object], set[str]]] = {
        "cdf": (
            lambda ax: figures.duration_cdf(ax, jct, "JCT"),
            {"JCT", "fraction of jobs at most this", "a", "b", "1 h"},
        ),
        "ratio": (
            lambda ax: figures.ratio_cdf(ax, {"a": np.array([0.5, 1, 9])}, "rho", fair=1.0),
            {"rho", "fair", "5"},
        ),
        "sizes": (lambda ax: figures.jct_by_size(ax, tables), {"JCT"}),
        "bars": (
            lambda ax: figures.group_bars(
                ax, {"a": breakdown(tables, load, "vc")}, "mean_rho", "mean rho"
            ),
            {"mean rho", "vc-0", "vc-1", "vc-2"},
        ),
        "preemptions": (
            lambda ax: figures.preemption_bars(ax, {"a": tables}),
            {"times preempted", "above 10"},
        ),
        "allocation": (
            lambda ax: timeplots.allocation(ax, tables, load),
            {"GPUs", "held, v100", "held, t4", "progressing", "in service (lowest in bin)"},
        ),
        "utilisation": (
            lambda ax: timeplots.utilisation_by_type(ax, tables, load),
            {"utilisation", "v100", "t4", "100%"},
        ),
        "waiting": (
            lambda ax: timeplots.waiting_by_kind(ax, tables, load),
            {"jobs", "waiting", "running"},
        ),
        "devices": (
            lambda ax: gantt.gantt(ax, tables),
            {"GPUs, by node", "v100-0000", "v100-0001", "t4-0002", "Devices: all nodes"},
        ),
    }
    for name, (function, words) in drawings.items():
        svg = draw(function, 7, 3)
        missing = words - set(_texts(svg))
        assert not missing, (name, missing)
        assert draw(function, 7, 3) == svg, name
        assert "Date" not in svg.replace("Dated", "")
        assert "metadata" not in svg


def test_svg_takes_the_pages_colours() -> None:
    svg = draw(lambda ax: ax.set_xlabel("x"), 3, 2)
    ready = str(inline(svg, "f1", 'a "b" <c>'))
    root = ET.fromstring(ready)  # noqa: S314
    assert root.get("aria-label") == 'a "b" <c>'
    assert root.get("width") is None
    assert root.get("viewBox")
    assert "var(--ink)" in ready
    assert "#1b1f24" not in ready


def test_png_is_a_png() -> None:
    with paper(3, 2) as (drawing, axes):
        axes.plot([0, 1], [0, 1])
        assert png(drawing).startswith(b"\x89PNG")


def test_devices_of_a_big_cluster_are_chosen_by_what_happened(make_run: MakeRun) -> None:
    # 20 nodes of 8; node 7 sees a preemption, so it must be among the 6 that fit in 48 rows.
    jobs = [{"job_id": f"j{i}", "submit_s": 0.0, "duration_s": 10.0} for i in range(20)]
    holds = [
        Hold(job=f"j{i}", node=i, gpus=[0], start=0, end=10, why="preempt" if i == 7 else "finish")
        for i in range(20)
    ]
    tables = read(make_run(jobs=jobs, holds=holds, cluster="20x8:v100"))
    scope = gantt.choose(tables, gantt.bars(tables))
    assert len(scope.nodes) == 6
    assert "v100-0007" in scope.nodes
    assert scope.words == "the 6 most interrupted of 20 nodes"
    assert (scope.start_s, scope.end_s) == (0, 10)


def test_a_crowded_run_is_shown_in_its_busiest_stretch(make_run: MakeRun) -> None:
    n = 3 * gantt.MAX_BARS
    ends = np.sort(np.random.default_rng(0).normal(5e4, 5e3, n))
    starts = np.append(ends[0] - 1, ends[:-1])
    tables = read(
        make_run(
            jobs=[{"job_id": f"j{i}", "submit_s": 0.0, "duration_s": 1.0} for i in range(n)],
            holds=[
                Hold(job=f"j{i}", node=0, gpus=[0], start=s, end=e)
                for i, (s, e) in enumerate(zip(starts, ends, strict=True))
            ],
        )
    )
    frame = gantt.bars(tables)
    scope = gantt.choose(tables, frame)
    shown = (frame["start_s"] < scope.end_s) & (frame["end_s"] > scope.start_s)
    assert 0 < shown.sum() <= gantt.MAX_BARS
    assert scope.start_s < 5e4 < scope.end_s
    assert scope.words.endswith("the busiest stretch of the run")


def test_shares_of_a_gpu_are_stacked_not_drawn_over_each_other() -> None:
    taken: list[tuple[float, float, float]] = []
    assert gantt._free_offset(taken, 0, 10, 0.5) == 0
    assert gantt._free_offset(taken, 1, 5, 0.25) == 0.5
    assert gantt._free_offset(taken, 2, 9, 0.25) == 0.75
    assert gantt._free_offset(taken, 5, 9, 0.25) == 0.5  # the second has ended
    assert gantt._free_offset(taken, 10, 12, 1.0) == 0


def test_lines_differ_in_more_than_colour() -> None:
    styles = [(s["color"], str(s["linestyle"])) for s in map(line, range(14))]
    assert len(set(styles)) == 14
    assert styles[0][1] != styles[1][1] != styles[2][1]
    assert len(set(PALETTE)) == 7


@pytest.mark.parametrize(
    ("span_s", "name"),
    [(59, "seconds"), (600, "minutes"), (5 * 3600, "hours"), (30 * 86_400, "days")],
)
def test_time_units_people_can_hold_in_mind(span_s: float, name: str) -> None:
    assert time_unit(span_s).name == name


def test_names_for_ticks_and_legends() -> None:
    assert axis_words(["short", "a" * 30], 9) == ["short", "aaaa…aaaa"]
    assert label("two\nlines") == "two lines"
    assert label("_hidden") == "\u200b_hidden"  # matplotlib leaves out what begins with _


def test_a_thinned_distribution_keeps_its_ends() -> None:
    values = np.random.default_rng(0).exponential(size=100_000)
    x, y = thin(values, 400)
    assert len(x) <= 400
    assert (x[0], x[-1], y[-1]) == (values.min(), values.max(), 1)
    # It stays on the true distribution function.
    truth = np.searchsorted(np.sort(values), x, side="right") / len(values)
    assert np.abs(truth - y).max() == 0
