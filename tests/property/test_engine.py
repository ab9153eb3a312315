"""What must hold of every run, whatever the policy: devices, work, order, seeds, bystanders."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Costs, Model
from simulator import simulate
from simulator.cluster import Checkpoints
from tests.memorylog import MemoryLog, drive
from traces import ClusterSpec, RunLog, Workload
from traces.cluster import gpus_of

POLICIES = [
    "fifo",
    "best-effort",
    "sjf",
    "sjf:by=gpu-time,blocks=true",
    "srtf",
    "srsf",
    # Every gang divides 105 GPU-seconds into a time that floats hold exactly.
    "las:quantum_gpu_s=105",
    "tiresias:thresholds=105;210,knob=2",
]
PLACEMENTS = ["count", "consolidated", "spread", "best-fit"]
CLUSTER = "2x4:a:1,2x2:b"
Row = dict[str, Any]
TYPES = st.sampled_from([None, "a", "b", "a|b", "b|a"])


@st.composite
def rows(draw: st.DrawFn, *, most: int = 12) -> list[Row]:
    """Jobs of every kind that fits on CLUSTER: gangs, shares, CPU jobs, pinned and not."""
    found = []
    for i in range(draw(st.integers(1, most))):
        gpu_type = draw(TYPES)
        gpus = draw(st.integers(0, 4 if gpu_type == "b" else 8))
        row: Row = {
            "job_id": f"j{i}",
            "submit_s": draw(st.integers(0, 30)),
            "duration_s": draw(st.integers(0, 40)),
            "num_gpus": gpus,
            "gpu_milli": draw(st.sampled_from([1000, 500, 250])) if gpus == 1 else 1000,
            "gpu_type": gpu_type,
            "single_node": draw(st.booleans()) if 0 < gpus <= 2 else False,
        }
        found.append(row)
    return found


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Model, Checkpoints]:
    """Costs, speeds and checkpoints, all of them dyadic so that floats are exact."""
    costs = {k: draw(st.sampled_from([0, 0, 1, 3])) for k in COSTS}
    speeds = draw(st.sampled_from([{}, {"a": 2.0}, {"a": 0.5, "b": 4.0}]))
    spread = draw(st.sampled_from([1.0, 0.5]))
    checkpoints = Checkpoints(
        every_s=draw(st.sampled_from([None, 1.0, 8.0])), on_preempt=draw(st.booleans())
    )
    model = Model(
        costs=Costs(**{k: float(v) for k, v in costs.items()}), speeds=speeds, across_nodes=spread
    )
    return model, checkpoints


COSTS = ("start_s", "restore_s", "save_s", "migrate_s")
policies = st.sampled_from(POLICIES)
placements = st.sampled_from(PLACEMENTS)


def held(log: MemoryLog) -> dict[tuple[int, int], list[tuple[float, float, int, int]]]:
    """Device to (start, end, share, rank) of everything that held it."""
    by_device = defaultdict(list)
    for rank, allocation, start_s, _, end_s, _, _ in log.allocations:
        for node, mask in allocation.shares:
            for gpu in gpus_of(mask):
                by_device[node, gpu].append((start_s, end_s, allocation.gpu_milli, rank))
    return by_device


def check_books(log: MemoryLog, workload: Workload) -> None:
    """No device over its capacity, no gang of another size, one place at a time."""
    for stays in held(log).values():
        changes = [(t, sign * milli) for s, e, milli, _ in stays for t, sign in ((s, 1), (e, -1))]
        load = 0
        for _, change in sorted(changes):  # at one instant what leaves comes first
            load += change
            assert load <= 1000
        assert load == 0
    spec = ClusterSpec.parse(CLUSTER)
    jobs = list(workload.jobs())
    by_job: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for rank, allocation, start_s, _, end_s, _, _ in log.allocations:
        request = jobs[rank].request
        assert allocation.num_gpus == request.num_gpus
        assert allocation.gpu_milli == request.gpu_milli
        assert allocation.num_nodes == 1 or not request.single_node
        types = {spec.nodes[node].gpu_type for node, _ in allocation.shares}
        assert len(types) == 1
        assert not request.gpu_types or types <= set(request.gpu_types)
        by_job[rank].append((start_s, end_s))
    for own in by_job.values():
        own.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(own))


@given(jobs=rows(), policy=policies, placement=placements, world=worlds())
@settings(max_examples=100)
def test_devices_gangs_and_work(
    jobs: list[Row], policy: str, placement: str, world: tuple[Model, Checkpoints]
) -> None:
    workload = Workload.from_jobs(jobs)
    model, checkpoints = world
    if "las" in policy or "tiresias" in policy:
        # Taking turns while every turn loses all its work goes on for ever (and is found out).
        checkpoints = replace(checkpoints, on_preempt=True)
    driver, log = drive(workload, CLUSTER, policy, placement, model=model, checkpoints=checkpoints)
    check_books(log, workload)
    outcomes = driver.outcomes
    counts = driver.counts
    assert counts.submitted == counts.finished == len(jobs)
    assert counts.preemptions == sum(outcomes.preemptions)
    assert counts.migrations == sum(outcomes.migrations)
    done: dict[int, Fraction] = defaultdict(Fraction)
    time: dict[int, Fraction] = defaultdict(Fraction)
    for rank, _, start_s, begin_s, end_s, rate, _ in log.allocations:
        time[rank] += Fraction(end_s) - Fraction(start_s)
        if end_s > begin_s:
            done[rank] += (Fraction(end_s) - Fraction(begin_s)) * Fraction(rate)
    for rank, row in enumerate(workload.jobs()):
        gpus = row.request.gpus
        lost = Fraction(outcomes.lost_gpu_s[rank]) / Fraction(gpus) if gpus else None
        if lost is not None:
            assert done[rank] - lost == Fraction(row.duration_s)
            assert outcomes.service_gpu_s[rank] == float(time[rank] * Fraction(gpus))
        elif checkpoints.on_preempt:
            assert done[rank] == Fraction(row.duration_s)
        assert outcomes.jct_s[rank] == outcomes.finish_s[rank] - row.submit_s
        assert Fraction(outcomes.queueing_s[rank]) + time[rank] == Fraction(outcomes.jct_s[rank])
        fastest = max(model.speeds.values(), default=1.0)
        assert outcomes.jct_s[rank] >= row.duration_s / max(fastest, 1.0)


@given(jobs=rows(), policy=policies, placement=placements, until=st.integers(0, 60))
@settings(max_examples=60)
def test_every_submission_is_accounted_for(
    jobs: list[Row], policy: str, placement: str, until: int
) -> None:
    jobs = [*jobs, {"job_id": "huge", "submit_s": 5, "duration_s": 1, "num_gpus": 99}]
    run = simulate(
        Workload.from_jobs([{"gpu_milli": 1000, "single_node": False, **j} for j in jobs]),
        CLUSTER,
        policy=policy,
        placement=placement,
        misfits="reject",
        until_s=until,
    )
    status = run.jobs["status"].value_counts()
    counts = run.record["counts"]
    assert counts["finished"] == status["finished"]
    assert counts["rejected"] == status["rejected"]
    is_open = status["running"] + status["waiting"]
    assert counts["submitted"] == counts["finished"] + counts["rejected"] + is_open
    assert counts["submitted"] + status["unsubmitted"] == len(jobs)
    assert run.complete == (is_open + status["unsubmitted"] == 0)
    assert (run.jobs.loc[run.jobs["status"] != "finished", "lost_gpu_s"] == 0).all()


def digest(path: Path) -> str:
    """Hash of everything in a run's tables."""
    found = hashlib.sha256()
    for table in ("jobs", "allocations", "events", "samples"):
        found.update(RunLog.open(path).table(table).to_csv().encode())
    return found.hexdigest()


