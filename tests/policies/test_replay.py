"""A view rebuilt from a run directory is the view that the policy had."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Costs, Model
from policies.replay import Replay, explain_at, view_at
from policies.view import LiveView
from simulator import Checkpoints, simulate
from simulator.failures import Mtbf
from tests.memorylog import drive
from traces import DataError, RunLog, UsageError, Workload

POLICIES = (
    "fifo",
    "best-effort",
    "easy",
    "conservative:estimates=noisy:0.5",
    "sjf",
    "srtf",
    "las:quantum_gpu_s=7",
    "tiresias:thresholds=6;15,knob=1",
    "gittins:levels=4;12,min_history=2",
    "quota:inner=tiresias,inner.thresholds=5;9,shares=equal,borrow=true",
)


def state(view: LiveView) -> dict[str, Any]:
    """Everything a policy can read, in comparable form."""

    def job(j: Any) -> tuple[Any, ...]:
        return (
            j.rank,
            j.phase,
            j.memory,
            j.lesson,
            j.allocation,
            j.done_s,
            j.served_gpu_s,
            j.executed_s,
            j.waiting_s(view.now),
            j.begin_s if j.running else None,
            j.rate if j.running else None,
            j.preemptions,
            j.failures,
        )

    return {
        "now": view.now,
        "waiting": [job(j) for j in view.waiting],
        "running": [job(j) for j in view.running],
        "finished": view.finished,
        "masks": list(view.free.mask),
        "pools": [(p.free, p.share_milli, list(p.levels)) for p in view.free.pools],
        "due": view.next_change_s(),
    }


ROWS = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(0, 15), st.integers(1, 6), st.sampled_from(["a", "b", None])
    ),
    min_size=1,
    max_size=15,
)


@settings(max_examples=25)
@given(
    rows=ROWS,
    policy=st.sampled_from(POLICIES),
    placement=st.sampled_from(["count", "spread"]),
    at_s=st.integers(0, 60).map(float) | st.floats(0, 60),
    costly=st.booleans(),
    lossy=st.booleans(),
)
def test_the_replayed_view_is_the_live_view(
    rows: list[tuple[int, int, int, str | None]],
    policy: str,
    placement: str,
    at_s: float,
    costly: bool,
    lossy: bool,
) -> None:
    workload = Workload.from_jobs(
        [
            {"job_id": f"j{i}", "submit_s": s, "duration_s": d, "num_gpus": g, "vc": vc}
            for i, (s, d, g, vc) in enumerate(rows)
        ]
    )
    model = Model(costs=Costs(start_s=1.0, restore_s=0.5), across_nodes=0.75) if costly else Model()
    checkpoints = Checkpoints(every_s=2.0, on_preempt=False) if lossy else Checkpoints()
    # Until 90 s: where starting costs more than a turn lasts, promotion can go round for ever.
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(
            workload, "2x3:v", policy=policy, placement=placement, out=Path(folder) / "run",
            model=model, checkpoints=checkpoints, seed=3, until_s=90.0,
        )  # fmt: skip
        at_s = min(at_s, result.record["span"]["end_s"])
        assert result.path is not None
        replayed = view_at(RunLog.open(result.path), at_s)
    driver, _ = drive(
        workload, "2x3:v", policy, placement, model=model, checkpoints=checkpoints,
        seed=3, until_s=at_s,
    )  # fmt: skip
    driver.view.now = at_s
    assert state(replayed) == state(driver.view)


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    rows = [("big", 0, 10, 4), ("next", 1, 5, 4), ("small", 2, 50, 1)]
    workload = Workload.from_jobs(
        [{"job_id": n, "submit_s": s, "duration_s": d, "num_gpus": g} for n, s, d, g in rows]
    )
    simulate(workload, "1x4:v100", policy="fifo", out=tmp_path / "run")
    return RunLog.open(tmp_path / "run")


def test_a_job_of_a_run_is_explained_at_any_moment(run: RunLog) -> None:
    assert explain_at(run, "next")[0] == 1.0
    assert explain_at(run, "next")[1].code == "not_enough_gpus"
    assert explain_at(run, "small", 0.0)[1].code == "unsubmitted"
    assert explain_at(run, "small", 3.0)[1].facts["ahead"] == 1
    assert explain_at(run, "small", 15.0)[1].code == "running"
    assert explain_at(run, "big", 12.0)[1].code == "done"


def test_what_cannot_be_asked_says_so(run: RunLog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no job 'bigg'; it has, for instance, big"):
        explain_at(run, "bigg")
    with pytest.raises(UsageError, match="after the end of the run"):
        view_at(run, 1e9)
    run.record["policy"]["spec"] = None
    with pytest.raises(DataError, match=r"policy.spec"):
        Replay(run)


@settings(max_examples=20)
@given(
    rows=ROWS,
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 5),
    at_s=st.floats(0, 80),
    every_s=st.sampled_from([None, 2.0]),
)
def test_so_it_is_where_devices_fail(
    rows: list[tuple[int, int, int, str | None]],
    policy: str,
    seed: int,
    at_s: float,
    every_s: float | None,
) -> None:
    workload = Workload.from_jobs(
        [
            {"job_id": f"j{i}", "submit_s": s, "duration_s": d, "num_gpus": min(g, 3), "vc": vc}
            for i, (s, d, g, vc) in enumerate(rows)
        ]
    )
    failures = (Mtbf(node_mtbf_s=90.0, node_mttr_s=6.0, gpu_mtbf_s=200.0, gpu_mttr_s=4.0),)
    checkpoints = Checkpoints(every_s=every_s)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "policy": policy, "checkpoints": checkpoints, "outages": failures, "seed": seed,
        }  # fmt: skip
        result = simulate(workload, "3x3:v", out=Path(folder) / "run", until_s=90.0, **options)
        at_s = min(at_s, result.record["span"]["end_s"])
        early = simulate(workload, "3x3:v", out=Path(folder) / "early", until_s=at_s, **options)
        assert result.path is not None
        assert early.path is not None
        one, other = Replay(RunLog.open(result.path)), Replay(RunLog.open(early.path))
        view, same = one.until(at_s), other.until(at_s)
    assert state(view) == state(same)
    # The run that stopped there tells how its jobs stood.
    status = dict(zip(early.jobs["job_id"], early.jobs["status"], strict=True))
    told = dict.fromkeys(status, "unsubmitted")
    for job in one.jobs.values():
        told[job.job_id] = ("waiting", "running", "finished")[job.phase]
    assert told == status
    service = dict(zip(early.jobs["job_id"], early.jobs["service_gpu_s"], strict=True))
    for job in one.jobs.values():
        assert job.attained_gpu_s(at_s) == pytest.approx(service[job.job_id])
