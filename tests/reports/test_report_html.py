"""The HTML report: complete, self-contained, the same every time, and safe with any name."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.definitions import METRICS
from reports.html import render, write_report
from tests.reports.runs import Hold, MakeRun
from traces import RunLog, UsageError

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a page says: elements, attributes, text by heading; checks that elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1] += data


def _check_self_contained(page: Page, html: str) -> None:
    assert "script" not in page.tags
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.tags)
    for _tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "src", "xlink:href"}:
            assert value.startswith(("#", "data:image/png;base64,"))
        if name == "style":
            assert "url(" not in value.replace("url(#", "")
    assert "@import" not in html
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    known = set(ids)
    for _tag, name, value in page.attributes:
        if name in {"href", "xlink:href"} and value.startswith("#"):
            assert value[1:] in known


def test_report_of_one_run(one_report: Path) -> None:
    html = one_report.read_text(encoding="utf-8")
    page = Page(html)
    _check_self_contained(page, html)
    assert page.headings[0] == "Run list-scheduled"
    for heading in (
        "Contents", "Results", "What was run", "Completion, queueing, slowdown", "Fairness",
        "The queue and the cluster over time", "Inside list-scheduled", "What the metrics mean",
        "Devices", "Jobs served worst", "By virtual cluster", "By GPU type held most",
    ):  # fmt: skip
        assert heading in page.headings, heading
    assert "Differences" not in page.headings
    for metric in METRICS:
        assert metric.name in page.text
    assert page.tags.count("svg") >= 10
    assert "the head of the line blocks" in page.text
    assert len(html) < 1_000_000
    assert not list(one_report.parent.glob(".*tmp"))


def test_svg_has_words_for_those_who_cannot_see_it(one_report: Path) -> None:
    page = Page(one_report.read_text(encoding="utf-8"))
    figures = page.tags.count("svg")
    assert [v for t, n, v in page.attributes if (t, n) == ("svg", "role")] == ["img"] * figures
    words = [v for t, n, v in page.attributes if (t, n) == ("svg", "aria-label")]
    assert len(words) == figures
    assert all(words)
    assert ("html", "lang", "en") in page.attributes


def test_report_of_several_runs(random_run: Callable[..., RunLog]) -> None:
    runs = [random_run(1, 80, name=f"week-{name}") for name in ("fifo", "srtf")]
    html = render(runs)
    page = Page(html)
    _check_self_contained(page, html)
    assert {"Differences", "srtf against fifo", "Inside fifo", "Inside srtf"} <= set(page.headings)
    assert "moving-block bootstrap" in page.text


def test_more_runs_than_fit_are_named(make_run: MakeRun) -> None:
    names = ["r0", "r1", "r2", "r3", "r4", "r5"]
    page = Page(render([make_run(jobs=[], name=name) for name in names]))
    assert "Left out for size: r4, r5." in page.text
    assert "Inside r4" not in page.headings


def test_names_cannot_become_markup(make_run: MakeRun) -> None:
    names: list[str] = [HOSTILE, "$x^{", "_under", "a & b", "日本", "]]>", "'\"", "line\nbreak"]
    run = make_run(
        jobs=[
            {"job_id": f"{n}{i}", "submit_s": float(i), "duration_s": 5.0, "user": n, "vc": n}
            for i, n in enumerate(names)
        ],
        holds=[
            Hold(job=f"{n}{i}", node=0, gpus=[i % 4], start=i * 10.0, end=i * 10.0 + 5)
            for i, n in enumerate(names)
        ],
        name=HOSTILE,
        record={
            "policy": {"name": HOSTILE, "params": {HOSTILE: HOSTILE}, "says": [HOSTILE]},
            "workload": {"path": HOSTILE, "notes": [HOSTILE], "repairs": [{"rule": HOSTILE}]},
        },
    )
    html = render([run, make_run(jobs=[], name="_" + HOSTILE)])
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8
    assert f"Runs {HOSTILE}, _{HOSTILE}" in page.headings
    assert "日本" in page.text


def test_a_partial_run_says_so_loudly(random_run: Callable[..., RunLog], one_report: Path) -> None:
    whole = Page(one_report.read_text(encoding="utf-8"))
    assert "alert" not in [v for _, n, v in whole.attributes if n == "role"]
    page = Page(render([random_run(1, 10, record={"status": "partial"})]))
    assert "alert" in [v for _, n, v in page.attributes if n == "role"]
    assert "Partial run." in page.text


@pytest.mark.parametrize(
    "fields",
    [
        {"jobs": []},
        {"jobs": [{"job_id": "waits", "submit_s": 0.0}]},
        {
            "jobs": [{"job_id": "a", "submit_s": 0.0, "num_gpus": 0}],
            "holds": [Hold(job="a", node=0, gpus=[], start=0, end=9)],
        },
        {
            "jobs": [{"job_id": "a", "submit_s": 5.0, "duration_s": 0.0}],
            "holds": [Hold(job="a", node=0, gpus=[0], start=5, end=5)],
        },
    ],
    ids=["no jobs", "nothing ran", "CPU job only", "no time passed"],
)
def test_odd_runs_have_a_report(make_run: MakeRun, fields: dict[str, Any]) -> None:
    assert "What was run" in Page(render([make_run(**fields)])).headings


def test_a_record_with_little_in_it(make_run: MakeRun) -> None:
    nothing = {"policy": None, "placement": None, "workload": None, "span": None, "seed": None}
    run = make_run(jobs=[], record={**nothing, "something_new": {"a": [1, 2.5, None]}})
    page = Page(render([run]))
    assert "something_new" in page.text
    assert "a: 1, 2.5, None" in page.text


def test_equal_runs_give_equal_bytes(one_run: RunLog, one_report: Path) -> None:
    assert render([one_run]) == one_report.read_text(encoding="utf-8")


def test_where_it_cannot_be_written(random_run: Callable[..., RunLog], tmp_path: Path) -> None:
    run = random_run(1, 3)
    with pytest.raises(UsageError, match="is a directory"):
        write_report([run], tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report([run], tmp_path / "missing" / "r.html")
    with pytest.raises(UsageError, match="at least one"):
        write_report([], tmp_path / "r.html")
