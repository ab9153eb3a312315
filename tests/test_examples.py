"""The examples run, and the policy printed in the documentation is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from policies import check_policy, make_policy
from simulator import simulate
from traces import UsageError, Workload, generate
from traces.profile_sources import load_profile


def run(repo: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=repo,
        env={
            "PYTHONPATH": str(repo),
            "PATH": "",
            "TANDEM_LOCK_DIR": os.environ.get("TANDEM_LOCK_DIR", ""),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test_here(repo: Path) -> None:
    assert sorted(p.name for p in (repo / "examples").glob("*.py")) == [
        "colocate.py",
        "compare_policies.py",
        "elastic_policy.py",
        "new_device.py",
        "own_policy.py",
        "replay_trace.py",
    ]


def test_own_policy(repo: Path) -> None:
    said = run(repo, "examples/own_policy.py")
    assert "FAILED" not in said
    assert len(re.findall(r"^(?:largest-first|fifo|best-effort) +mean queueing", said, re.M)) == 3


def test_own_policy_does_what_it_says(repo: Path) -> None:
    # 4 GPUs, age limit 5 s. At 2 s the 2-GPU job c passes b (misfit) by size; d, of 1 GPU, comes at
    # 3 s and starts too. b has waited 5 s at 6 s, and from then on blocks e until c and a are gone.
    #
    # second  0         1
    #         012345678901234
    # gpu 0   aaaaaaaaaabbbee     (b takes all four from 10 s)
    # gpu 1   ..cccccc..bbb
    # gpu 2   ..cccccc..bbb
    # gpu 3   ...d......bbb
    rows = [("a", 0, 10, 1), ("b", 1, 3, 4), ("c", 2, 6, 2), ("d", 3, 1, 1), ("e", 7, 2, 1)]
    workload = Workload.from_jobs(
        [{"job_id": j, "submit_s": s, "duration_s": d, "num_gpus": g} for j, s, d, g in rows]
    )
    policy = f"{repo}/examples/own_policy.py:LargestFirst:max_wait_s=5"
    jobs = simulate(workload, "1x4", policy=policy).jobs
    assert list(jobs["start_s"]) == [0, 10, 2, 3, 13]
    assert list(jobs["finish_s"]) == [10, 13, 8, 4, 15]
    with pytest.raises(UsageError, match="max_wait_s is 0"):
        make_policy(f"{repo}/examples/own_policy.py:LargestFirst:max_wait_s=0")


def test_compare_policies(repo: Path) -> None:
    said = run(repo, "examples/compare_policies.py", "--days", "0.5")
    rows = [line.split() for line in said.splitlines()[3:]]
    assert [row[0] for row in rows] == ["0.6", "0.7", "0.8", "0.9", "1.0"]
    assert all(float(srtf) <= float(fifo) for _, fifo, srtf, _ in rows)


def test_replay_trace(repo: Path, tmp_path: Path) -> None:
    said = run(repo, "examples/replay_trace.py", "--out", str(tmp_path / "out"))
    found = dict(re.findall(r"^(fifo|srtf) +mean JCT +([\d.]+) h", said, re.MULTILINE))
    assert float(found["srtf"]) < float(found["fifo"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_colocate(repo: Path) -> None:
    said = run(repo, "examples/colocate.py")
    assert "24 of 24 training jobs finished" in said
    allocated = re.search(r"^allocation_ratio +([\d.]+)", said, re.MULTILINE)
    assert allocated
    assert float(allocated[1]) > 0.9


def test_new_device(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    said = run(repo, "examples/new_device.py", "--out", str(out))
    assert len(re.findall(r"mean JCT", said)) == 3
    assert len(load_profile(out).gpu_types("dense:width=64")) == 2


def test_elastic_policy_in_both_worlds(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_LOCK_DIR", str(tmp_path))
    said = run(repo, "examples/elastic_policy.py", "--execute")
    assert "FAILED" not in said
    assert "bits as alone: True" in said


def test_the_policy_in_the_documentation(repo: Path, tmp_path: Path) -> None:
    text = (repo / "docs" / "writing-a-policy.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(from dataclasses.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    file = tmp_path / "smallest.py"
    file.write_text(block[1], encoding="utf-8")
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 20
    report = check_policy(f"{file}:SmallestFirst:most=2")
    assert report, str(report)
    jobs = simulate(
        generate("philly", seed=1, jobs=300, load=0.9, cluster="4x8"),
        "4x8",
        policy=f"{file}:SmallestFirst",
    ).jobs
    assert (jobs["status"] == "finished").all()


FILE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies import ClusterView, Draft, Policy


@dataclass(frozen=True, kw_only=True)
class Mine(Policy):
    """One."""

    patience: float | None = None
    name: ClassVar[str] = "{name}"

    def plan(self, view: ClusterView) -> Draft:
        return view.draft()
'''


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two"):
        file = tmp_path / folder / "mine.py"
        file.parent.mkdir()
        file.write_text(FILE.replace("{name}", folder))
        made.append(make_policy(f"{file}:Mine:patience=3"))
    assert [policy.name for policy in made] == ["one", "two"]
    assert [policy.params() for policy in made] == [{"patience": 3.0}] * 2
    assert type(made[0]) is not type(made[1])


def test_a_file_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise ZeroDivisionError('no')\n")
    with pytest.raises(UsageError, match=r"broken\.py: ZeroDivisionError: no"):
        make_policy(f"{file}:Any")
    assert not [name for name in sys.modules if name.startswith("tandem_plugin_broken")]
