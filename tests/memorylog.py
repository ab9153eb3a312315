"""Runs kept in memory, for tests that ask what happened and need no run directory."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies import Clock, Driver, PlacementPolicy, Policy, make_placement, make_policy
from policies.model import Model
from simulator.cluster import Checkpoints, SimulatedCluster
from traces import Allocation, ClusterSpec, WorkerMap, Workload
from traces.runlog import END_REASONS, EVENT_KINDS, LOAN_SOURCES


@dataclass
class MemoryLog:
    """A recorder that keeps what it is told, in readable form."""

    events: list[tuple[float, str, int]] = field(default_factory=list)
    devices: list[tuple[float, str, int, int, str | None]] = field(default_factory=list)
    allocations: list[tuple[int, Allocation, float, float, float, float, str]] = field(
        default_factory=list
    )
    loans: list[tuple[int, int, int, float, float, float, str]] = field(default_factory=list)
    workers: list[tuple[int, float, WorkerMap]] = field(default_factory=list)

    def event(self, time_s: float, code: int, rank: int, detail: str | None = None) -> None:
        self.events.append((time_s, EVENT_KINDS[code], rank))

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        self.devices.append((time_s, EVENT_KINDS[code], node, mask, detail))

    def allocation(
        self,
        rank: int,
        allocation: Allocation,
        start_s: float,
        begin_s: float,
        end_s: float,
        rate: float,
        reason: int,
        workers: WorkerMap | None = None,
    ) -> None:
        if workers is not None:
            self.workers.append((rank, start_s, workers))
        self.allocations.append(
            (rank, allocation, start_s, begin_s, end_s, rate, END_REASONS[reason])
        )

    def loan(
        self,
        pool: int,
        node: int,
        gpu: int,
        asked_s: float,
        ready_s: float,
        end_s: float,
        source: int,
    ) -> None:
        self.loans.append((pool, node, gpu, asked_s, ready_s, end_s, LOAN_SOURCES[source]))

    def sample(self, *values: object) -> None:
        pass


def drive(
    workload: Workload,
    cluster: ClusterSpec | str,
    policy: Policy | str,
    placement: PlacementPolicy | str = "count",
    *,
    model: Model | None = None,
    checkpoints: Checkpoints | None = None,
    seed: int = 0,
    until_s: float | None = None,
) -> tuple[Driver, MemoryLog]:
    """Run a workload in the simulated world without files; the driver (not closed) and its log."""
    spec = ClusterSpec.parse(cluster) if isinstance(cluster, str) else cluster
    first = float(workload.table["submit_s"].iloc[0]) if len(workload) else 0.0
    clock = Clock(min(0.0, first))
    backend = SimulatedCluster(clock, spec, model, checkpoints)
    log = MemoryLog()
    driver = Driver(
        clock=clock,
        workload=workload,
        spec=spec,
        policy=make_policy(policy) if isinstance(policy, str) else policy,
        placement=make_placement(placement) if isinstance(placement, str) else placement,
        backend=backend,
        log=log,
        model=backend.model,
        seed=seed,
    )
    driver.run(until_s)
    return driver, log
