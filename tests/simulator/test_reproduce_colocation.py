"""The co-location study: its three settings, its training, its command, table and figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reports.colocation import side_by_side
from simulator.colocation import DAY_S, Training, run_settings, study
from tandem import main
from traces import RunLog, UsageError

DEMAND = "diurnal:low=4,high=20,period_s=14400,peak_s=7200,step_s=600"
CLUSTER = "8x4:v100"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunLog]:
    out = tmp_path_factory.mktemp("study")
    asked = replace(study(DEMAND, CLUSTER, days=0.2), training=Training(workers=(2, 4), load=2.0))
    found = run_settings(asked, out)
    return {setting: RunLog.open(path) for setting, path in found}


def test_three_settings(runs: dict[str, RunLog]) -> None:
    alone, apart, shared = (
        {name: value or 0.0 for name, value in row.metrics.items()}
        for row in side_by_side(list(runs.values()))
    )
    demand = study(DEMAND, CLUSTER, days=0.2).demand_steps()
    mean = demand.mean(0.0, 0.2 * DAY_S) / 1000 / 32
    for found in (alone, shared):
        assert found["serving_ratio"] == pytest.approx(mean, rel=2e-3)  # less what it waits
    assert apart["serving_ratio"] == pytest.approx(mean, rel=2e-3)
    assert alone["utilisation"] == alone["allocation_ratio"] == alone["serving_ratio"]
    assert apart["reclaimed_gpus"] == 0
    assert alone["gpu_hours_done"] == 0
    # Training of its own has the rest at most, shared fills what is idle.
    assert apart["allocation_ratio"] < mean + 12 / 32 + 1e-3
    assert shared["allocation_ratio"] > 0.95  # what lingers is idle
    assert shared["gpu_hours_done"] > 1.2 * apart["gpu_hours_done"]
    for found in (apart, shared):
        assert found["sla_violation_gpu_s"] == found["failures"] == 0
    assert 0 < shared["max_scale_in_s"] <= 30.0


def test_gains_are_against_the_first(runs: dict[str, RunLog]) -> None:
    rows = side_by_side([runs["apart"], runs["shared"]])
    assert rows[0].gain == 0.0
    used = [row.metrics["utilisation"] or 0.0 for row in rows]
    assert rows[1].gain == pytest.approx(used[1] / used[0] - 1)


def test_training_offers_what_it_says() -> None:
    training = Training(load=0.8, sigma=0.5)
    jobs = training.jobs(1000.0, 10 * DAY_S, np.random.default_rng(1)).table
    later = jobs[jobs["submit_s"] > 0]
    offered = float((later["num_gpus"] * later["duration_s"]).sum())
    assert offered / (1000.0 * 10 * DAY_S) == pytest.approx(0.8, rel=0.1)
    assert jobs["min_gpus"].gt(0).mean() == pytest.approx(0.2, abs=0.05)
    guaranteed = jobs[jobs["priority"] == "guaranteed"]
    assert (guaranteed["min_gpus"] * 4 == guaranteed["num_workers"]).all()


def test_the_command_makes_table_figure_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "co-location", DEMAND, "--cluster", CLUSTER, "--days", "0.05"]
    assert main([*command, "--out", str(tmp_path / "study")]) == 0
    said = capsys.readouterr().out
    assert "+62.1 %" in said
    assert "violation GPU-s" in said
    figure = tmp_path / "study" / "co-location.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--out", str(tmp_path / "study")]) == 2
    assert "holds a run already" in capsys.readouterr().err
    shared = str(tmp_path / "study" / "shared")
    drawn = tmp_path / "one.svg"
    assert main(["co-location", shared, "--figure", str(drawn), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["setting"], row["utilisation_gain"]) == ("shared", 0.0)
    assert "asked for by the service" in drawn.read_text()
    assert main(["co-location", shared, "--figure", str(tmp_path / "one.gif")]) == 2


def test_what_cannot_be_studied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="days is 0"):
        study(DEMAND, CLUSTER, days=0.0)
    path = tmp_path / "jobs.csv"
    path.write_text("job_id,submit_s,duration_s,num_gpus\na,0,1,1\n")
    run = str(tmp_path / "run")
    assert main(["run", str(path), "--cluster", "1x4", "--out", run, "--no-report", "--quiet"]) == 0
    assert main(["co-location", run]) == 1
    assert "no online service" in capsys.readouterr().err
