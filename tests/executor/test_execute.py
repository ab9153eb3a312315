"""Executing a workload: the same driver and policies on real workers, and the log that is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import tandem
from executor import events as e
from executor.cluster import LocalCluster, cluster_of
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.execute import Executed, Habit, execute
from executor.faults import Fault
from executor.jobspec import JobSpec
from executor.journal import Left, alone, folder_of
from executor.messages import Habits
from executor.recipes import Recipes
from policies import ClusterView, Plan
from policies.contract import Policy
from policies.replay import explain_at
from traces import DataError, Profile, RunLog, UsageError, WorkerMap, Workload, load
from traces.profile import ModelProfile
from traces.profile_file import save

TYPE = "cpu-default"
LANES = [DeviceLane(name=f"lane{i}", gpu_type=TYPE, capability="default") for i in range(2)]
PROFILE = Profile(
    models={
        "dense:width=16": ModelProfile(
            microbatch_s={4: {TYPE: 0.002}}, start_s=0.1, rescale_s=0.05, checkpoint_s=0.01
        )
    },
    origin="measured",
)


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run side by side: what they measure is not looked at."""
    monkeypatch.setenv("TANDEM_LOCK_DIR", str(tmp_path))


def job(name: str, *, submit_s: float = 0.0, steps: int = 40, **more: Any) -> dict[str, Any]:
    return {
        "job_id": name,
        "submit_s": submit_s,
        "num_gpus": 1,
        "num_workers": 2,
        "min_gpus": 1,
        "max_gpus": 2,
        "model": "dense:width=16",
        "batch_size": 4,
        "total_steps": steps,
        **more,
    }


class Squeeze(Policy):
    """Gives the first job all lanes until somebody waits, then one each: it resizes."""

    name = "squeeze"
    resizes = True

    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        for job in view.waiting:
            for other in view.running:
                held = other.allocation
                if held is not None and held.num_gpus == 2 and other not in draft.changes:
                    draft.resize(other, [1])
            draft.resize(job, [1 if view.running else 2])
        return draft


def run(jobs: list[dict[str, Any]], out: Path, policy: Any = "fifo", **more: Any) -> Executed:
    given: dict[str, Any] = {"profile": PROFILE, "out": out, "policy": policy, "seed": 1, **more}
    return execute(Workload.from_jobs(jobs), LANES, **given)


def test_jobs_end_with_the_bits_they_have_alone(tmp_path: Path) -> None:
    jobs = [job("a", steps=150), job("b", submit_s=0.2), job("c", submit_s=0.3)]
    habit = Habit(references=tmp_path / "digests.json")
    done = run(jobs, tmp_path / "run", "easyscale", habit=habit)
    assert done.complete
    log = RunLog.open(tmp_path / "run")
    assert log.record["kind"] == "executed"
    training = log.table("training")
    assert training["same_bits"].tolist() == [True, True, True]
    assert training["steps"].tolist() == [150, 40, 40]
    assert (log.table("jobs")["status"] == "finished").all()
    stays = log.table("allocations")
    assert (stays["begin_s"] >= stays["start_s"]).all()
    assert not folder_of(tmp_path / "run").exists()
    assert not psutil.Process().children(recursive=True)
    # The check can fail: with another digest to compare with, the run does.
    text = (tmp_path / "digests.json").read_text(encoding="utf-8")
    wrong = training["digest"][1]
    (tmp_path / "digests.json").write_text(text.replace(wrong, "0" * len(wrong)), encoding="utf-8")
    with pytest.raises(ExecutorError, match=r"job 'b'.*bits differ"):
        run(jobs, tmp_path / "again", habit=habit)
    assert RunLog.open(tmp_path / "again").record["status"] == "complete"


def test_an_executed_run_is_a_trace(tmp_path: Path) -> None:
    run([job("a"), job("b")], tmp_path / "run", habit=Habit(verify=False))
    save(PROFILE, tmp_path / "profile.json")
    command = ["run", str(tmp_path / "run"), "--cluster", f"1x1:{TYPE}", "--policy", "srtf"]
    command += ["--profile", str(tmp_path / "profile.json"), "--out", str(tmp_path / "what-if")]
    assert tandem.main([*command, "--quiet", "--no-report"]) == 0
    assert len(RunLog.open(tmp_path / "what-if").table("jobs")) == 2


