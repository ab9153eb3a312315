"""The worked examples and promises of ``docs/simulator.md``."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from policies.model import Model
from simulator import cli, simulate
from traces import Workload, generate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"
OUTCOMES = (
    "start_s", "finish_s", "queueing_s", "service_gpu_s", "overhead_gpu_s", "lost_gpu_s"
)  # fmt: skip


def examples() -> list[tuple[str, list[dict[str, str]]]]:
    """The options of each world on the page, and the table below it."""
    parts = re.split(r"^World: `([^`]+)`\.$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for options, text in zip(parts[1::2], parts[2::2], strict=True):
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("|") and "....." not in line and "|s " not in line
        ]
        found.append((options, [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]))
    return found


def world(options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    cli.add_world_arguments(parser)
    return cli.world(parser.parse_args(shlex.split(options)))


def test_the_page_has_both_examples() -> None:
    assert [len(rows) for _, rows in examples()] == [2, 2]


@pytest.mark.parametrize(("options", "rows"), examples())
def test_the_world_charges_what_the_page_says(options: str, rows: list[dict[str, str]]) -> None:
    workload = Workload.from_jobs(
        [
            {
                "job_id": row["job"],
                "submit_s": float(row["submit_s"]),
                "duration_s": float(row["duration_s"]),
                "num_gpus": 1,
            }
            for row in rows
        ]
    )
    jobs = simulate(workload, "1x1", policy="srtf", **world(options)).jobs
    for i, row in enumerate(rows):
        assert [float(jobs[name][i]) for name in OUTCOMES] == [float(row[n]) for n in OUTCOMES]


def test_the_rate_on_the_page() -> None:
    workload = Workload.from_jobs(
        [{"job_id": "a", "submit_s": 0.0, "duration_s": 100.0, "num_gpus": 8}]
    )
    how = world("--speed a100=2 --across-nodes 0.8")
    jobs = simulate(workload, "2x4:a100", **how).jobs
    assert jobs["finish_s"][0] == 62.5


def test_a_wrong_belief_changes_decisions_and_not_the_truth() -> None:
    # Type b is twice as fast. At 5 s job 0 has done 10 s of its 20, so less is left than the 12 s
    # of job 1; who believes in rate 1 takes it for 15 s, and lets job 1 go first.
    workload = Workload.from_jobs(
        [
            {"job_id": "0", "submit_s": 0.0, "duration_s": 20.0, "num_gpus": 1},
            {"job_id": "1", "submit_s": 5.0, "duration_s": 12.0, "num_gpus": 1},
        ]
    )
    fast = Model(speeds={"b": 2.0})
    knows = simulate(workload, "1x1:b", policy="srtf", model=fast).jobs
    assert list(knows["finish_s"]) == [10, 16]
    wrong = simulate(workload, "1x1:b", policy="srtf", model=fast, believed=Model()).jobs
    assert list(wrong["finish_s"]) == [16, 11]


def test_tables_of_equal_runs_are_equal_files(tmp_path: Path) -> None:
    jobs = generate("philly", seed=3, jobs=300, load=0.9, cluster="4x8:v100")
    hashes = []
    for name in ("a", "b"):
        simulate(jobs, "4x8:v100", policy="tiresias:knob=2", out=tmp_path / name)
        tables = sorted((tmp_path / name).glob("*.parquet"))
        assert len(tables) == 5
        hashes.append([hashlib.sha256(table.read_bytes()).hexdigest() for table in tables])
    assert hashes[0] == hashes[1]
