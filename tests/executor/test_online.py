"""An online service on real lanes: servers come and go with the demand, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

import tandem
from executor import online as online_module
from executor.agent import Agent
from executor.asking import Loop, Window
from executor.cluster import cluster_of
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.execute import execute
from executor.journal import folder_of
from executor.online import NAME, Online, Serving
from models.errors import ModelError
from policies.services import Diurnal, Service
from tests.executorcases import LANES as AGENT_LANES
from traces import Profile, RunLog, UsageError, Workload
from traces.profile import ModelProfile
from traces.profile_file import save

TYPE = "cpu-default"
LANES = [DeviceLane(name=f"lane{i}", gpu_type=TYPE, capability="default") for i in range(2)]
_, PLACES = cluster_of(LANES)
ONE, OTHER = (0, 0), (0, 1)
PROFILE = Profile(
    models={
        "dense:width=16": ModelProfile(
            microbatch_s={4: {TYPE: 0.002}}, start_s=0.1, rescale_s=0.05, checkpoint_s=0.01
        )
    },
    origin="measured",
)


class Lanes:
    """Lanes that training leaves when the test says so."""

    def __init__(self) -> None:
        self.free: set[tuple[int, int]] = set()
        self.held: list[tuple[int, int]] = []

    def hold(self, gpu: tuple[int, int], name: str) -> bool:
        if gpu not in self.held:
            self.held.append(gpu)
        return gpu in self.free

    def release(self, gpu: tuple[int, int], name: str) -> None:
        if gpu in self.held:
            self.held.remove(gpu)


ANSWERS = """
import json, signal, sys, time
json.loads(sys.stdin.readline())
print(json.dumps({"url": "http://here"}), flush=True)
sys.stdin.read()
"""
ASKS = """
import json, sys
for line in sys.stdin:
    order = json.loads(line)
    done = [0.01] * 3 if order["urls"] else []
    print(json.dumps({"at_s": 7.5, "requests": 3, "latencies_s": done}), flush=True)
