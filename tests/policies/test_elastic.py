"""Elastic jobs under the driver: sizes, types, worker maps, costs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import ClusterView, Draft, Policy
from policies.errors import PlanError
from policies.model import Costs, Model
from policies.plan import Plan
from policies.replay import Replay
from policies.state import JobState
from simulator.run import simulate
from tests.memorylog import MemoryLog, drive
from traces import Allocation, ClusterSpec, Profile, RunLog, Workload
from traces.feasibility import infeasible
from traces.profile import ModelProfile

Wanted = Callable[[float, JobState], tuple[int, ...] | None]


@dataclass(frozen=True, kw_only=True)
class Script(Policy):
    """Gives jobs what it is told to, every ``every_s`` seconds."""

    wanted: Wanted
    every_s: float = 10.0
    name: ClassVar[str] = "script"
    resizes: ClassVar[bool] = True

    @property
    def interval_s(self) -> float:
        return self.every_s

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        for job in sorted([*view.waiting, *view.running], key=lambda j: j.rank):
            counts = self.wanted(view.now, job)
            if counts is not None and any(counts):
                draft.resize(job, counts)
            elif counts is not None and job.running:
                draft.stop(job)
        return draft


def jobs(*rows: dict[str, Any]) -> Workload:
    plain = {"submit_s": 0.0, "duration_s": 100.0, "num_gpus": 8, "num_workers": 8, "max_gpus": 8}
    return Workload.from_jobs([{"job_id": f"job{i}", **plain, **row} for i, row in enumerate(rows)])


def test_a_resize_by_hand() -> None:
    # 2 GPUs hold 4 workers each: rate 1/4, 10 s of work in 40 s. Then 20 s pass without progress,
    # and on 8 GPUs the other 90 s take 90 s.
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        return (2,) if now < 40 else (8,)

    model = Model(costs=Costs(rescale_s=20.0))
    driver, log = drive(jobs({}), "1x8:v100", Script(wanted=wanted), model=model)
    assert driver.outcomes.finish_s[0] == 150.0
    assert [
        (r, a.num_gpus, s, b, e, rate, why) for r, a, s, b, e, rate, why in log.allocations
    ] == [
        (0, 2, 0.0, 0.0, 40.0, 0.25, "resize"),
        (0, 8, 40.0, 60.0, 150.0, 1.0, "finish"),
    ]
    assert [w.counts for _, _, w in log.workers] == [(4, 4), (1,) * 8]
    assert (0, "resize") in [(r, kind) for _, kind, r in log.events]
    assert driver.counts.resizes == driver.outcomes.resizes[0] == 1
    assert driver.outcomes.migrations[0] == 0
    assert driver.outcomes.service_gpu_s[0] == 2 * 40 + 8 * 110
    assert driver.outcomes.overhead_gpu_s[0] == 8 * 20


DRAINING = Model(
    profile=Profile(
        models={
            "net": ModelProfile(
                microbatch_s={1: {"gpu": 4.0}}, switch_s={"gpu": 0.0}, update_s={"gpu": 0.0}
            )
        },
        origin="analytic",
    ),
    costs=Costs(save_s=3.0, rescale_s=6.0, drain_steps=0.5),
)
PAIR = {"num_gpus": 2, "num_workers": 2, "max_gpus": 2, "model": "net", "batch_size": 1}


def test_a_job_that_is_stopped_goes_on_to_its_step_boundary() -> None:
    # Two logical workers on one GPU: a step takes 8 s, rate 1/2. Told to leave at 40 s with 20 s of
    # work done, the first is at 22 when it leaves at 44; its state is saved at 47. The second does
    # 10 s of work in 20, the first its other 78 in 156 from the next plan on.
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        return (1,) if (job.rank == 1) == (40 <= now < 70) else (0,)

    workload = jobs({**PAIR}, {**PAIR, "duration_s": 10.0})
    driver, _ = drive(workload, "1x1:gpu", Script(wanted=wanted), model=DRAINING)
    assert list(driver.outcomes.finish_s) == [70 + 156, 67]


def test_who_gets_a_device_waits_until_the_job_that_leaves_it_has_moved() -> None:
    # The first shrinks to one GPU at 40 s with 40 s of work done, is at 42 when its step ends at
    # 42 s, and goes on at 48 with 58 s of work at rate 1/2. Then the second begins beside it.
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        if job.rank == 0:
            return (2,) if now < 40 else (1,)
        return (0,) if now < 40 else (1,)

    workload = jobs({**PAIR}, {**PAIR, "duration_s": 10.0})
    driver, _ = drive(workload, "1x2:gpu", Script(wanted=wanted), model=DRAINING)
    assert list(driver.outcomes.finish_s) == [48 + 116, 48 + 20]


def test_every_change_is_charged_every_time() -> None:
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        return (4,) if now % 100 < 50 else (8,)

    costs = Model(costs=Costs(rescale_s=20.0))
    free, _ = drive(jobs({}), "1x8:v100", Script(wanted=wanted, every_s=50))
    paid, _ = drive(jobs({}), "1x8:v100", Script(wanted=wanted, every_s=50), model=costs)
    # Without costs 25 s of work by 50 s, 75 by 100, 100 by 150. With them 25, then 30 s at rate 1,
    # 30 s at 1/2, 30 s at rate 1: all done at 200 s but for nothing.
    assert free.outcomes.finish_s[0] == 150.0
    assert paid.outcomes.finish_s[0] == 200.0
    assert (free.counts.resizes, paid.counts.resizes) == (2, 3)


def test_fewer_workers_than_devices_leaves_devices_without() -> None:
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        return (3,)

    driver, log = drive(
        jobs({"num_workers": 4, "num_gpus": 4, "max_gpus": 4}), "1x8:v100", Script(wanted=wanted)
    )
    assert log.workers[0][2].counts == (2, 1, 1)
    assert driver.outcomes.finish_s[0] == 200.0


def test_types_mix_for_those_that_may() -> None:
    def wanted(now: float, job: JobState) -> tuple[int, ...]:
        return (2, 2)

    model = Model(speeds={"t4": 0.5})
    workload = jobs({"mixes_types": True, "gpu_type": "v100"})
    driver, log = drive(workload, "1x4:v100,1x4:t4", Script(wanted=wanted), model=model)
    # Two logical workers on each of four devices; the T4 take twice as long.
    assert driver.outcomes.finish_s[0] == 400.0
    assert log.allocations[0][1].shares == ((0, 0b11), (1, 0b11))


@pytest.mark.parametrize(
    ("row", "shares", "words"),
    [
        ({}, ((0, 0b1), (1, 0b1)), "mixed"),
        ({"gpu_type": "v100"}, ((1, 0b1),), "it may use v100"),
        ({"min_gpus": 2}, ((0, 0b1),), "at least 2"),
        ({"max_gpus": 8, "num_workers": 8}, ((0, 0xFF), (1, 0b1)), "at most 8"),
        ({}, ((0, 0b1 << 9),), "no GPU 9"),
        ({"mixes_types": True}, ((1, 0b1), (0, 0b1)), "out of order"),
    ],
)
def test_what_is_refused(
    row: dict[str, Any], shares: tuple[tuple[int, int], ...], words: str
) -> None:
    class Wrong(Policy):
        def plan(self, view: ClusterView) -> Plan:
            return Plan({job: Allocation(shares) for job in view.waiting})

    with pytest.raises(PlanError, match=words):
        drive(jobs(row), "1x8:v100,1x8:t4", Wrong())


def test_a_running_job_is_held_to_its_bounds_too() -> None:
    class Shrinks(Script):
        def plan(self, view: ClusterView) -> Draft:
            draft = super().plan(view)
            for job in view.running:
                draft.changes[job] = Allocation(((0, 0b1),))
            return draft

    with pytest.raises(PlanError, match="at least 4"):
        drive(
            jobs({"min_gpus": 4}),
            "1x8:v100",
            Shrinks(wanted=lambda now, job: (4,) if not now else None),
        )


@pytest.mark.parametrize("policy", ["fifo", "easy", "srtf", "tiresias", "las", "quota"])
def test_policies_for_rigid_jobs_run_gangs(policy: str) -> None:
    rows = [
        {"submit_s": 7.0 * i, "duration_s": 30.0 + 11 * (i % 5), "num_gpus": n, "num_workers": n}
        for i, n in enumerate([4, 8, 2, 6, 1, 8, 3, 5, 2, 4])
    ]
    rigid = jobs(*({**row, "max_gpus": None} for row in rows))
    elastic = jobs(*({**row, "max_gpus": row["num_gpus"], "min_gpus": 1} for row in rows))
    model = Model(costs=Costs(start_s=2.0, restore_s=1.0))
    as_rigid, _ = drive(rigid, "2x4:v100", policy, model=model)
    as_elastic, _ = drive(elastic, "2x4:v100", policy, model=model)
    assert not rigid.elastic
    assert elastic.elastic
    assert as_elastic.outcomes.columns() == as_rigid.outcomes.columns()


def test_least_sizes_decide_what_can_run() -> None:
    workload = jobs({"min_gpus": 3}, {"min_gpus": 5}, {"min_gpus": 5, "mixes_types": True})
    spec = ClusterSpec.parse("1x4:v100,1x3:t4")
    assert infeasible(workload, spec).mask.tolist() == [True, True, True]
    judged = infeasible(workload, spec, sizes=True)
    assert judged.mask.tolist() == [False, True, False]
    assert judged.reason(1) is not None
    assert judged.reason(2) is None


def test_a_replay_knows_sizes_and_seats(tmp_path: Path) -> None:
    registered = "tests/policies/scripted_sizes.py:Sawtooth"
    workload = jobs(
        {"mixes_types": True}, {"submit_s": 15.0, "num_workers": 5, "num_gpus": 5, "max_gpus": 5}
    )
    model = Model(speeds={"t4": 0.5}, costs=Costs(rescale_s=5.0))
    run = simulate(
        workload, "2x4:v100,1x4:t4", policy=registered, model=model, out=tmp_path / "run"
    )
    assert run.jobs["resizes"].sum() > 3
    for until in (0.0, 25.0, 60.0, 110.0):
        driver, _ = drive(workload, "2x4:v100,1x4:t4", registered, model=model, until_s=until + 1)
        view = Replay(RunLog.open(run.path or "")).until(until)
        seen = {
            j.job_id: (j.held, j.allocation, j.worker_map, j.rate, j.begin_s, j.resizes, j.gpus)
            for j in view.running
        }
        assert seen
        assert seen == {
            j.job_id: (j.held, j.allocation, j.worker_map, j.rate, j.begin_s, j.resizes, j.gpus)
            for j in driver.view.running
        }


def test_the_log_says_who_sat_where(tmp_path: Path) -> None:
    registered = "tests/policies/scripted_sizes.py:Sawtooth"
    run = simulate(
        jobs({"mixes_types": True}), "2x4:v100,1x4:t4", policy=registered, out=tmp_path / "r"
    )
    table = RunLog.open(run.path or "").table("allocations")
    for _, stay in table.groupby("start_s"):
        workers = [n for row in stay["workers"] for n in row]
        firsts = [n for row in stay["first_rank"] for n in row]
        assert sum(workers) == 8
        held = sorted((first, n) for first, n in zip(firsts, workers, strict=True) if n)
        assert [first for first, _ in held] == [
            sum(n for _, n in held[:i]) for i in range(len(held))
        ]


@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_no_plan_takes_what_is_not_there(sizes: list[list[tuple[int, int]]]) -> None:
    """Any wishes, three jobs, 8 + 6 GPUs: the driver checks every plan, the index adds up."""

    def wanted(now: float, job: JobState) -> tuple[int, ...] | None:
        row = sizes[int(now // 10) % len(sizes)]
        return row[job.rank] if now < 10 * len(sizes) else (2, 0)

    workload = jobs(*({"mixes_types": True, "num_workers": 9, "max_gpus": 9} for _ in range(3)))
    driver, log = drive(workload, "2x4:v100,3x2:t4", Script(wanted=wanted))
    assert driver.complete
    assert [p.free for p in driver.view.free.pools] == [8, 6]
    assert not driver.view.elastic
    _adds_up(log)


def _adds_up(log: MemoryLog) -> None:
    for (rank, allocation, start, *_), (other, begun, workers) in zip(
        log.allocations, log.workers, strict=True
    ):
        assert (rank, start) == (other, begun)
        assert workers.num_workers == 9
        assert workers.num_gpus == min(9, allocation.num_gpus)
