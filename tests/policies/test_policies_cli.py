"""``tandem policies`` and ``tandem explain``, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tandem
from policies.catalog import catalog, entry_of
from policies.registry import INTRAS, PLACEMENTS, POLICIES
from simulator import simulate
from traces import Workload


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = tandem.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list_has_every_name_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "policies")
    assert code == 0
    for name in [*POLICIES, *PLACEMENTS, *INTRAS]:
        assert f"  {name} " in out
    assert "thresholds=3250;7200" in out
    assert "depth=1000" in out


def test_every_entry_says_what_its_name_leaves_open() -> None:
    for entry in catalog():
        assert entry.says, entry.name
        assert entry.summary.endswith("."), entry.name
        assert all(sentence.endswith(".") for sentence in entry.says), entry.name


def test_one_name_with_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "policies", "easy:depth=5")
    assert code == 0
    assert "depth = 1000  [whole number]" in out
    assert "At most 5 jobs behind the head" in out
    assert entry_of("spread").kind == "placement"
    code, out, _ = run(capsys, "policies", "--json")
    assert {entry["name"] for entry in json.loads(out)} == {*POLICIES, *PLACEMENTS, *INTRAS}


def test_check_a_name_and_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "policies", "check", "fifo", "--placement", "spread")
    assert code == 0
    assert "ok  pure" in out
    file = tmp_path / "mine.py"
    file.write_text(
        "from policies import Policy\n\n\nclass Mine(Policy):\n"
        "    def plan(self, view):\n        return view.draft()\n"
    )
    code, out, _ = run(capsys, "policies", "check", f"{file}:Mine")
    assert code == 1
    assert "FAILED  lone job" in out
    code, out, _ = run(capsys, "policies", "check", "fifo", "--json")
    assert json.loads(out)["findings"] == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["policies", "tiresia"], "did you mean 'tiresias'"),
        (["policies", "check"], "needs a policy"),
        (["policies", "fifo", "easy"], "one name at a time"),
        (["policies", "check", "fifo", "--placement", "scatter"], "unknown placement 'scatter'"),
        (["policies", "easy:deep=1"], "has no parameter 'deep'"),
    ],
)
def test_usage_errors(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert words in err


def test_explain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workload = Workload.from_jobs(
        [
            {"job_id": "one", "submit_s": 0, "duration_s": 10, "num_gpus": 3},
            {"job_id": "two", "submit_s": 1, "duration_s": 10, "num_gpus": 2},
        ]
    )
    out_dir = tmp_path / "run"
    simulate(workload, "1x4:v100", policy="easy", out=out_dir)
    code, out, _ = run(capsys, "explain", str(out_dir), "two")
    assert code == 0
    assert out == (
        "two at 1 s: not_enough_gpus: needs 2 free v100; 1 free, 1 more at 10 s at the earliest\n"
    )
    code, out, _ = run(capsys, "explain", str(out_dir), "two", "--at", "12", "--json")
    assert json.loads(out)["code"] == "running"
    code, _, err = run(capsys, "explain", str(out_dir), "tow")
    assert (code, "for instance, two" in err) == (2, True)
    code, _, err = run(capsys, "explain", str(tmp_path), "two")
    assert (code, "not a run directory" in err) == (1, True)