def test_a_workload_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    _, places = cluster_of(LANES)
    for change, found in (
        ({"max_gpus": None, "min_gpus": None}, "max_gpus"),
        ({"total_steps": 1.5}, "part of a step"),
        ({"gpu_type": "h100"}, "no lane of its GPU types"),
        ({"batch_size": None}, "batch_size"),
    ):
        jobs = Workload.from_jobs([job("a") | {"duration_s": 5.0} | change])
        with pytest.raises(DataError, match=found):
            Recipes(jobs, places, 0)
    with pytest.raises(UsageError, match="unknown"):
        Recipes(Workload.from_jobs([job("a", model="resnet", duration_s=5.0)]), places, 0)
    with pytest.raises(DataError, match="fit nowhere"):
        run([job("a", min_gpus=3, max_gpus=4, num_workers=4, num_gpus=4)], tmp_path / "run")
    with pytest.raises(DataError, match="dense:width=32"):
        run([job("a", model="dense:width=32")], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ExecutorError, match="no lanes"):
        cluster_of([])


def test_a_job_of_two_types_has_to_say_that_it_may_mix() -> None:
    mixed = [LANES[0], DeviceLane(name="other", gpu_type="cpu-avx2", capability="avx2")]
    _, places = cluster_of(mixed)
    with pytest.raises(UsageError, match=r"job a: level D1.*mixes_types"):
        Recipes(Workload.from_jobs([job("a", duration_s=5.0)]), places, 0)
    recipes = Recipes(Workload.from_jobs([job("a", duration_s=5.0, mixes_types=True)]), places, 0)
    assert recipes.agreement(0).level.value == "D2"


def test_two_executions_are_not_measured_against_each_other(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom executor.journal import alone\n"
        "with alone(): print('in', flush=True); sys.stdin.read()"
    )
    root = Path(tandem.__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ExecutorError, match="another execution"), alone():
            pass
        other.kill()  # a crash leaves no lock behind
        other.wait()
    with alone():
        pass


def check_whole(run: Path, at_s: float, *, end: str) -> None:
    """A log of an execution that went on at ``at_s`` is one of the whole workload."""
    log = RunLog.open(run)
    (gap,) = log.record["resumptions"]
    assert gap["at_s"] == pytest.approx(at_s)
    assert gap["gap_s"] >= 0
    jobs = log.table("jobs").set_index("job_id")
    original = load(run).table.set_index("job_id")
    assert (jobs["status"] == "finished").all()
    assert log.record["counts"]["finished"] == log.record["counts"]["submitted"] == len(jobs)
    assert jobs["jct_s"].tolist() == pytest.approx((jobs["finish_s"] - jobs["submit_s"]).tolist())
    assert original["submit_s"].tolist() == jobs["submit_s"].tolist()
    events, stays = log.table("events"), log.table("allocations")
    assert events["time_s"].is_monotonic_increasing
    assert ((events["kind"] == end) & (events["time_s"] <= at_s)).any()
    for job_id, row in jobs.iterrows():
        own = stays[stays["job_id"] == job_id].sort_values("start_s")
        held_s = own["end_s"] - own["start_s"]
        assert row["service_gpu_s"] == pytest.approx((held_s * own["gpus"].map(len)).sum())
        assert row["queueing_s"] == pytest.approx(row["jct_s"] - held_s.sum(), abs=1e-6)
        assert row["start_s"] == own["start_s"].min()
        assert row["finish_s"] == own["end_s"].max()
        assert (own["end_s"].to_numpy()[:-1] <= own["start_s"].to_numpy()[1:]).all()
        kinds = events[events["job_id"] == job_id]["kind"].tolist()
        assert kinds.count("submit") == kinds.count("finish") == 1
        assert kinds.count("preempt") == row["preemptions"]
        assert kinds.count("fail") == row["failures"]
    lanes = stays.explode("gpus").sort_values("start_s")
    for _, own in lanes.groupby("gpus"):
        assert (own["end_s"].to_numpy()[:-1] <= own["start_s"].to_numpy()[1:] + 1e-9).all()
    samples = log.table("samples")["time_s"]
    assert samples.is_monotonic_increasing
    assert samples.min() < at_s < samples.max()
    for moment_s in (0.0, at_s, log.record["span"]["end_s"]):
        assert explain_at(log, "a", moment_s)[1].code
    assert tandem.main(["compare", str(run), str(run), "--json"]) == 0


