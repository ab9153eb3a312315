"""``tandem report``, ``metrics``, ``compare``, ``timeline`` from the front door."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.definitions import definition
from reports.metrics import metrics
from tandem import main
from tests.reports.runs import MakeRun
from traces import RunLog

Random = Callable[..., RunLog]


def test_metrics_as_json_are_those_of_the_function(
    one_run: RunLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", str(one_run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics(one_run)


def test_metrics_for_people(one_run: RunLog, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", str(one_run.path)]) == 0
    out = capsys.readouterr().out
    assert "mean JCT" in out
    assert "utilisation, v100" in out
    assert "partial" not in out


def test_a_partial_run_is_called_so(random_run: Random, capsys: pytest.CaptureFixture[str]) -> None:
    run = random_run(1, 5, record={"status": "partial"})
    assert main(["metrics", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith("partial run")


def test_report_goes_into_the_run_and_says_where(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(jobs=[])
    assert main(["report", str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
    assert "</html>" in (run.path / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(run.path), "--quiet", "--out", str(run.path / "b.html")]) == 0
    assert capsys.readouterr().out == ""
    assert (run.path / "b.html").is_file()


def test_report_of_several_runs_goes_to_the_working_directory(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(make_run(jobs=[]).path) for _ in range(2)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["report", *runs, "--quiet"]) == 0
    assert (tmp_path / "here" / "report.html").is_file()


def test_compare(random_run: Random, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(random_run(1, 30, name=name).path) for name in ("a", "b")]
    assert main(["compare", *runs]) == 0
    out = capsys.readouterr().out
    assert "b against a" in out
    assert "moving-block bootstrap" in out
    assert main(["compare", *runs, "--json", "--confidence", "0.9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "a"
    assert found["confidence"] == 0.9
    mean = found["runs"][1]["metrics"]["mean_jct_s"]
    assert (mean["difference"], mean["interval"], mean["unit"]) == (0, [0, 0], "s")
    assert found["runs"][1]["directories"] == [runs[1]]
    for run in found["runs"]:
        for name in run["metrics"]:
            assert definition(name)


def test_timeline(random_run: Random, capsys: pytest.CaptureFixture[str]) -> None:
    run = random_run(1, 20)
    assert main(["timeline", str(run.path)]) == 0
    assert "timeline.json.gz" in capsys.readouterr().out
    assert (run.path / "timeline.json.gz").read_bytes().startswith(b"\x1f\x8b")
    out = run.path / "t.json"
    assert main(["timeline", str(run.path), "--out", str(out), "--from", "10", "--to", "90"]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["report", "missing"], 1, "not a run directory"),
        (["metrics", "missing"], 1, "not a run directory"),
        (["compare", "missing", "missing"], 1, "not a run directory"),
        (["timeline", "missing"], 1, "not a run directory"),
        (["report"], 2, "RUN"),
        (["compare", "RUN"], 2, "at least two"),
        (["compare", "RUN", "RUN", "--confidence", "1.5"], 2, "between 0 and 1"),
        (["compare", "RUN", "RUN", "--seed", "-1"], 2, "0 or more"),
        (["timeline", "RUN", "--from", "9", "--to", "3"], 2, "window is empty"),
        (["timeline", "RUN", "--from", "soon"], 2, "soon"),
        (["report", "RUN", "--out", "no/such/folder/r.html"], 2, "cannot be written"),
    ],
)
def test_mistakes_get_one_line(
    one_run: RunLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(one_run.path) if a == "RUN" else a for a in arguments]
    assert main(given) == code
    error = capsys.readouterr().err
    assert error.startswith("tandem: error: ")
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_broken_run_directories_are_named(
    random_run: Random, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(1, 5)
    (run.path / "allocations.parquet").write_bytes(b"PAR1 no")
    assert main(["metrics", str(run.path)]) == 1
    assert "table allocations cannot be read" in capsys.readouterr().err
    (run.path / "jobs.parquet").unlink()
    assert main(["report", str(run.path)]) == 1
    assert "jobs" in capsys.readouterr().err
    assert not (run.path / "report.html").exists()
    record = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    del record["cluster"]
    (run.path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["metrics", str(run.path)]) == 1
    assert "inventory" in capsys.readouterr().err


def test_registering_the_commands_imports_nothing_heavy() -> None:
    script = (
        "import argparse, sys; from reports import cli;"
        "cli.add_commands(argparse.ArgumentParser().add_subparsers());"
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'matplotlib', 'jinja2', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