def run_digest(workload: Workload, policy: str, placement: str, **more: Any) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        simulate(workload, CLUSTER, policy=policy, placement=placement, out=path, **more)
        return digest(path)


@given(jobs=rows(), policy=policies, placement=placements, data=st.data())
@settings(max_examples=25)
def test_the_order_of_rows_changes_nothing(
    jobs: list[Row], policy: str, placement: str, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(jobs))
    ordered, permuted = Workload.from_jobs(jobs), Workload.from_jobs(shuffled)
    assert run_digest(ordered, policy, placement) == run_digest(permuted, policy, placement)


@pytest.mark.parametrize("policy", ["srtf:estimates=noisy:1", "tiresias", "sjf:estimates=noisy:2"])
def test_same_seed_same_bits(policy: str) -> None:
    jobs = [
        {"job_id": f"j{i}", "submit_s": i * 7 % 31, "duration_s": 5 + i * 11 % 37, "num_gpus": 4}
        for i in range(40)
    ]
    workload = Workload.from_jobs(jobs)
    first = run_digest(workload, policy, "count", seed=3)
    assert first == run_digest(workload, policy, "count", seed=3)
    if "noisy" in policy:
        assert first != run_digest(workload, policy, "count", seed=4)


@given(jobs=rows(), policy=policies, placement=placements)
@settings(max_examples=60)
def test_options_that_cost_nothing_change_nothing(
    jobs: list[Row], policy: str, placement: str
) -> None:
    workload = Workload.from_jobs(jobs)
    _, plain = drive(workload, CLUSTER, policy, placement)
    _, same = drive(
        workload,
        CLUSTER,
        policy,
        placement,
        model=Model(costs=Costs(), speeds={"a": 1.0, "b": 1.0}, across_nodes=1.0),
        checkpoints=Checkpoints(every_s=3.0, on_preempt=True),
        seed=9,
    )
    assert plain.events == same.events
    assert plain.allocations == same.allocations


@given(jobs=rows(), policy=policies, sample_s=st.sampled_from([0.5, 1.0, 7.0, 1000.0]))
@settings(max_examples=20)
def test_looking_changes_nothing(jobs: list[Row], policy: str, sample_s: float) -> None:
    workload = Workload.from_jobs(jobs)
    columns = ["start_s", "finish_s", "preemptions", "queueing_s"]
    unseen = simulate(workload, CLUSTER, policy=policy).jobs[columns]
    with TemporaryDirectory() as folder:
        seen = simulate(
            workload, CLUSTER, policy=policy, out=Path(folder) / "run", sample_s=sample_s
        ).jobs[columns]
    assert unseen.equals(seen)


@given(
    submits=st.lists(st.integers(0, 20), min_size=1, max_size=25),
    gpus=st.integers(1, 6),
    more=st.integers(1, 4),
    speed=st.sampled_from([2.0, 4.0]),
)
@settings(max_examples=60)
def test_a_faster_cluster_never_ends_later_under_fifo(
    submits: list[int], gpus: int, more: int, speed: float
) -> None:
    """Unit-size jobs: one GPU, one length. (Gangs have anomalies: more GPUs can end later.)"""
    workload = Workload.from_jobs(
        [{"submit_s": s, "duration_s": 8, "num_gpus": 1} for s in submits]
    )

    def makespan(cluster: str, model: Model | None = None) -> float:
        driver, _ = drive(workload, cluster, "fifo", model=model)
        return max(driver.outcomes.finish_s)

    slow = makespan(f"1x{gpus}:a")
    assert makespan(f"1x{gpus + more}:a") <= slow
    assert makespan(f"1x{gpus}:a", Model(speeds={"a": speed})) <= slow