@pytest.mark.slow
def test_an_execution_that_was_killed_goes_on_from_its_journal(tmp_path: Path) -> None:
    """The driver is killed outright; resumed, all jobs end, with the bits they have alone."""
    jobs = [job("a", steps=2000), job("b", submit_s=0.1, steps=60), job("c", submit_s=0.1)]
    Workload.from_jobs(jobs).table.to_parquet(tmp_path / "jobs.parquet")
    save(PROFILE, tmp_path / "profile.json")
    common = ["--profile", str(tmp_path / "profile.json"), "--quiet", "--no-report"]
    common += ["--references", str(tmp_path / "digests.json"), "--checkpoint-every", "50"]
    command = [sys.executable, "-m", "tandem", "execute", str(tmp_path / "jobs.parquet")]
    command += ["--devices", "cpu-defaultx2", "--out", str(tmp_path / "run"), *common]
    with subprocess.Popen(command, cwd=Path(tandem.__file__).parent) as process:
        journal = folder_of(tmp_path / "run") / "journal.jsonl"
        for _ in range(600):
            if journal.exists() and "finished" in journal.read_text(encoding="utf-8"):
                break
            time.sleep(0.2)
            assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]
    left = Left(tmp_path / "run")
    assert left.past.finished
    assert "a" not in left.past.finished
    assert left.step_of("a") >= 50
    assert tandem.main(["execute", "--resume", str(tmp_path / "run"), *common]) == 0
    training = RunLog.open(tmp_path / "run-resumed").table("training")
    assert training["job_id"].tolist() == ["a", "b", "c"]
    assert training["same_bits"].all()
    assert training.set_index("job_id")["resumed"]["a"]
    check_whole(tmp_path / "run-resumed", left.past.time_s, end="fail")


@pytest.mark.slow
def test_ctrl_c_leaves_a_partial_log_and_what_is_needed_to_go_on(tmp_path: Path) -> None:
    Workload.from_jobs([job("a", steps=3000)]).table.to_parquet(tmp_path / "jobs.parquet")
    save(PROFILE, tmp_path / "profile.json")
    common = ["--profile", str(tmp_path / "profile.json"), "--quiet", "--no-report", "--no-verify"]
    command = [sys.executable, "-m", "tandem", "execute", str(tmp_path / "jobs.parquet"), *common]
    command += ["--devices", "cpu-defaultx2", "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=Path(tandem.__file__).parent, stderr=subprocess.PIPE, text=True
    ) as process:
        journal = folder_of(tmp_path / "run") / "journal.jsonl"
        for _ in range(600):
            if journal.exists() and journal.read_text(encoding="utf-8").count("\n") >= 2:
                break
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=90)
    assert process.returncode == tandem.INTERRUPTED, said
    assert "--resume" in said
    assert RunLog.open(tmp_path / "run").partial
    at_s = Left(tmp_path / "run").past.time_s
    assert tandem.main(["execute", "--resume", str(tmp_path / "run"), *common]) == 0
    assert not RunLog.open(tmp_path / "run-resumed").partial
    check_whole(tmp_path / "run-resumed", at_s, end="preempt")


