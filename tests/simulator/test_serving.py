"""Online services beside training: who gives way, how long a service waits, what it costs jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Clock, Driver, make_placement, make_policy
from policies.clock import CAPACITY
from policies.model import Costs, Model
from policies.replay import Replay
from policies.services import Service, ServingLoad
from policies.state import JobState
from simulator.cluster import SimulatedCluster
from simulator.failures import read_outage_log
from simulator.outages import Outages
from simulator.run import simulate
from tests.memorylog import MemoryLog
from traces import ClusterSpec, RunLog, UsageError, Workload
from traces.steps import Steps


def steps(*changes: tuple[float, int]) -> Steps:
    """Demand in GPUs from each instant on."""
    return Steps(
        times_s=np.array([float(t) for t, _ in changes]),
        values=np.array([1000 * n for _, n in changes], dtype=np.int64),
    )


def jobs(*rows: dict[str, Any]) -> Workload:
    plain = {"submit_s": 0.0, "duration_s": 100.0, "num_gpus": 8, "num_workers": 8, "max_gpus": 8}
    return Workload.from_jobs([{"job_id": f"job{i}", **plain, **row} for i, row in enumerate(rows)])


def serve(
    workload: Workload,
    cluster: str,
    service: Service,
    policy: str = "easyscale:estimates=true",
    costs: Costs | None = None,
    outages: Path | None = None,
) -> tuple[Driver, MemoryLog]:
    spec = ClusterSpec.parse(cluster)
    clock, log = Clock(0.0), MemoryLog()
    backend = SimulatedCluster(clock, spec, Model(costs=costs or Costs()))
    driver = Driver(
        clock=clock,
        workload=workload,
        spec=spec,
        policy=make_policy(policy),
        placement=make_placement("count"),
        backend=backend,
        log=log,
        model=backend.model,
    )
    ServingLoad(backend, service, clock=clock, spec=spec)
    if outages is not None:
        Outages(backend, [read_outage_log(outages, spec)], np.random.default_rng(0))
    driver.run(until_s=100_000.0)
    driver.close()
    return driver, log


def test_the_case_of_the_page() -> None:
    service = Service(
        demand=steps((10, 4), (30, 0)), gpu_type="v100", give_way_s=5.0, linger_s=10.0
    )
    driver, log = serve(jobs({}), "1x8:v100", service, costs=Costs(rescale_s=2.0))
    assert driver.outcomes.finish_s[0] == 118.0
    assert driver.outcomes.resizes[0] == 2
    assert [(a.num_gpus, s, b, e) for _, a, s, b, e, _, _ in log.allocations] == [
        (8, 0.0, 0.0, 10.0),
        (4, 10.0, 12.0, 40.0),
        (8, 40.0, 42.0, 118.0),
    ]
    assert {row[3:] for row in log.loans} == {(10.0, 12.0, 30.0, "reclaimed")}
    assert sorted(row[2] for row in log.loans) == [4, 5, 6, 7]
    assert [kind for _, kind, *_ in log.devices] == [
        "serving_demand",
        "device_lent",
        "serving_demand",
        "device_given_back",
    ]
    assert [p.free for p in driver.view.free.pools] == [8]


def test_idle_devices_first_and_at_once() -> None:
    service = Service(demand=steps((10, 3), (30, 0)), gpu_type="v100", give_way_s=5.0)
    driver, log = serve(jobs({"num_gpus": 4, "num_workers": 4, "max_gpus": 4}), "1x8:v100", service)
    assert driver.outcomes.finish_s[0] == 100.0
    assert {row[3:] for row in log.loans} == {(10.0, 10.0, 30.0, "idle")}


def test_a_demand_that_comes_back_disturbs_nobody() -> None:
    demand = steps((10, 4), (20, 0), (25, 4), (60, 0))
    lingers = Service(demand=demand, gpu_type="v100", give_way_s=5.0, linger_s=10.0)
    hasty = Service(demand=demand, gpu_type="v100", give_way_s=5.0, linger_s=0.0)
    calm, log = serve(jobs({}), "1x8:v100", lingers)
    busy, _ = serve(jobs({}), "1x8:v100", hasty)
    assert [row[6] for row in log.loans] == ["reclaimed"] * 4 + ["lingering"] * 4
    assert {row[3:6] for row in log.loans if row[6] == "lingering"} == {(25.0, 25.0, 60.0)}
    assert (calm.outcomes.resizes[0], busy.outcomes.resizes[0]) == (2, 4)


def test_who_gives_way() -> None:
    """Opportunistic before others, then who started last; never what is guaranteed, never gangs."""
    rows: list[dict[str, Any]] = [
        {"job_id": "kept", "num_workers": 2, "num_gpus": 2, "max_gpus": 2, "min_gpus": 2},
        {"job_id": "first", "num_workers": 2, "num_gpus": 2, "max_gpus": 2},
        {"job_id": "late", "num_workers": 2, "num_gpus": 2, "max_gpus": 2},
        {"job_id": "gang", "num_workers": None, "num_gpus": 2, "max_gpus": None},
        {
            "job_id": "spare",
            "num_workers": 2,
            "num_gpus": 2,
            "max_gpus": 2,
            "priority": "opportunistic",
        },
    ]
    held: dict[int, dict[str, int]] = {}
    for asked in (1, 2, 3, 4, 6):
        service = Service(demand=steps((10, asked), (50, 0)), gpu_type="v100")
        driver, _ = serve(jobs(*rows), "1x10:v100", service, policy="best-effort")
        held[asked] = {
            name: driver.outcomes.preemptions[i] * 10 + driver.outcomes.resizes[i]
            for i, name in enumerate(driver.workload.table["job_id"])
        }
    # Tens: stopped; units: resized. A job of 2 that gives 1 is resized, that gives 2 is stopped.
    assert held[1] == {"kept": 0, "first": 0, "late": 0, "gang": 0, "spare": 1}
    assert held[2] == {"kept": 0, "first": 0, "late": 0, "gang": 0, "spare": 10}
    assert held[3]["spare"] == 10
    assert (held[3]["late"], held[3]["first"]) in {(1, 0), (0, 1)}
    assert held[6] == {"kept": 0, "first": 10, "late": 10, "gang": 0, "spare": 10}


def test_what_nobody_gives_is_waited_for() -> None:
    service = Service(
        demand=steps((10, 6), (150, 2), (160, 0)), gpu_type="v100", give_way_s=5.0, linger_s=0.0
    )
    workload = jobs({"min_gpus": 4}, {"submit_s": 20.0, "duration_s": 30.0, "min_gpus": 8})
    driver, log = serve(workload, "1x8:v100", service)
    # 4 of the 8 are guaranteed to the first job: the service waits for two of its six in vain. The
    # job has done 10 s by then, goes on at rate 1/2, has 15 s left at 160 s and 8 GPUs again.
    assert driver.outcomes.finish_s[0] == 175.0
    assert sorted(row[6] for row in log.loans) == ["never"] * 2 + ["reclaimed"] * 4
    never = [row for row in log.loans if row[6] == "never"]
    assert all(np.isnan(row[4]) and row[3] == 10.0 and row[5] == 150.0 for row in never)


def test_the_service_comes_before_those_who_wait() -> None:
    service = Service(demand=steps((10, 8), (200, 0)), gpu_type="v100", linger_s=0.0)
    workload = jobs({"max_gpus": None, "num_workers": None}, {"submit_s": 5.0})
    driver, log = serve(workload, "1x8:v100", service)
    assert driver.outcomes.finish_s[0] == 100.0
    assert {row[3:5] for row in log.loans} == {(10.0, 100.0)}
    assert driver.outcomes.start_s[1] == 200.0


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (Service(demand=steps((5, 9)), gpu_type="v100"), "needs 9 v100 at 5 s"),
        (Service(demand=steps((5, 1)), gpu_type="a100"), "a100"),
    ],
)
def test_demands_that_cannot_be_met(service: Service, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        simulate(jobs({}), "1x8:v100", policy="easyscale", services=[service])
    with pytest.raises(UsageError, match="linger_s"):
        Service(demand=steps((5, 1)), gpu_type="v100", linger_s=-1.0)


def test_a_device_of_the_service_fails(tmp_path: Path) -> None:
    log_file = tmp_path / "outages.csv"
    log_file.write_text(
        "time_s,node,gpus,event\n20,v100-0000,7,down\n40,v100-0000,7,up\n", encoding="utf-8"
    )
    service = Service(demand=steps((10, 1), (60, 0)), gpu_type="v100", give_way_s=5.0, linger_s=0.0)
    slow = Costs(rescale_s=60.0)  # a job has no more time than it is given
    driver, log = serve(jobs({}), "1x8:v100", service, outages=log_file, costs=slow)
    assert [row[2:] for row in log.loans] == [
        (7, 10.0, 15.0, 20.0, "reclaimed"),
        (6, 20.0, 25.0, 60.0, "reclaimed"),
    ]
    assert driver.counts.failures == 0
    assert [p.free for p in driver.view.free.pools] == [8]


def test_a_run_can_be_replayed(tmp_path: Path) -> None:
    service = Service(demand=steps((10, 4), (30, 2), (50, 0)), gpu_type="v100", linger_s=5.0)
    workload = jobs({}, {"submit_s": 5.0, "duration_s": 20.0})
    run = simulate(
        workload,
        "2x4:v100",
        policy="easyscale:estimates=true",
        services=[service],
        out=tmp_path / "run",
    )
    log = RunLog.open(run.path or "")
    loans = log.table("loans")
    assert len(loans) == 4
    assert (loans["ready_s"] - loans["asked_s"] <= 5.0).all()
    view = Replay(log).until(32.0)
    assert view.free.pools[0].capacity == 4  # two still linger
    assert Replay(log).until(36.0).free.pools[0].capacity == 6


@settings(max_examples=50)
@given(
    changes=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 12)), min_size=1, max_size=8),
    rows=st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(1, 40),
            st.integers(1, 8),
            st.sampled_from(["rigid", "elastic", "kept", "mixes"]),
            st.sampled_from([None, "opportunistic"]),
        ),
        min_size=1,
        max_size=8,
    ),
    policy=st.sampled_from(["easyscale", "easyscale:version=paper", "afs", "best-effort", "srtf"]),
    linger_s=st.sampled_from([0.0, 7.0]),
)
def test_devices_are_conserved(
    changes: list[tuple[int, int]],
    rows: list[tuple[int, int, int, str, str | None]],
    policy: str,
    linger_s: float,
) -> None:
    """Whatever happens: no device twice, all back in the end, all jobs done."""
    given = [
        {
            "submit_s": float(at),
            "duration_s": float(work),
            "num_gpus": gpus,
            "num_workers": None if kind == "rigid" else gpus,
            "max_gpus": None if kind == "rigid" else gpus,
            "min_gpus": 1 if kind == "kept" else None,
            "mixes_types": kind == "mixes",
            "priority": priority,
        }
        for at, work, gpus, kind, priority in rows
    ]
    times = sorted({float(t) for t, _ in changes})
    demand = [(t, n) for t, (_, n) in zip(times, changes, strict=False)]
    service = Service(
        demand=steps(*demand, (300.0, 0)), gpu_type="v", give_way_s=3.0, linger_s=linger_s
    )
    driver, log = serve(jobs(*given), "3x4:v,2x4:t", service, policy=policy)
    assert driver.counts.finished == len(rows)
    for pool, node, gpu, asked, ready, end, source in log.loans:
        assert asked <= end
        if source == "never":
            continue
        assert (pool, node // 3) == (0, 0)
        assert np.isnan(ready) or asked <= ready <= end
        for _, allocation, start, _, stop, _, _ in log.allocations:
            if ready < stop and start < end:
                assert not any(n == node and m >> gpu & 1 for n, m in allocation.shares)


@pytest.mark.parametrize("told", [True, False])
def test_where_only_time_can_tell_the_world_says_when_a_device_can_be_used(told: bool) -> None:
    """As in the real world: a wait is what was measured, and if nothing is told none is known."""

    class OnlyTime(SimulatedCluster):
        def hand_over_s(self, job: JobState, *, stops: bool) -> float:
            return float("inf")

    service = Service(demand=steps((10, 4), (30, 0)), gpu_type="v100", give_way_s=5.0)
    spec, clock, log = ClusterSpec.parse("1x8:v100"), Clock(0.0), MemoryLog()
    backend = OnlyTime(clock, spec, Model())
    driver = Driver(
        clock=clock,
        workload=jobs({}),
        spec=spec,
        policy=make_policy("fifo"),
        placement=make_placement("count"),
        backend=backend,
        log=log,
        model=backend.model,
    )
    ServingLoad(backend, service, clock=clock, spec=spec)
    for gpu in range(8) if told else ():
        clock.at(11.5, CAPACITY, lambda moment: driver.device_ready(0, moment.subject), gpu)
    driver.run(until_s=1000.0)
    driver.close()
    ready_s = [loan[4] for loan in log.loans]
    assert len(ready_s) == 4
    assert ready_s == [11.5] * 4 if told else all(np.isnan(ready_s))
