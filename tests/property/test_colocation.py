"""What must hold whenever training shares a cluster with an online service."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Costs, Model
from policies.services import Service
from tests.memorylog import MemoryLog
from tests.sharing import holds, share, steps
from traces import Allocation, Workload
from traces.runlog import OUTCOMES

CLUSTER = "2x4:a,1x2:b"
GPUS = 8  # of type a, which the service needs
Row = dict[str, Any]
Changes = list[tuple[float, int]]


@st.composite
def rows(draw: st.DrawFn, *, all_give: bool) -> list[Row]:
    """Jobs of every kind; ``all_give``: only such as can be told to leave all their GPUs."""
    found = []
    for i in range(draw(st.integers(1, 6))):
        gpus = draw(st.integers(1, 6))
        row: Row = {
            "job_id": f"j{i}",
            "submit_s": float(draw(st.integers(0, 60))),
            "duration_s": float(draw(st.integers(1, 200))),
            "num_gpus": gpus,
            "priority": draw(st.sampled_from([None, "opportunistic"])),
        }
        if all_give or draw(st.booleans()):
            row |= {
                "num_workers": gpus,
                "max_gpus": gpus,
                "min_gpus": 0 if all_give else draw(st.integers(0, min(gpus, 2))),
                "mixes_types": draw(st.booleans()),
            }
        found.append(row)
    return found


@st.composite
def demands(draw: st.DrawFn) -> Changes:
    """Demand that ends at 0, so that every job can finish."""
    times = sorted(draw(st.lists(st.integers(0, 300), max_size=8, unique=True)))
    return [*((float(t), draw(st.integers(0, GPUS))) for t in times), (400.0, 0)]


give_way = st.sampled_from([0.0, 5.0, 30.0])
linger = st.sampled_from([0.0, 7.0, 60.0])
models = st.builds(
    lambda rescale, save: Model(costs=Costs(rescale_s=rescale, save_s=save)),
    st.sampled_from([0.0, 3.0, 20.0]),
    st.sampled_from([0.0, 2.0]),
)
policies = st.sampled_from(["easyscale", "fifo", "srtf", "afs", "optimus"])


def never_held_twice(log: MemoryLog) -> None:
    for device, held in holds(log).items():
        for one, other in pairwise(held):
            assert one.end_s <= other.start_s, f"{device}: {one}, {other}"


def loans_are_the_demand(log: MemoryLog, demand: Changes) -> None:
    """What the service has, and what it waits for, is what it asked for, at every moment."""
    bounds = sorted({t for row in log.loans for t in (row[3], row[5])} | {t for t, _ in demand})
    for low, high in pairwise(bounds):
        middle = (low + high) / 2
        asked = sum(row[3] < middle < row[5] for row in log.loans)
        wanted = [n for t, n in demand if t < middle]
        assert asked == (wanted[-1] if wanted else 0), f"at {middle} s"


def test_the_checks_can_fail() -> None:
    log = MemoryLog(loans=[(0, 0, 0, 5.0, 8.0, 20.0, "idle")])
    loans_are_the_demand(log, [(5.0, 1), (20.0, 0)])
    with pytest.raises(AssertionError):
        loans_are_the_demand(log, [(4.0, 1), (20.0, 0)])
    log.allocations.append((0, Allocation(((0, 0b1),)), 0.0, 0.0, 5.0, 1.0, "finish"))
    never_held_twice(log)
    log.allocations.append((1, Allocation(((0, 0b1),)), 7.0, 7.0, 9.0, 1.0, "finish"))
    with pytest.raises(AssertionError, match="job 1"):
        never_held_twice(log)


@given(rows(all_give=False), demands(), give_way, linger, models, policies)
@settings(max_examples=40)
def test_devices_are_held_once_and_no_job_is_lost(
    jobs: list[Row], demand: Changes, give_way_s: float, linger_s: float, model: Model, policy: str
) -> None:
    service = Service(demand=steps(*demand), gpu_type="a", give_way_s=give_way_s, linger_s=linger_s)
    name = f"{policy}:estimates=true" if policy in {"srtf", "optimus", "afs"} else policy
    driver, log = share(Workload.from_jobs(jobs), CLUSTER, name, service, model=model)
    never_held_twice(log)
    loans_are_the_demand(log, [d for d in demand if d[0] <= driver.clock.now])
    assert [OUTCOMES[s] for s in driver.outcomes.status] == ["finished"] * len(jobs)
    assert not any(driver.outcomes.failures)
    if policy == "fifo":  # which stops nobody itself
        by_id = {row["job_id"]: row for row in jobs}
        ids = driver.workload.table["job_id"]
        for name, stops in zip(ids, driver.outcomes.preemptions, strict=True):
            row = by_id[name]
            may_stop = row["priority"] == "opportunistic" or "max_gpus" in row
            assert not stops or (may_stop and not row.get("min_gpus"))
    least = driver.workload.table["min_gpus"].fillna(0)
    assert all(a.num_gpus >= least[rank] for rank, a, *_ in log.allocations)
    for pool, size in zip(driver.view.free.pools, (8, 2), strict=True):
        lender = driver.lender
        lent = 0
        if lender is not None:
            lent = len(lender.owned[pool.index]) + len(lender._lingering[pool.index])
        assert pool.free == pool.capacity
        assert pool.capacity + lent <= size


@given(rows(all_give=True), demands(), give_way, linger, models)
@settings(max_examples=25)
def test_the_service_never_waits_longer_than_stated(
    jobs: list[Row], demand: Changes, give_way_s: float, linger_s: float, model: Model
) -> None:
    service = Service(demand=steps(*demand), gpu_type="a", give_way_s=give_way_s, linger_s=linger_s)
    _, log = share(Workload.from_jobs(jobs), CLUSTER, "easyscale", service, model=model)
    never_held_twice(log)
    for *_, asked_s, ready_s, end_s, source in log.loans:
        assert source != "never"
        waited_s = (end_s if np.isnan(ready_s) else ready_s) - asked_s
        assert waited_s <= give_way_s + 1e-9