def test_a_worker_that_is_killed_costs_no_bits(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(_: Any, cluster: Any, now_s: float) -> None:
        stay = next(iter(cluster.stays.values()), None)
        if not killed and stay is not None and stay.at >= 20:
            members = cluster.agent.jobs["a"].members
            handle = members[next(iter(members))]
            killed.append(handle.pid)
            os.kill(handle.pid, signal.SIGKILL)

    done = run([job("a", steps=120)], tmp_path / "run", Squeeze(), watch=kill)
    assert done.complete
    assert killed
    training = RunLog.open(tmp_path / "run").table("training")
    assert training["same_bits"].all()
    assert training["recoveries"].tolist() == [1]


def test_a_job_that_fails_for_good_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is over and recorded, its lanes are free again, and the run fails with its name."""
    made = Recipes.spec

    def spec(self: Recipes, rank: int, habits: Habits, *, resume: bool) -> JobSpec:
        usual = made(self, rank, habits, resume=resume)
        fault = Fault(kind="oom", step=5, rank=0, point="micro-step")
        # In the execution alone, not in the run that its bits are compared with.
        return replace(usual, faults=(fault,) * 3) if resume and rank == 1 else usual

    monkeypatch.setattr(Recipes, "spec", spec)
    jobs = [job("a", steps=60), job("b", submit_s=0.1), job("c", submit_s=0.2)]
    Workload.from_jobs(jobs).table.to_parquet(tmp_path / "jobs.parquet")
    save(PROFILE, tmp_path / "profile.json")
    command = ["execute", str(tmp_path / "jobs.parquet"), "--policy", "easyscale", "--quiet"]
    command += ["--devices", "cpu-defaultx2", "--profile", str(tmp_path / "profile.json")]
    assert tandem.main([*command, "--out", str(tmp_path / "run")]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "job 'b'" in said
    assert "MemoryError" in said
    log = RunLog.open(tmp_path / "run")
    assert log.record["status"] == "complete"
    assert "MemoryError" in log.record["failed"]["b"]
    assert log.table("jobs")["status"].tolist() == ["finished", "failed", "finished"]
    training = log.table("training")
    assert training["same_bits"].tolist() == [True, None, True]
    assert training["steps"].tolist() == [60, 5, 40]
    events = log.table("events")
    assert "MemoryError" in events[events["kind"] == "give_up"]["detail"].item()
    stays = log.table("allocations")
    assert stays[stays["job_id"] == "b"]["end_reason"].iloc[-1] == "fail"
    assert explain_at(log, "b", log.record["span"]["end_s"])[1].code == "done"
    assert (tmp_path / "run" / "report.html").exists()
    assert not folder_of(tmp_path / "run").exists()
    # Such a log is still a trace.
    assert len(load(tmp_path / "run")) == 3


class Spoken:
    """An agent that says what it is told to say."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.coming: list[e.Event] = []

    def start(self, spec: str, worker_map: WorkerMap) -> None:
        self.jobs[spec] = SimpleNamespace(over=False)

    def stop(self, job_id: str, *, checkpoint: bool) -> None:
        pass

    def poll(self, timeout_s: float) -> list[e.Event]:
        coming, self.coming = self.coming, []
        return coming


@pytest.mark.parametrize("again", [False, True])
def test_a_job_may_fail_for_good_while_it_is_being_stopped(again: bool) -> None:
    """The driver has it waiting, or started it anew; either way it hears of the failure once."""
    agent: Any = Spoken()
    spec_of: Any = lambda job: job.job_id  # noqa: E731
    cluster = LocalCluster(agent, spec_of, clock=lambda: 0.0)
    heard: list[tuple[int, str]] = []
    driver: Any = SimpleNamespace(job_failed=lambda rank, stay, why: heard.append((rank, why)))
    cluster.attach(driver)
    (row,) = Workload.from_jobs([job("a") | {"duration_s": 1.0}]).jobs()
    state: Any = SimpleNamespace(
        job=row, job_id="a", rank=0, elastic=row.elastic, worker_map=WorkerMap.of([(0, 0)], [2])
    )
    moment: Any = None
    cluster.start(state, moment)
    cluster.stop(state, failed=False)
    if again:
        cluster.start(state, moment)
    agent.coming = [e.Failed(job_id="a", at_s=0.0, step=3, reason="a bad disk")]
    messages = list(cluster.wait(0.0))
    if not again:
        assert not messages
        cluster.start(state, moment)
        messages = list(cluster.wait(0.0))
    for message in messages:
        message.call(moment)
    assert heard == [(0, "a bad disk")]
    assert not cluster.expecting()
