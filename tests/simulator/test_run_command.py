"""``tandem run`` with options that would change nothing, and with a world that gets in its way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import simulator.run
import tandem
from policies import Plan
from traces import RunLog

JOBS = "job_id,submit_s,num_gpus,duration_s\na,0,1,100\nb,10,2,50\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "jobs.csv"
    file.write_text(JOBS)
    return file


def run(trace: Path, out: Path, *more: str) -> int:
    return tandem.main(
        ["run", str(trace), "--cluster", "1x4:v100", "--out", str(out), "--no-report", *more]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--speed", "k80=2"], "--speed k80: the cluster has no such GPU type"),
        (["--speed", "v10=2"], "did you mean 'v100'?"),
        (["--failures", "node_mttr_s=5"], "nothing ever fails; expected node_mtbf_s"),
        (["--failures", ""], "nothing ever fails"),
        (["--cost", "start=1", "--cost", "start=2"], "start is given twice"),
        (["--cluster", ""], "cluster ''"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    options: list[str],
    words: str,
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(trace, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_inventory_that_is_not_there_is_called_an_inventory(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trace, tmp_path / "out", "--cluster", str(tmp_path / "nodes.csv")) == 1
    assert "no such file; expected an inventory" in capsys.readouterr().err


def test_a_report_that_fails_is_a_run_command_that_fails(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.html.write_report", full)
    out = tmp_path / "out"
    arguments = ["run", str(trace), "--cluster", "1x4:v100", "--out", str(out), "--quiet"]
    assert tandem.main(arguments) == 1
    assert not RunLog.open(out).partial


def test_a_full_disk_leaves_nothing_half_written(
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(writer: pq.ParquetWriter, *_: object, **__: object) -> None:
        writer.is_open = False
        raise OSError(28, "No space left on device")

    # Closing a table writes its footer, which has no room either.
    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    monkeypatch.setattr(pq.ParquetWriter, "close", full)
    assert run(trace, tmp_path / "out", "--quiet") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["jobs.csv"]


def test_a_run_that_was_written_there_meanwhile_is_not_replaced(
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    from policies.record import ending

    def meanwhile(*given: Any) -> dict[str, Any]:
        out.mkdir()
        (out / "run.json").write_text("{}")
        return ending(*given)

    monkeypatch.setattr(simulator.run, "ending", meanwhile)
    assert run(trace, out, "--quiet") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jobs.csv", "out"]
    assert (out / "run.json").read_text() == "{}"


def test_an_interrupted_run_says_where_its_part_is(
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan(*_: object) -> Plan:
        os.kill(os.getpid(), signal.SIGTERM)
        return Plan()

    monkeypatch.setattr("policies.inter.fifo.Fifo.plan", plan)
    out = tmp_path / "out"
    assert run(trace, out, "--quiet") == 130
    assert capsys.readouterr().err == f"tandem: interrupted: {out} holds what was done by then\n"
    assert RunLog.open(out).partial
    monkeypatch.undo()
    assert tandem.main(["explain", str(out), "b"]) == 0
