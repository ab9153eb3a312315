"""Clusters that training shares with an online service, run in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policies import Clock, Driver, Policy, make_placement, make_policy
from policies.model import Model
from policies.services import Service, ServingLoad
from simulator.cluster import SimulatedCluster
from simulator.failures import Source
from simulator.outages import Outages
from tests.memorylog import MemoryLog
from traces import ClusterSpec, Workload
from traces.cluster import gpus_of
from traces.steps import Steps


def steps(*changes: tuple[float, int]) -> Steps:
    """Demand in GPUs from each instant on."""
    return Steps(
        times_s=np.array([float(t) for t, _ in changes]),
        values=np.array([1000 * n for _, n in changes], dtype=np.int64),
    )


def share(
    workload: Workload,
    cluster: str,
    policy: Policy | str,
    service: Service,
    *,
    model: Model | None = None,
    outages: Sequence[Source] = (),
    until_s: float | None = None,
) -> tuple[Driver, MemoryLog]:
    """Run a workload beside a service, to the end and the closing of the books."""
    spec = ClusterSpec.parse(cluster)
    clock, log = Clock(0.0), MemoryLog()
    backend = SimulatedCluster(clock, spec, model)
    driver = Driver(
        clock=clock,
        workload=workload,
        spec=spec,
        policy=make_policy(policy) if isinstance(policy, str) else policy,
        placement=make_placement("count"),
        backend=backend,
        log=log,
        model=backend.model,
    )
    ServingLoad(backend, service, clock=clock, spec=spec)
    if outages:
        Outages(backend, outages, np.random.default_rng(0))
    driver.run(until_s)
    driver.close()
    return driver, log


class Hold(NamedTuple):
    """Who had a device, when."""

    start_s: float
    end_s: float
    holder: str


def holds(log: MemoryLog) -> dict[tuple[int, int], list[Hold]]:
    """Everything that had a device, by device, in order; a loan begins when it was asked for."""
    found: dict[tuple[int, int], list[Hold]] = {}
    for rank, allocation, start_s, _, end_s, _, _ in log.allocations:
        for node, mask in allocation.shares:
            for gpu in gpus_of(mask):
                found.setdefault((node, gpu), []).append(Hold(start_s, end_s, f"job {rank}"))
    for _, node, gpu, _, ready_s, end_s, source in log.loans:
        if source != "never" and not np.isnan(ready_s):
            found.setdefault((node, gpu), []).append(Hold(ready_s, end_s, "service"))
    return {device: sorted(held) for device, held in found.items()}
