"""Fidelity: errors computed by hand, the first decision that differs, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tandem
from policies.model import Costs, Model
from reports.fidelity import compared, open_validation
from reports.fidelitypage import write_fidelity
from simulator import simulate
from traces import DataError, RunLog, Workload

# On one GPU: a for 10 s, then b for 5 s; measured, each start costs a second more.
JOBS = [
    {"job_id": "a", "submit_s": 0, "duration_s": 10, "num_gpus": 1},
    {"job_id": "b", "submit_s": 0, "duration_s": 5, "num_gpus": 1},
]


def run(out: Path, policy: str = "fifo", start_s: float = 0.0, jobs: int = 2) -> RunLog:
    model = Model(costs=Costs(start_s=start_s))
    workload = Workload.from_jobs(JOBS[:jobs])
    simulate(workload, "1x1:v100", policy=policy, model=model, out=out)
    return RunLog.open(out)


@pytest.fixture
def worlds(tmp_path: Path) -> tuple[RunLog, RunLog, RunLog]:
    """What stands for a measured run; a simulation that decides alike; one that does not."""
    run(tmp_path / "measured", start_s=1.0)
    file = tmp_path / "measured" / "run.json"
    said = {"device_s": {"start": 1.0, "compute": 18.0, "unexplained": 1.0}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"executor": said}))
    measured = RunLog.open(tmp_path / "measured")
    return measured, run(tmp_path / "alike"), run(tmp_path / "other", "sjf")


def test_errors_are_those_computed_by_hand(worlds: tuple[RunLog, RunLog, RunLog]) -> None:
    measured, alike, _ = worlds
    pair = compared(measured, alike)
    assert np.allclose(pair.job_error, [10 / 11 - 1, 15 / 17 - 1])
    assert pair.mean_error == pytest.approx((1 / 11 + 2 / 17) / 2)
    assert pair.makespan_error == pytest.approx(15 / 17 - 1)
    assert pair.decisions == 2
    assert pair.divergence is None
    assert pair.metrics["mean_jct_s"] == pytest.approx((14.0, 12.5))


def test_the_first_decision_that_differs_is_named(worlds: tuple[RunLog, RunLog, RunLog]) -> None:
    measured, _, other = worlds
    divergence = compared(measured, other).divergence
    assert divergence is not None
    assert divergence.number == 1
    assert (divergence.measured, divergence.simulated) == ("start a", "start b")
    assert divergence.measured_after.startswith("submit of")


def test_runs_of_other_jobs_are_refused(
    worlds: tuple[RunLog, RunLog, RunLog], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="other jobs"):
        compared(worlds[0], run(tmp_path / "fewer", jobs=1))


def test_the_page_and_the_command(
    worlds: tuple[RunLog, RunLog, RunLog], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = worlds[0].path.parent
    pairs = [
        {
            "policy": "fifo",
            "executed": worlds[0].path.name,
            "simulated": worlds[1].path.name,
            "paced": worlds[0].path.name,
        },
        {"policy": "fifo", "executed": worlds[0].path.name, "simulated": worlds[2].path.name},
    ]
    (folder / "validation.json").write_text(json.dumps({"pairs": pairs}))
    (found,) = open_validation(folder)
    assert found.decided_alike == 1
    assert found.at_pace is not None
    assert found.as_dict()["at_pace"]["mean_error"] == {"value": 0.0, "interval": None}
    mean, interval = found.mean_error
    assert interval is not None
    assert interval[0] <= mean <= interval[1]
    assert found.as_dict()["shares"] == pytest.approx(
        {"start": 0.05, "compute": 0.9, "unexplained": 0.05}
    )
    text = write_fidelity([found], tmp_path / "page.html").read_text(encoding="utf-8")
    for word in ("Devices in both worlds", "Predicted against measured", "decision 1", "fifo"):
        assert word in text
    assert "<script" not in text
    assert tandem.main(["fidelity", str(folder), "--markdown"]) == 0
    assert "| fifo |" in capsys.readouterr().out
    assert tandem.main(["fidelity", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["repeats"] == 2


def test_a_folder_that_is_no_validation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tandem.main(["fidelity", str(tmp_path)]) == 1
    (tmp_path / "validation.json").write_text('{"pairs": []}')
    assert tandem.main(["fidelity", str(tmp_path)]) == 1
    assert "without runs" in capsys.readouterr().err
