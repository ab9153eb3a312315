"""Shortest remaining time first where starting costs something and GPUs differ in speed."""

from __future__ import annotations

from typing import Any

import pytest

from policies.model import Costs, Model
from tests.memorylog import drive
from traces import Workload

WORLDS = {
    "starting costs": Model(costs=Costs(start_s=60.0)),
    "restoring costs": Model(costs=Costs(restore_s=60.0, save_s=5.0)),
    "slow GPUs": Model(speeds={"gpu": 0.25}),
    "fast GPUs": Model(speeds={"gpu": 4.0}),
}


def rows() -> list[dict[str, Any]]:
    """Two long jobs that are nearly alike, and a short one every five seconds."""
    long = [{"job_id": f"l{i}", "submit_s": 0, "duration_s": 1000 + 5 * i} for i in range(2)]
    short = [{"job_id": f"s{i}", "submit_s": 1 + 5 * i, "duration_s": 2} for i in range(100)]
    return [{"num_gpus": 1, **row} for row in [*long, *short]]


@pytest.mark.parametrize("policy", ["srtf", "srsf"])
@pytest.mark.parametrize("world", WORLDS)
def test_equals_do_not_preempt_each_other(policy: str, world: str) -> None:
    """A short job never stops a short job, whatever it has paid for its start."""
    driver, log = drive(Workload.from_jobs(rows()), "1x2", policy, model=WORLDS[world])
    stopped = {
        driver.workload.job(rank).job_id for _, kind, rank in log.events if kind == "preempt"
    }
    assert stopped <= {"l0", "l1"}


@pytest.mark.parametrize("policy", ["srtf", "srsf"])
@pytest.mark.parametrize("world", WORLDS)
def test_who_runs_has_least_left(policy: str, world: str) -> None:
    """On equal GPUs, after every start the jobs that run are those with the least work left."""
    driver, log = drive(Workload.from_jobs(rows()), "1x2", policy, model=WORLDS[world])
    jobs = list(driver.workload.jobs())
    left = {job.rank: job.duration_s for job in jobs}
    running: dict[int, float] = {}
    for time_s, kind, rank in log.events:
        if kind == "start":
            waiting = set(left) - set(running)
            there = {r for r in waiting if jobs[r].submit_s <= time_s}
            assert left[rank] <= min(left[r] for r in there)
            running[rank] = time_s
        elif kind in {"preempt", "finish"}:
            began = running.pop(rank)
            (stay,) = [a for a in log.allocations if a[0] == rank and a[2] == began]
            left[rank] -= max(0.0, stay[4] - stay[3]) * stay[5]
            if kind == "finish":
                assert left.pop(rank) == pytest.approx(0.0, abs=1e-9)
