"""What metrics and series say of a run that an online service shared, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policies.model import Costs, Model
from policies.services import Service
from reports.html import write_report
from reports.metrics import metrics
from reports.series import series
from reports.tables import read
from simulator.run import simulate
from tests.sharing import steps
from traces import RunLog, Workload

JOB = {"job_id": "a", "submit_s": 0.0, "duration_s": 100.0, "num_gpus": 8}
ELASTIC = {"num_workers": 8, "max_gpus": 8}


def run(path: Path, *rows: dict[str, object], give_way_s: float = 5.0) -> RunLog:
    """The case of docs/co-location.md."""
    asks = Service(
        demand=steps((10, 4), (30, 0)), gpu_type="v100", give_way_s=give_way_s, linger_s=10.0
    )
    simulate(
        Workload.from_jobs([dict(row) for row in rows]),
        "1x8:v100",
        policy="easyscale:estimates=true",
        model=Model(costs=Costs(rescale_s=2.0)),
        services=[asks],
        out=path,
    )
    return RunLog.open(path)


def test_the_case_of_the_page(tmp_path: Path) -> None:
    # The job holds 8 GPUs for 10 s, 4 to 40 s, 8 to 118 s; it leaves four from 10 to 12 s. It gets
    # on from 0 to 10, 12 to 40 and 42 to 118 s. The service uses four from 12 to 30 s.
    found = metrics(run(tmp_path / "run", JOB | ELASTIC))
    held = 8 * 10 + 4 * 30 + 8 * 78
    busy = 8 * 10 + 4 * 28 + 8 * 76
    expected = {
        "allocation_ratio": (held + 4 * 2 + 4 * 18) / (8 * 118),
        "utilisation": (busy + 4 * 18) / (8 * 118),
        "serving_ratio": 4 * 18 / (8 * 118),
        "serving_gpu_hours": 4 * 18 / 3600,
        "serving_wait_gpu_s": 4 * 2,
        "sla_violation_gpu_s": 0.0,
        "reclaimed_gpus": 4,
        "mean_scale_in_s": 2.0,
        "p50_scale_in_s": 2.0,
        "p99_scale_in_s": 2.0,
        "max_scale_in_s": 2.0,
        "gpu_hours_done": 8 * 100 / 3600,
        "resizes": 2,
        "failures": 0,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


def test_what_nobody_gives_violates_the_service_level(tmp_path: Path) -> None:
    # Six of the eight GPUs are guaranteed: two come after 2 s, two never before the demand is gone.
    found = metrics(run(tmp_path / "run", JOB | ELASTIC | {"min_gpus": 6}))
    assert found["serving_wait_gpu_s"] == 2 * 2 + 2 * 20
    assert found["sla_violation_gpu_s"] == 2 * (20 - 5)
    assert found["max_scale_in_s"] == 2.0
    assert found["reclaimed_gpus"] == 2


def test_series_add_up_to_the_demand(tmp_path: Path) -> None:
    load = series(read(run(tmp_path / "run", JOB | ELASTIC)))
    times = np.array([5.0, 11.0, 20.0, 35.0, 41.0])
    assert load.serving["v100"].at(times).tolist() == [0, 0, 4, 0, 0]
    assert load.serving_waits.at(times).tolist() == [0, 4, 0, 0, 0]
    assert load.allocated["v100"].at(times).tolist() == [8, 8, 4, 4, 8]


def test_a_run_without_a_service_says_nothing_of_one(tmp_path: Path) -> None:
    simulate(Workload.from_jobs([JOB]), "1x8:v100", out=tmp_path / "run")
    log = RunLog.open(tmp_path / "run")
    assert read(log).loans is None
    assert not [name for name in metrics(log) if "serving" in name or "scale_in" in name]


def test_the_report_shows_who_has_the_cluster(tmp_path: Path) -> None:
    log = run(tmp_path / "run", JOB | ELASTIC)
    write_report([log], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Serving and training" in page
    assert "violation of the service level" in page


def test_a_service_alone_has_a_report(tmp_path: Path) -> None:
    asks = Service(demand=steps((10, 4), (30, 0)), gpu_type="v100")
    nobody = Workload.from_jobs([JOB]).head(0)
    simulate(nobody, "1x8:v100", services=[asks], until_s=100.0, out=tmp_path / "run")
    log = RunLog.open(tmp_path / "run")
    found = metrics(log)
    assert found["utilisation"] == 4 * 20 / (8 * 30)
    write_report([log], tmp_path / "report.html")
    assert "Serving and training" in (tmp_path / "report.html").read_text(encoding="utf-8")
