"""A run directory that was damaged, or put together from two, is told so in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tandem
from policies.replay import explain_at
from simulator import simulate
from traces import RunLog, load

Damage = Callable[[dict[str, Any]], Any]


def make(folder: Path, name: str, jobs: str, **how: Any) -> Path:
    trace = folder / f"{name}.csv"
    trace.write_text("job_id,submit_s,num_gpus,duration_s\n" + jobs)
    simulate(load(trace), "2x4:v100", out=folder / name, **how)
    return folder / name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path, "run", "a,0,4,100\nb,10,8,50\nc,20,1,5\n")


def commands(run: Path) -> list[list[str]]:
    return [
        ["metrics", str(run)],
        ["report", str(run), "--out", str(run.parent / "a.html"), "--quiet"],
        ["timeline", str(run)],
        ["compare", str(run), str(run)],
        ["explain", str(run), "b"],
        ["traces", "info", str(run)],
        ["run", str(run), "--cluster", str(run), "--out", str(run.parent / "b"), "--quiet"],
    ]


@pytest.mark.parametrize(
    "damage",
    [
        *(
            lambda record, name=name, value=value: record.__setitem__(name, value)
            for name in ("cluster", "workload", "model", "believed", "checkpoints", "span", "seed")
            for value in ("zzz", [1])
        ),
        lambda record: record.__setitem__("wall_s", "long"),
        lambda record: record.pop("cluster"),
        lambda record: record["cluster"].pop("links"),
        lambda record: record["cluster"]["nodes"][0].__setitem__("num_gpus", "x"),
        lambda record: record["cluster"]["nodes"][0].__setitem__("colour", "red"),
        lambda record: record["cluster"]["nodes"].pop(),
        lambda record: record["model"].__setitem__("costs", {"colour": 1}),
    ],
)
def test_a_damaged_record_is_one_line_for_every_command(
    damage: Damage, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "run.json").read_text())
    damage(record)
    (run / "run.json").write_text(json.dumps(record))
    codes = set()
    for command in commands(run):
        shutil.rmtree(run.parent / "b", ignore_errors=True)
        code = tandem.main(command)
        said = capsys.readouterr().err
        codes.add(code)
        assert code in (0, 1)
        assert said.count("\n") == (code != 0), command
    assert 1 in codes


@pytest.mark.parametrize("table", ["events", "allocations", "jobs"])
def test_a_table_of_another_run_is_named(
    table: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make(tmp_path, "other", "x,0,4,100\ny,10,8,50\nb,20,1,5\n")
    shutil.copy(other / f"{table}.parquet", run)
    assert tandem.main(["explain", str(run), "b"]) == 1
    said = capsys.readouterr().err
    assert ".parquet" in said
    assert said.count("\n") == 1


def test_a_job_that_the_log_ends_before_is_explained_at_the_end(tmp_path: Path) -> None:
    run = make(tmp_path, "run", "a,0,4,100\nb,500,8,50\n", until_s=200.0)
    at_s, reason = explain_at(RunLog.open(run), "b")
    assert at_s == 200.0
    assert (reason.code, reason.text) == ("unsubmitted", "it is submitted at 500 s")


def test_a_rejected_job_has_the_reason_for_which_it_was(tmp_path: Path) -> None:
    run = make(tmp_path, "run", "a,0,4,\nb,0,64,10\nc,5,1,5\n", untimed="reject", misfits="reject")
    log = RunLog.open(run)
    assert explain_at(log, "a")[1].text == "its run time is unknown"
    assert explain_at(log, "b")[1].text == "it fits nowhere on this cluster"
