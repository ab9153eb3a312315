"""Worker maps of elastic jobs in a report: what is read, what is drawn, and nothing for gangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.model import Costs, Model
from reports.html import draw, render
from reports.tables import read
from reports.workergantt import bands, choose, worker_gantt
from simulator.run import simulate
from traces import RunLog, Workload


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    rows = [
        {
            "job_id": f"job{i}",
            "submit_s": 40.0 * i,
            "duration_s": 100.0,
            "num_gpus": 4,
            "num_workers": 8,
            "max_gpus": 10,
            "mixes_types": i % 2 == 0,
            "gpu_type": "v100",
        }
        for i in range(4)
    ]
    path = tmp_path_factory.mktemp("runs") / "elastic"
    simulate(
        Workload.from_jobs(rows),
        "2x4:v100,1x4:t4",
        policy="tests/policies/scripted_sizes.py:Sawtooth",
        model=Model(speeds={"t4": 0.5}, costs=Costs(rescale_s=5.0)),
        out=path,
    )
    return RunLog.open(path)


def test_bands_are_the_worker_maps(run: RunLog) -> None:
    tables = read(run, "a run")
    found = bands(tables)
    table = run.table("allocations")
    held = {(b.job_id, b.start_s): 0 for b in found}
    for band in found:
        held[band.job_id, band.start_s] += band.gpus
        assert 0 <= band.idle < band.gpus or band.fullest == 0
        assert band.start_s <= band.begin_s <= band.end_s
    by_stay = table.assign(n=table["gpus"].map(len)).groupby(["job_id", "start_s"])["n"].sum()
    assert held == {(str(job), start): n for (job, start), n in by_stay.items()}
    first = next(b for b in found if b.job_id == "job0" and b.start_s == 0.0)
    assert (first.gpu_type, first.gpus, first.fullest, first.idle) == ("v100", 1, 8, 0)


def test_the_jobs_that_change_most_are_shown(run: RunLog) -> None:
    found = bands(read(run, "a run"))
    assert choose(found) == ["job0", "job1", "job2", "job3"]
    alone = [b for b in found if b.job_id == "job2"]
    assert choose(alone) == ["job2"]


def test_the_figure_is_drawn_and_in_the_report(run: RunLog) -> None:
    tables = read(run, "a run")
    svg = draw(lambda ax: worker_gantt(ax, tables), 7, 4)
    for words in ("Worker maps: 4 of 4 elastic jobs", "job0", "job3", "v100", "t4"):
        assert words in svg
    assert draw(lambda ax: worker_gantt(ax, tables), 7, 4) == svg
    assert "Worker maps of elastic jobs" in render([run])


def test_gangs_have_none(one_run: RunLog, tmp_path: Path) -> None:
    tables = read(one_run, "gangs")
    assert bands(tables) == []
    assert "no elastic job ran" in draw(lambda ax: worker_gantt(ax, tables), 7, 4)
    assert "Worker maps of elastic jobs" not in render([one_run])
