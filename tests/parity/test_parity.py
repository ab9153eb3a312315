"""One policy, one workload, two worlds: the same plans in the same order.

The simulator and a scripted world behind the wall clock run the same jobs under every registered
policy. Rates are exact in both, so every plan must be equal, instant by instant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from executor.clock import WallClock
from policies import Clock, Driver, make_placement, make_policy
from policies.model import Costs, Model
from policies.plan import Plan
from policies.registry import POLICIES, policy_class
from policies.services import Diurnal, Service, ServingLoad
from simulator.cluster import SimulatedCluster
from tests.memorylog import MemoryLog
from tests.parity.scripted import ScriptedWorld
from traces import ClusterSpec, Workload
from traces.runlog import OUTCOMES

CLUSTER = "2x4:a:1,2x2:b"
WORKLOADS = 50
# Half of the smaller type: a gang larger than its virtual cluster's quota never runs.
MOST_GPUS = {"quota": 2}
Decision = tuple[float, list[tuple[str, object]]]


def drawn(seed: int, most: int = 8) -> Workload:
    """Six to sixteen jobs of whole seconds, so that instants coincide often."""
    rng = np.random.default_rng([2208, 14228, seed])
    jobs = []
    for i in range(int(rng.integers(6, 17))):
        gpus = min(most, int(rng.choice([1, 1, 1, 2, 2, 4, 8])))
        duration_s = int(rng.integers(1, 60))
        row: dict[str, Any] = {
            "job_id": f"j{i}",
            "submit_s": int(rng.integers(0, 40)),
            "duration_s": duration_s,
            "estimate_s": duration_s + int(rng.integers(0, 20)),
            "num_gpus": gpus,
            "gpu_type": "a" if gpus > 4 else (None, "a", "b")[int(rng.integers(3))],
            "vc": f"vc{int(rng.integers(2))}",
        }
        if row["gpu_type"] is None:
            row["gpu_type"] = "a|b"
        jobs.append(row)
    return Workload.from_jobs(jobs)


def elastic(seed: int) -> Workload:
    """The same jobs, two in three of them elastic, some with guaranteed GPUs or mixing types."""
    rng = np.random.default_rng([2208, 14228, seed, 1])
    table = drawn(seed).table.copy()
    for row in range(len(table)):
        gang = int(table["num_gpus"].iloc[row])
        if rng.random() < 0.33:
            continue
        workers = gang * int(rng.integers(1, 3))
        table.loc[row, ["num_workers", "max_gpus"]] = workers
        table.loc[row, "min_gpus"] = int(rng.integers(0, min(gang, 3)))
        table.loc[row, "mixes_types"] = bool(rng.random() < 0.5)
        table.loc[row, "priority"] = "opportunistic" if rng.random() < 0.3 else None
    return Workload(table)


def plans(
    policy: str,
    workload: Workload,
    model: Model,
    *,
    real: bool,
    late_s: float = 0.0,
    service: Service | None = None,
) -> list[Decision]:
    """Every plan that changed something, with its instant, in one of the two worlds."""
    spec = ClusterSpec.parse(CLUSTER)
    first_s = min(0.0, float(workload.table["submit_s"].iloc[0]))
    clock: Clock
    backend: ScriptedWorld | SimulatedCluster
    if real:
        world = ScriptedWorld(spec, model, first_s, late_s)
        clock, backend = WallClock(world, first_s), world
    else:
        clock = Clock(first_s)
        backend = SimulatedCluster(clock, spec, model)
    driver = Driver(
        clock=clock,
        workload=workload,
        spec=spec,
        policy=make_policy(policy),
        placement=make_placement("count"),
        backend=backend,
        log=MemoryLog(),
        model=model,
    )
    if service is not None:
        ServingLoad(backend, service, clock=clock, spec=spec)
    decisions: list[Decision] = []
    apply = driver._apply

    def recorded(plan: Plan) -> None:
        decisions.append((clock.now, [(j.job_id, a) for j, a in plan.changes.items()]))
        apply(plan)

    driver._apply = recorded  # type: ignore[method-assign]
    driver.run()
    assert driver.complete
    assert driver.counts.finished == len(workload)
    return decisions


@pytest.mark.parametrize("policy", POLICIES)
def test_the_two_worlds_decide_alike(policy: str) -> None:
    models = (Model(), Model(costs=Costs(start_s=1.0, restore_s=2.0, migrate_s=1.0)))
    for seed in range(WORKLOADS):
        workload, model = drawn(seed, MOST_GPUS.get(policy, 8)), models[seed % 2]
        simulated = plans(policy, workload, model, real=False)
        real = plans(policy, workload, model, real=True)
        assert real == simulated, f"workload {seed}"


ELASTIC = [name for name in POLICIES if policy_class(name).resizes]


@pytest.mark.parametrize(
    "policy",
    [
        *(f"{n}:round_s=20" if n == "optimus" else n for n in ELASTIC),
        "easyscale:version=paper,round_s=5",
        "easyscale:estimates=true,margin=1",
        "fifo",
    ],
)
def test_the_two_worlds_resize_alike(policy: str) -> None:
    models = (
        Model(speeds={"b": 0.5}),
        Model(speeds={"b": 0.5}, costs=Costs(start_s=1.0, rescale_s=2.0, migrate_s=1.0)),
    )
    resized = 0
    for seed in range(WORKLOADS // 4):
        workload, model = elastic(seed), models[seed % 2]
        simulated = plans(policy, workload, model, real=False)
        real = plans(policy, workload, model, real=True)
        assert real == simulated, f"workload {seed}"
        resized += sum(len(changes) for _, changes in simulated) > len(workload)
    static = policy in {"fifo", "static-share"}
    assert static or resized > 5


def test_a_world_that_lags_decides_otherwise() -> None:
    """The comparison can fail: messages that come half a second late change the instants."""
    workload = drawn(0)
    simulated = plans("fifo", workload, Model(), real=False)
    assert plans("fifo", workload, Model(), real=True, late_s=0.5) != simulated


@pytest.mark.parametrize("policy", ["fifo", "srtf", "tiresias", "easyscale", "afs", "static-share"])
def test_the_two_worlds_give_way_alike(policy: str) -> None:
    """An online service's demand is the same event in both, and so is who gives way."""
    model = Model(speeds={"b": 0.5}, costs=Costs(start_s=1.0, rescale_s=2.0))
    demand = Diurnal(low=0, high=6, period_s=30.0, peak_s=15.0, step_s=3.0)
    service = Service(demand=demand, gpu_type="a", give_way_s=4.0, linger_s=2.0)
    given_way = 0
    for seed in range(WORKLOADS // 4):
        workload = elastic(seed)
        simulated = plans(policy, workload, model, real=False, service=service)
        real = plans(policy, workload, model, real=True, service=service)
        assert real == simulated, f"workload {seed}"
        given_way += simulated != plans(policy, workload, model, real=False)
    assert given_way > 5


@pytest.mark.parametrize("policy", ["fifo", "srtf", "tiresias", "easyscale", "afs"])
def test_a_job_that_fails_for_good_is_over_and_the_others_go_on(policy: str) -> None:
    """It leaves as if its work had been done: every other job is decided on as in that world."""
    for seed in range(8):
        workload, model = elastic(seed), Model()
        rank = seed % len(workload)
        half_s = float(workload.table["duration_s"].iloc[rank]) / 2
        spec = ClusterSpec.parse(CLUSTER)
        world = ScriptedWorld(spec, model, 0.0, fails={rank: half_s})
        log = MemoryLog()
        driver = Driver(
            clock=WallClock(world, 0.0),
            workload=workload,
            spec=spec,
            policy=make_policy(policy),
            placement=make_placement("count"),
            backend=world,
            log=log,
            model=model,
        )
        driver.run()
        assert driver.complete
        assert driver.counts.given_up == 1
        assert driver.counts.finished == len(workload) - 1
        status = [OUTCOMES[code] for code in driver.outcomes.status]
        assert status.pop(rank) == "failed"
        assert set(status) == {"finished"}
        (failed_s,) = [t for t, kind, job in log.events if (kind, job) == ("give_up", rank)]
        assert not [e for e in log.events if e[2] == rank and e[0] > failed_s]  # never again
        assert [stay[-1] for stay in log.allocations if stay[0] == rank][-1] == "fail"
        assert np.isnan(driver.outcomes.finish_s[rank])
        assert [pool.free for pool in driver.view.free.pools] == [8, 4]
