"""Sharing a cluster with a service: how soon jobs leave, who is asked, demand, and the command."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from policies.model import Costs, Model
from policies.rates import reference_s
from policies.services import Diurnal, Service, demand_of, recorded
from simulator.run import simulate
from tandem import main
from tests.sharing import share, steps
from traces import DataError, RunLog, UsageError, Workload
from traces.profile_sources import load_profile

COSTS = Model(costs=Costs(rescale_s=20.0))


def jobs(*rows: dict[str, Any]) -> Workload:
    plain = {"submit_s": 0.0, "duration_s": 100.0, "num_gpus": 4, "num_workers": 4, "max_gpus": 4}
    return Workload.from_jobs([{"job_id": f"job{i}", **plain, **row} for i, row in enumerate(rows)])


def service(
    *changes: tuple[float, int], give_way_s: float = 30.0, linger_s: float = 300.0
) -> Service:
    return Service(demand=steps(*changes), gpu_type="gpu", give_way_s=give_way_s, linger_s=linger_s)


def test_a_job_leaves_when_its_rescale_is_over() -> None:
    # The job has all four GPUs at rate 1. At 10 s two are asked for: it goes on with two, paused
    # for 20 s, and has left the others when that is over. 90 s of work at rate 1/2 end at 210 s.
    driver, log = share(jobs({}), "1x4", "fifo", service((10, 2)), model=COSTS)
    assert driver.outcomes.finish_s[0] == 10 + 20 + 90 / 0.5
    assert {row[3:] for row in log.loans} == {(10.0, 30.0, 210.0, "reclaimed")}
    assert len(log.loans) == 2
    # It has no more time than it is given.
    _, log = share(jobs({}), "1x4", "fifo", service((10, 2), give_way_s=5.0), model=COSTS)
    assert {row[4] for row in log.loans} == {15.0}
    # Where there is room nobody is asked.
    driver, log = share(jobs({}), "2x4", "fifo", service((10, 2)), model=COSTS)
    assert driver.outcomes.finish_s[0] == 100.0
    assert {row[3:5] for row in log.loans} == {(10.0, 10.0)}


def test_the_step_in_flight_is_finished_first(shared_data: Path) -> None:
    profile = load_profile(shared_data / "easyscale" / "profile_fitted.json")
    name = min(profile.models)
    batch = min(profile.models[name].microbatch_s)
    row = {"model": name, "batch_size": batch, "gpu_type": "v100", "duration_s": 500.0}
    workload = jobs(row)
    elastic = next(workload.jobs()).elastic
    assert elastic is not None
    step_s = reference_s(profile, elastic)
    asks = Service(demand=steps((10, 2)), gpu_type="v100", give_way_s=30.0)
    _, log = share(workload, "1x4:v100", "fifo", asks, model=Model(profile=profile))
    for *_, asked_s, ready_s, _, _ in log.loans:
        assert 0.0 < ready_s - asked_s <= step_s
        assert ready_s / step_s == pytest.approx(round(ready_s / step_s))


def test_a_device_that_comes_back_while_its_job_leaves_is_not_ready_sooner() -> None:
    asks = service((10, 2), (12, 0), (14, 2))
    _, log = share(jobs({}), "1x4", "fifo", asks, model=COSTS, until_s=50.0)
    assert {row[3:5] for row in log.loans if row[6] == "lingering"} == {(14.0, 30.0)}


def test_the_fewest_jobs_are_asked_and_those_that_lose_least() -> None:
    # With 4 workers, 3 GPUs are as fast as 2: who has three of four loses nothing by giving one.
    three = {"num_gpus": 3, "num_workers": 4, "max_gpus": 3}
    driver, _ = share(jobs({}, three), "1x7", "best-effort", service((10, 1)), until_s=50.0)
    assert list(driver.outcomes.resizes) == [0, 1]
    driver, _ = share(jobs(three, {}), "1x7", "best-effort", service((10, 1)), until_s=50.0)
    assert list(driver.outcomes.resizes) == [1, 0]
    # Three GPUs: one job of four can give them all, so the others are left alone.
    two = {"num_gpus": 2, "num_workers": 2, "max_gpus": 2}
    driver, _ = share(jobs(two, {}, two), "1x8", "best-effort", service((10, 3)), until_s=50.0)
    assert list(driver.outcomes.resizes) == [0, 1, 0]
    assert not any(driver.outcomes.preemptions)


def test_opportunistic_jobs_give_way_before_guaranteed_ones() -> None:
    two = jobs({}, {"priority": "opportunistic"})
    driver, log = share(two, "2x4", "fifo", service((10, 6), (300, 0), linger_s=0.0), model=COSTS)
    # job1 stops (nothing to save: at once), and job0 gives the other two.
    assert sorted(row[4] - row[3] for row in log.loans) == [0.0] * 4 + [20.0] * 2
    assert list(driver.outcomes.preemptions) == [0, 1]
    assert list(driver.outcomes.failures) == [0, 0]
    assert driver.outcomes.finish_s[0] == 210.0
    assert driver.outcomes.finish_s[1] == 390.0  # it waits for its gang, with 10 s done


def test_round_based_policies_do_not_keep_a_service_waiting() -> None:
    gang = {"num_workers": None, "max_gpus": None, "duration_s": 25.0}
    asks = service((10, 4), (200, 0), linger_s=0.0)
    driver, log = share(jobs(gang, gang), "1x4", "yarn-cs:round_s=60", asks)
    assert {row[3:5] for row in log.loans} == {(10.0, 25.0)}
    assert list(driver.outcomes.finish_s) == [25.0, 265.0]


def test_without_jobs_the_service_is_watched(tmp_path: Path) -> None:
    driver, log = share(jobs({}).head(0), "1x4", "fifo", service((10, 3), (20, 1)), until_s=40.0)
    assert driver.complete
    assert sorted(row[3:6] for row in log.loans) == [
        (10.0, 10.0, 20.0),
        (10.0, 10.0, 20.0),
        (10.0, 10.0, 40.0),
    ]
    simulate(
        jobs({}).head(0), "1x4", services=[service((10, 3))], until_s=40.0, out=tmp_path / "run"
    )
    assert RunLog.open(tmp_path / "run").record["span"] == {"start_s": 0.0, "end_s": 40.0}


# Demand


def test_a_diurnal_curve_by_hand() -> None:
    day = Diurnal(low=0, high=4, period_s=100.0, peak_s=50.0, step_s=25.0)
    five = [(0.0, 0), (25.0, 2), (50.0, 4), (75.0, 2), (100.0, 0)]
    assert list(islice(day.changes(0.0), 5)) == five
    assert list(Diurnal(low=3, high=3).changes(0.0)) == [(0.0, 3)]
    assert list(islice(Service(demand=day, gpu_type="gpu").changes(30.0), 2)) == [
        (30.0, 2),
        (50.0, 4),
    ]


def test_demand_of_a_trace(shared_data: Path) -> None:
    path = shared_data / "dlrm-serving" / "instances.csv.gz"
    whole = recorded(path)
    assert whole.peak == 3_412_000
    later = demand_of(f"{path}:scale=0.01,from_s=86400")
    asks = Service(demand=later, gpu_type="gpu")
    assert asks.peak[0] == 35
    assert next(asks.changes(0.0))[1] == -(-whole.at(86_400.0) // 100_000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("diurnal:low=1", "high is missing"),
        ("diurnal:low=3,high=2", "expected 0 <= low <= high"),
        ("diurnal:low=1,high=2,step_s=0", "step_s is 0"),
        ("diurnal:low=1,hihg=2", "no parameter 'hihg'"),
        ("jobs.csv:scale=0", "scale is 0"),
        ("jobs.csv:scala=1", "no parameter 'scala'"),
    ],
)
def test_demand_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        demand_of(text)


def test_a_trace_without_services_is_no_demand(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("job_id,submit_s,duration_s,num_gpus\na,0,1,1\n")
    with pytest.raises(DataError, match="no serving instances"):
        demand_of(str(path))


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("job_id,submit_s,duration_s,num_gpus\na,0,9000,2\nb,50,100,1\n")
    run = ["run", str(path), "--cluster", "1x2:t4,1x4:v100", "--out", str(tmp_path / "run")]
    run += ["--no-report", "--policy", "easyscale", "--json"]
    day = ["--serving", "diurnal:low=0,high=2,period_s=3600,peak_s=1800", "--scale-in", "9"]
    assert main([*run, *day, "--refill", "60"]) == 0
    json.loads(capsys.readouterr().out)
    (record,) = RunLog.open(tmp_path / "run").record["services"]
    assert record["diurnal"]["high"] == 2
    assert (record["gpu_type"], record["give_way_s"], record["linger_s"]) == ("v100", 9.0, 60.0)
    for wrong, says in (
        (["--serving-type", "t4"], "needs --serving"),
        (["--serving", "diurnal:low=1,high=5"], "needs 5 v100 at 43200 s; the cluster has 4"),
        (["--serving", "diurnal:low=1,high=2", "--scale-in", "-1"], "give_way_s is -1"),
    ):
        assert main([*run, "--overwrite", *wrong]) == 2
        assert says in capsys.readouterr().err
