"""``tandem traces``: every command through the parser, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tandem
from traces import generate, load
from traces.convert import write


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = tandem.main(["traces", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    code, out, err = run(capsys, *argv, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.csv"
    write(generate("philly", seed=1, days=2), path)
    return path


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "examples:" in err


def test_info(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    facts = run_json(capsys, "info", trace, "--cluster", "64x8:v100")
    workload = load(trace)
    assert facts["jobs"] == len(workload)
    assert facts["digest"] == workload.digest()
    assert facts["offered_load"] == pytest.approx(facts["mean_demand_gpus"] / 512)
    assert sum(size["jobs"] for size in facts["sizes"]) == len(workload)
    assert facts["duration_s"]["p50"] == workload.table["duration_s"].median()
    code, out, _ = run(capsys, "info", trace, "--cluster", "64x8:v100")
    assert code == 0
    for words in ("offered load", "GPU-hours", "median run", "statuses", "p95"):
        assert words in out
    assert max(map(len, out.splitlines())) < 200


def test_info_of_real_traces(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    facts = run_json(capsys, "info", shared_data / "philly" / "jobs.csv.gz")
    assert facts["jobs"] == 82_247
    assert facts["span_s"] == 9_408_690
    assert facts["vcs"] == 15
    assert [s["jobs"] for s in facts["sizes"]][:4] == [76_627, 1_818, 1_870, 1_643]
    assert facts["duration_s"]["p99"] == pytest.approx(254_758, abs=10)
    assert facts["gpu_hours"] * 3600 == pytest.approx(3_521_082_502)
    code, out, _ = run(capsys, "info", shared_data / "openb" / "pods.csv.gz")
    assert code == 0
    assert "repaired          1 rows" in out
    assert "      <1      3,078" in out


def test_info_where_run_times_are_unknown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("submit_s,num_gpus\n0,1\n")
    facts = run_json(capsys, "info", path)
    assert facts["unknown_durations"] == 1
    assert facts["mean_demand_gpus"] is None
    code, out, _ = run(capsys, "info", path)
    assert code == 0
    assert "one instant" in out
    assert "unknown" in out


def test_check(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    assert run_json(capsys, "check", trace, "--cluster", "64x8:v100")["ok"] is True
    code, out, _ = run(capsys, "check", trace, "--cluster", "1x4:v100")
    assert code == 1
    assert "infeasible" in out


def test_convert_with_a_column_map(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("when,gpus,secs\n2024-01-01 00:00:00,4,60\n2024-01-01 00:01:00,2,30\n")
    out_path = tmp_path / "canonical.parquet"
    code, out, err = run(
        *(capsys, "convert", mine, "--out", out_path),
        *("--column", "submit_s=when", "--column", "num_gpus=gpus", "--column", "duration_s=secs"),
        *("--column", "gpu_type==v100"),
    )
    assert (code, err) == (0, "")
    assert "2 jobs" in out
    table = load(out_path).table
    assert table["submit_s"].tolist() == [0, 60]
    assert table["gpu_type"].tolist() == ["v100", "v100"]
    code, _, err = run(capsys, "convert", mine, "--out", out_path)
    assert code == 2
    assert "exists already; --force replaces it" in err


def test_convert_to_a_load(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    facts = run_json(
        *(capsys, "convert", trace, "--out", tmp_path / "b.csv"),
        *("--load", 0.5, "--cluster", "8x8"),
    )
    assert facts["offered_load"] == pytest.approx(0.5, rel=1e-9)
    assert facts["out"] == str(tmp_path / "b.csv")


def test_generate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "jobs.parquet"
    arguments = ("generate", "poisson", "--jobs", 500, "--seed", 3, "--set", "gpus=1:0.5,8:0.5")
    load_options = ("--load", 0.9, "--cluster", "4x8:v100", "--users", 3, "--estimates", 0.5)
    code, out, err = run(capsys, *arguments, *load_options, "--out", path)
    assert (code, err) == (0, "")
    assert "500 jobs" in out
    assert "0.900 of 32" in out
    expected = generate(
        "poisson",
        seed=3,
        jobs=500,
        load=0.9,
        cluster="4x8:v100",
        users=3,
        estimates=0.5,
        gpus="1:0.5,8:0.5",
    )
    assert load(path).digest() == expected.digest()


def test_sample(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    facts = run_json(
        *(capsys, "sample", trace, "--by", "head", "--length", 86_400),
        *("--out", tmp_path / "day.csv"),
    )
    assert facts["span_s"] <= 86_400
    assert facts["notes"][-1].startswith("sample by head")
    code, out, _ = run(
        capsys, "sample", trace, "--fraction", 0.1, "--seed", 5, "--out", tmp_path / "t.csv"
    )
    assert code == 0
    assert "note: sample by job, seed 5" in out


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_json(capsys, "formats")
    assert {"philly", "openb", "canonical", "run"} <= set(names)
    code, out, _ = run(capsys, "formats")
    assert code == 0
    assert "generators: philly, openb, poisson, gavel" in out
    assert any(o["name"] == "min_duration_s" for o in run_json(capsys, "formats", "philly"))
    assert "max_gpu_hours=" in run(capsys, "formats", "philly")[1]
    assert "has no options" in run(capsys, "formats", "canonical")[1]


def test_fetch_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fetch")
    assert code == 0
    assert "CC BY 4.0" in out
    assert run_json(capsys, "fetch")["pai"]["urls"][0].endswith("/pai_job_table.tar.gz")
    code, _, err = run(capsys, "fetch", "phily")
    assert code == 2
    assert "did you mean 'philly'" in err


def test_fetch_prints_what_it_got(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traces import fetch, publishers

    here = publishers.Publication(
        title="a test",
        licence="CC BY 4.0",
        note="unpack it",
        files=(publishers.RemoteFile(url="https://invalid.test/a.csv", name="a.csv"),),
    )
    monkeypatch.setitem(publishers.PUBLICATIONS, "here", here)
    (tmp_path / "a.csv").write_bytes(b"abc")  # already there: no connection is made
    code, out, err = run(capsys, "fetch", "here", "--to", tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{tmp_path / 'a.csv'}: was there, 3 bytes, sha256 ba7816bf8f01..., no published checksum",
        "licence: CC BY 4.0",
        "next: unpack it",
    ]
    facts = run_json(capsys, "fetch", "here", "--to", tmp_path)
    assert facts["files"][0]["sha256"] == fetch.sha256_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("info", "nowhere.csv"), 1, "no such file"),
        (("info", "."), 1, ""),
        (("info", "x.csv", "--format", "phily"), 2, "did you mean"),
        (("info", "x.csv", "--set", "novalue"), 2, "expected NAME=VALUE"),
        (("info", "x.csv", "--set", "a=1", "--set", "a=2"), 2, "given twice"),
        (("info", "x.csv", "--cluster", "64y8"), 2, "NODESxGPUS"),
        (("generate", "philly", "--out", "x.csv"), 2, "one of the arguments --days --jobs"),
        (("generate", "philly", "--days", "1", "--out", "x.txt"), 2, "end it in one of"),
        (("generate", "nope", "--days", "1", "--out", "x.csv"), 2, "did you mean"),
        (
            ("generate", "gavel", "--days", "1", "--out", "x.csv", "--set", "seed=1"),
            2,
            "say --seed",
        ),
        (("generate", "gavel", "--days", "one", "--out", "x.csv"), 2, "invalid float"),
        (("generate", "gavel", "--days", "1", "--load", "1", "--out", "x.csv"), 2, "together"),
        (("sample", "x.csv", "--out", "y.csv", "--jobs", "5", "--by", "vcs"), 1, "no such file"),
        (("inf", "x.csv"), 2, "did you mean 'info'"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tandem: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