"""


def scripted(answers: str) -> Callable[..., subprocess.Popen[bytes]]:
    """Start small stand-ins for the server and the load generator."""

    def child(
        module: str, errors: IO[bytes], environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        code = ASKS if module == "executor.asking" else answers
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    return child


def serving(**more: Any) -> Serving:
    service = Service(demand=Diurnal(low=0, high=1, period_s=30.0), gpu_type=TYPE)
    return Serving(service=service, rate=3.0, **more)


def until(done: Callable[[], bool], step: Callable[[], None]) -> None:
    for _ in range(400):
        step()
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("it does not come to that")


def test_a_server_comes_when_training_has_left_and_goes_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_module, "_child", scripted(ANSWERS))
    lanes = Lanes()
    freed: list[tuple[int, int]] = []
    with Online(serving(), lanes, PLACES, tmp_path) as service:
        service.freed = freed.append

        def look(held: dict[tuple[int, int], bool], gpus: int) -> None:
            service.look(8.0, held, gpus, origin_s=0.0)

        look({OTHER: True}, 1)
        assert lanes.held == [OTHER]  # it is in line, and training is still there
        assert not freed
        assert not list(service.pids())
        rows = service.tally.rows
        until(lambda: bool(rows), lambda: look({OTHER: True}, 1))
        lanes.free.add(OTHER)
        until(lambda: bool(rows and rows[-1]["answered"]), lambda: look({OTHER: True}, 1))
        assert freed == [OTHER]
        assert rows[0] | {"p50_ms": 0, "p99_ms": 0} == {
            "time_s": 7.5,
            "demand_gpus": 1,
            "lent_gpus": 1,
            "servers": 0,
            "requests": 3,
            "answered": 0,
            "refused": 0,
            "failed": 0,
            "unserved": 0,
            "p50_ms": 0,
            "p99_ms": 0,
        }
        assert rows[-1]["servers"] == 1
        assert rows[-1]["p99_ms"] == 10.0
        ((place, pid),) = service.pids()
        assert place == OTHER
        look({OTHER: False}, 0)  # not needed at the moment: it stays, and nobody asks it
        assert lanes.held == [OTHER]
        look({}, 0)
        assert lanes.held == [OTHER]  # given back only once the process has ended
        until(lambda: not lanes.held, lambda: look({}, 0))
        assert not psutil.pid_exists(pid)
    assert service.tally.total()["answered"] == 3
    assert not psutil.Process().children(recursive=True)


def test_a_server_that_cannot_serve_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_module, "_child", scripted("raise SystemExit('no such model')"))
    lanes = Lanes()
    lanes.free.add(ONE)
    with (
        Online(serving(), lanes, PLACES, tmp_path) as service,
        pytest.raises(ExecutorError, match=r"lane lane0.*code 1.*no such model"),
    ):
        until(lambda: False, lambda: service.look(1.0, {ONE: True}, 1, origin_s=0.0))
    assert not lanes.held
    assert not psutil.Process().children(recursive=True)


def test_a_lane_can_be_held_for_what_is_no_job() -> None:
    with Agent(AGENT_LANES, threads=True) as agent:
        assert agent.hold((0, 0), NAME)
        assert not agent.hold((0, 0), "another")
        agent.release((0, 0), NAME)
        assert agent.hold((0, 0), "another")
        agent.release((0, 0), NAME)  # it has none
        assert agent.hold((0, 0), "another")


def test_requests_are_due_at_a_rate_whether_or_not_somebody_answers() -> None:
    now = [100.0]
    sent: list[tuple[str, int, float]] = []
    window = Window()
    loop = Loop(window, lambda *one: sent.append(one), lambda: now[0])
    assert loop.turn() > 0  # nothing is due before there is an order
    loop.order(4.0, ["http://x", "http://y"])
    assert loop.turn() == pytest.approx(0.25)
    now[0] += 1.0
    loop.turn()
    assert [(url, due_s) for url, _, due_s in sent] == [
        ("http://x", 100.25),
        ("http://y", 100.5),
        ("http://x", 100.75),
        ("http://y", 101.0),
    ]
    loop.order(4.0, [])  # the same rate, and nobody there
    now[0] += 0.5
    loop.turn()
    assert window.take() == {"requests": 6, "unserved": 2, "latencies_s": []}
    loop.order(0.0, ["http://x"])
    now[0] += 10.0
    loop.turn()
    assert window.take() == {"latencies_s": []}


def row(name: str = "a", submit_s: float = 0.0, steps: int = 4000) -> dict[str, Any]:
    return {
        "job_id": name,
        "submit_s": submit_s,
        "num_gpus": 1,
        "num_workers": 2,
        "min_gpus": 0,
        "max_gpus": 2,
        "model": "dense:width=16",
        "batch_size": 4,
        "total_steps": steps,
        "priority": "opportunistic",
    }


def command(tmp_path: Path, *more: str, steps: int = 4000) -> list[str]:
    jobs = Workload.from_jobs([row("a", steps=steps), row("b", 0.5, steps=steps)])
    jobs.table.to_parquet(tmp_path / "jobs.parquet")
    save(PROFILE, tmp_path / "profile.json")
    return [
        *("execute", str(tmp_path / "jobs.parquet"), "--policy", "easyscale", "--quiet"),
        *("--devices", "cpu-defaultx2", "--profile", str(tmp_path / "profile.json")),
        *("--out", str(tmp_path / "run"), "--no-report", *more),
    ]


DEMAND = "diurnal:low=0,high=2,period_s=12,peak_s=4,step_s=1"


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_LOCK_DIR", str(tmp_path))


def test_what_cannot_be_served_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Workload.from_jobs([row() | {"duration_s": 1.0}])

    def refused(demand: Diurnal, gpu_type: str, folder: Path | None = None) -> str:
        service = Service(demand=demand, gpu_type=gpu_type)
        asked = Serving(service=service, folder=folder)
        with pytest.raises((UsageError, ModelError)) as error:
            execute(jobs, LANES, profile=PROFILE, out=tmp_path / "run", serving=asked)
        assert not (tmp_path / "run").exists()
        assert not folder_of(tmp_path / "run").exists()
        return str(error.value)

    one = Diurnal(low=0, high=1)
    assert "needs 3 cpu-default" in refused(Diurnal(low=0, high=3), TYPE)
    assert "needs GPUs of type h100" in refused(one, "h100")
    assert "published versions" in refused(one, TYPE, tmp_path / "nothing")
    with pytest.raises(UsageError, match="requests per second"):
        Serving(service=Service(demand=one, gpu_type=TYPE), rate=-3.0)
    assert tandem.main(command(tmp_path, "--serving-rate", "3")) == 2
    assert "--serving-rate: needs --serving" in capsys.readouterr().err
    monkeypatch.setattr(online_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"tandem-lab\[serve\]"):
        Serving(service=Service(demand=one, gpu_type=TYPE))
    assert not psutil.Process().children(recursive=True)


@pytest.mark.slow
def test_training_gives_way_to_a_real_service_and_comes_back(tmp_path: Path) -> None:
    """Both lanes go to the service and come back; no bit of a job changes, no process is left."""
    more = ["--serving", DEMAND, "--scale-in", "5", "--refill", "1"]
    assert tandem.main(command(tmp_path, *more, steps=600)) == 0
    assert not psutil.Process().children(recursive=True)
    log = RunLog.open(tmp_path / "run")
    assert log.table("training")["same_bits"].tolist() == [True, True]
    (service,) = log.record["services"]
    assert service["demand"] == DEMAND
    jobs = log.table("jobs")
    assert jobs["resizes"].sum() + jobs["preemptions"].sum() > 0
    loans = log.table("loans")
    assert (loans["ready_s"] >= loans["asked_s"]).all()
    assert set(loans["source"]) & {"reclaimed"}
    lent = log.table("events")
    kinds = lent["kind"].tolist()
    assert "device_lent" in kinds
    assert "device_given_back" in kinds
    # No lane has a job while the service has it.
    for _, loan in loans.iterrows():
        for _, stay in log.table("allocations").iterrows():
            if loan["gpu"] in stay["gpus"]:
                assert stay["end_s"] <= loan["asked_s"] or stay["start_s"] >= loan["end_s"]
    seconds = log.table("serving")
    assert seconds["answered"].sum() > 20
    assert seconds["failed"].sum() == 0
    assert (seconds["requests"] <= 10 * 2 + 3).all()
    quiet = seconds[seconds["demand_gpus"].rolling(3, min_periods=1).max() == 0]
    assert quiet["requests"].sum() == 0
    served = seconds[seconds["answered"] > 0]
    assert (served["p99_ms"] >= served["p50_ms"]).all()
    total = log.record["serving"]
    assert total["requests"] == seconds["requests"].sum()
    assert total["p50_ms"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_server_and_load_end_with_the_execution(tmp_path: Path, number: signal.Signals) -> None:
    more = ["--serving", "diurnal:low=1,high=1", "--no-verify"]
    whole = [sys.executable, "-m", "tandem", *command(tmp_path, *more, steps=100_000)]
    with subprocess.Popen(
        whole, cwd=Path(tandem.__file__).parent, stderr=subprocess.PIPE, text=True
    ) as process:
        journal = folder_of(tmp_path / "run") / "journal.jsonl"
        for _ in range(600):
            children = psutil.Process(process.pid).children(recursive=True)
            asking = [c for c in children if "executor.asking" in _words(c)]
            begun = journal.exists() and journal.read_text(encoding="utf-8").count("\n") >= 2
            if asking and begun:
                break
            time.sleep(0.2)
            assert process.poll() is None
        assert [c for c in children if "executor.answering" in _words(c)]
        if number == signal.SIGINT:  # the log is to have answers, and only it knows of them
            time.sleep(8.0)
        process.send_signal(number)
        _, said = process.communicate(timeout=90)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    if number == signal.SIGINT:
        assert process.returncode == tandem.INTERRUPTED, said
        log = RunLog.open(tmp_path / "run")
        assert log.partial
        assert log.table("serving")["answered"].sum() > 0
        settings = json.loads((folder_of(tmp_path / "run") / "execution.json").read_text())
        assert Serving.of(settings["services"]) is not None


@pytest.mark.slow
def test_a_killed_execution_with_a_service_is_resumed_to_its_end(tmp_path: Path) -> None:
    """Training and service go on; the log is of the whole, and no bit of a job has changed."""
    more = ["--serving", DEMAND, "--scale-in", "5", "--refill", "1", "--checkpoint-every", "50"]
    whole = [sys.executable, "-m", "tandem", *command(tmp_path, *more, steps=3000)]
    with subprocess.Popen(
        whole, cwd=Path(tandem.__file__).parent, stderr=subprocess.DEVNULL
    ) as process:
        journal = folder_of(tmp_path / "run") / "journal.jsonl"
        for _ in range(600):
            if journal.exists() and '"device": [' in journal.read_text(encoding="utf-8"):
                break  # a lane is lent
            time.sleep(0.2)
            assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(2.0)  # some of what is going on is lost
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    out = tmp_path / "whole"
    resume = ["execute", "--resume", str(tmp_path / "run"), "--quiet", "--no-report"]
    resume += ["--profile", str(tmp_path / "profile.json"), "--out", str(out)]
    assert tandem.main(resume) == 0
    assert not psutil.Process().children(recursive=True)
    assert not list(tmp_path.glob(".*.tmp"))
    log = RunLog.open(out)
    assert not log.partial
    assert len(log.record["resumptions"]) == 1
    assert log.table("training")["same_bits"].tolist() == [True, True]
    assert (log.table("jobs")["status"] == "finished").all()
    seconds = log.table("serving")
    assert seconds["answered"].sum() > 0
    (service,) = log.record["services"]
    assert service["demand"] == DEMAND


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_service_is_made_again_from_what_is_said_of_it(tmp_path: Path) -> None:
    service = Service(
        demand=Diurnal(low=1, high=2), gpu_type=TYPE, linger_s=3.0, text="diurnal:low=1,high=2"
    )
    given = Serving(service=service, folder=tmp_path, rate=4.0)
    again = Serving.of([json.loads(json.dumps(given.describe()))])
    assert again is not None
    assert again.describe() == given.describe()
    assert Serving.of([]) is None
    with pytest.raises(UsageError, match="object"):
        Serving.of([serving().describe()])
