"""What the check of a trace finds, one defect at a time, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.check import CODES, SEVERITIES, Finding, Report, check
from traces.cluster import ClusterSpec
from traces.workload import Repair, Source, Workload

_CLUSTER = ClusterSpec.parse("2x8:v100")


def _jobs(count: int = 40, **columns: object) -> pd.DataFrame:
    """A sound trace: a job every 100 s that runs for its own time on one GPU."""
    table = pd.DataFrame(
        {
            "job_id": [f"j{i}" for i in range(count)],
            "submit_s": [100.0 * i for i in range(count)],
            "duration_s": [600.0 + i for i in range(count)],
            "num_gpus": 1,
        }
    )
    return table.assign(**columns)


def _set(column: str, values: dict[int, object], table: pd.DataFrame | None = None) -> pd.DataFrame:
    table = _jobs() if table is None else table
    cells = table[column].tolist() if column in table else [None] * len(table)
    for row, value in values.items():
        cells[row] = value
    return table.assign(**{column: cells})


def _report(table: pd.DataFrame, spec: ClusterSpec | None = None) -> Report:
    return check(Workload(table), spec)


def _finding(report: Report, code: str) -> Finding:
    (finding,) = [f for f in report.findings if f.code == code]
    return finding


def test_a_sound_trace_has_only_notes() -> None:
    report = _report(_jobs(), _CLUSTER)
    assert report.ok
    assert [f.code for f in report.findings] == ["empty-columns", "peak", "load"]
    # 40 x ~620 s over 3,900 s on 16 GPUs.
    assert _finding(report, "load").text == "load 0.397 of the 16 GPUs of the whole inventory"
    assert "7 GPUs at once" in _finding(report, "peak").text


@pytest.mark.parametrize(
    ("column", "values", "code", "severity", "count"),
    [
        ("num_gpus", {3: 17, 5: 17}, "infeasible-gpus", "error", 2),
        ("gpu_type", {3: "a100"}, "infeasible-type", "error", 1),
        ("start_s", {3: 299.0, 4: 400.0, 5: 501.0}, "start-before-submit", "warning", 1),
        ("submit_s", {39: -50.0}, "negative-time", "note", 1),
        ("submit_s", {39: 5e5}, "gap", "warning", 1),
        ("duration_s", {3: 4_000.0}, "beyond-span", "note", 1),
        ("duration_s", {3: None, 9: None}, "unknown-duration", "warning", 2),
        ("duration_s", {3: 0.0}, "zero-length", "note", 1),
        ("left_censored", {0: True}, "left-censored", "note", 1),
        ("right_censored", dict.fromkeys(range(3), True), "right-censored", "warning", 3),
        ("duration_s", dict.fromkeys(range(40), 2_000.0), "overload", "warning", 40),
        ("duration_s", dict.fromkeys(range(40), 1.0), "idle", "note", 40),
        ("user", dict.fromkeys(range(21), "ada"), "partial-columns", "note", 19),
        ("user", {i: "ada" if i < 30 else "bob" for i in range(40)}, "one-user", "note", 30),
        ("vc", {i: "x" if i < 30 else "y" for i in range(40)}, "one-vc", "note", 30),
    ],
)
def test_one_defect(
    column: str, values: dict[int, object], code: str, severity: str, count: int
) -> None:
    table = _jobs()
    if column.endswith("censored"):
        table = table.assign(**{column: False})
    spec = ClusterSpec.parse("1x16:v100")
    report = _report(_set(column, values, table), spec)
    findings = [f for f in report.findings if f.code == code]
    assert findings
    assert {f.severity for f in findings} == {severity}
    assert findings[0].count == count
    assert report.ok == (severity != "error")


def test_infeasible_on_one_node() -> None:
    table = _jobs(2).assign(num_gpus=[9, 1], single_node=True)
    finding = _finding(_report(table, _CLUSTER), "infeasible-node")
    assert finding.examples == ("j0 needs 9 GPUs on one node; the largest v100 node has 8",)
    table = _jobs(2).assign(cpu_milli=[9_000, 1], memory_mib=[1, 9 * 1024])
    from traces.cluster import Node

    small = ClusterSpec(
        (Node(name="n", gpu_type="t4", num_gpus=1, cpu_milli=8_000, memory_mib=8_192),)
    )
    codes = [f.code for f in _report(table, small).findings if f.severity == "error"]
    assert codes == ["infeasible-cpu", "infeasible-memory"]


def test_a_recorded_start_makes_long_runs_suspect() -> None:
    table = _set("duration_s", {3: 4_000.0}, _jobs().assign(start_s=_jobs()["submit_s"]))
    assert _finding(_report(table), "beyond-span").severity == "warning"


def test_no_run_times_at_all() -> None:
    nothing = _report(_jobs().assign(duration_s=None))
    assert _finding(nothing, "unknown-duration").severity == "error"
    assert not nothing.ok
    steps = _report(_jobs().assign(duration_s=None, total_steps=100.0))
    assert _finding(steps, "unknown-duration").severity == "warning"
    never = _report(_set("duration_s", {3: None}, _set("status", {3: "pending"}, _sound_status())))
    assert "(1 never ran)" in _finding(never, "unknown-duration").text


def _sound_status() -> pd.DataFrame:
    return _jobs().assign(status="completed")


def test_everything_in_one_instant() -> None:
    report = _report(_jobs().assign(submit_s=7.0), _CLUSTER)
    assert _finding(report, "one-instant").text == "all 40 jobs are submitted at 7 s"
    assert not {"load", "idle", "overload", "gap"} & {f.code for f in report.findings}


def test_no_jobs() -> None:
    report = check(Workload(_jobs()).head(0), _CLUSTER)
    assert [f.code for f in report.findings] == ["no-jobs"]
    assert not report.ok


def test_duplicates_weigh_more_without_ids() -> None:
    table = _jobs().assign(submit_s=[100.0 * (i // 2) for i in range(40)], duration_s=5.0)
    own = _finding(_report(table), "duplicate")
    assert (own.severity, own.count, own.examples) == ("note", 20, ("j1", "j3", "j5"))
    made_up = _finding(_report(table.drop(columns="job_id")), "duplicate")
    assert (made_up.severity, made_up.count) == ("warning", 20)


def test_file_order_is_a_note() -> None:
    finding = _finding(_report(_jobs().iloc[::-1]), "out-of-order")
    assert (finding.severity, finding.count) == ("note", 39)


def test_an_overloaded_type_is_named() -> None:
    table = _jobs().assign(gpu_type=["t4" if i % 2 else "v100" for i in range(40)])
    report = _report(table, ClusterSpec.parse("1x8:v100,1x2:t4"))
    # 20 jobs of about 620 s on t4 over 3,900 s on two GPUs.
    assert _finding(report, "overload").text == "load 1.59 of the 2 GPUs of t4"


def test_the_loaders_repairs_are_in_the_report() -> None:
    source = Source(
        path="a.csv",
        format="table",
        repairs=(Repair(rule="seconds rounded", rows=3, example="row 5: x"),),
        notes=("zone unknown",),
    )
    report = check(Workload(_jobs(), source))
    repaired = _finding(report, "repaired")
    assert (repaired.count, repaired.text) == (3, "3 rows: seconds rounded")
    assert repaired.examples == ("row 5: x",)
    assert _finding(report, "loader").text == "zone unknown"


def test_the_text_puts_the_worst_first() -> None:
    table = _set("num_gpus", {3: 17}, _set("duration_s", {4: None}))
    report = _report(table, _CLUSTER)
    lines = report.text().splitlines()
    assert lines[0] == "workload: 40 jobs, on 2 nodes, 16 v100"
    assert lines[1:4] == [
        "error    infeasible-gpus      1 job (2.5 %): can never run on this inventory",
        "                              e.g. j3 needs 17 v100; there are 16",
        "                              to do: use a larger inventory, or sample the trace without"
        " these jobs",
    ]
    assert lines[4].startswith("warning  unknown-duration     1 job (2.5 %): no run time")
    assert lines[-1] == "1 error, 1 warning, 3 notes: some jobs cannot be replayed"
    assert _report(_jobs()).text().splitlines()[0] == "workload: 40 jobs, without an inventory"


def test_the_dictionary_is_json() -> None:
    report = _report(_set("num_gpus", {3: 17}), _CLUSTER)
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again == report.to_dict()
    assert (again["ok"], again["counts"]["error"], again["jobs"]) == (False, 1, 40)
    assert again["findings"][0]["advice"] == CODES["infeasible-gpus"]


def test_every_code_is_documented(repo: Path) -> None:
    page = (repo / "docs" / "traces" / "check.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(CODES)
    for row in rows:
        code = row.split("`")[1]
        assert CODES[code] in row, f"{code}: the page says another thing to do"


@settings(max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "submit_s": st.floats(-1e6, 1e9),
                "duration_s": st.none() | st.floats(0, 1e9),
                "num_gpus": st.integers(0, 40),
                "gpu_type": st.none() | st.sampled_from(["v100", "t4", "v100|t4", "x"]),
                "start_s": st.none() | st.floats(-1e6, 1e9),
                "user": st.none() | st.sampled_from("ab"),
                "status": st.sampled_from(["unknown", "pending"]),
                "left_censored": st.booleans(),
                "right_censored": st.booleans(),
                "cpu_milli": st.none() | st.integers(0, 10**6),
            }
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_workload_gets_a_report(rows: list[dict[str, object]]) -> None:
    report = check(Workload.from_jobs(rows), ClusterSpec.parse("2x8:v100,1x4:t4"))
    assert report.jobs == len(rows)
    assert {f.code for f in report.findings} <= set(CODES)
    ranks = [SEVERITIES.index(f.severity) for f in report.findings]
    assert ranks == sorted(ranks)
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.text()
