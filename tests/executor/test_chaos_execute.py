"""Executed runs in which something dies at random: complete and right, or resumed and then so.

A worker, all workers of a job, or the process that forks them die while ``execute`` runs. The
driver and the agent are one process, ``tandem execute``: it is killed outright, once or twice, and
what it left is resumed until all jobs have ended. Whatever happens, jobs have the bits they have
alone, and no process of an execution outlives it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import tandem
from executor.execute import Executed, Habit, execute
from executor.journal import folder_of
from tests.executor.test_chaos import Prey, Strike, Striker
from tests.executor.test_execute import LANES, PROFILE, job
from traces import RunLog, Workload
from traces.profile_file import save

POLICIES = ("easyscale", "srtf")
JOBS = [
    job("a", steps=400),
    job("b", steps=120, submit_s=0.2),
    job("c", steps=80, submit_s=0.4, max_gpus=1),
    job("d", steps=50, submit_s=0.8),
]
EVERY = 20  # steps between checkpoints
LONGEST_S = 200.0


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digests of the jobs alone, and how long each policy takes undisturbed."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_LOCK_DIR", str(tmp_path))


def executed(out: Path, policy: str, kept: Path, watch: Any = None) -> Executed:
    habit = Habit(references=kept / "digests.json", checkpoint_every=EVERY)
    jobs = Workload.from_jobs(JOBS)
    return execute(
        jobs, LANES, profile=PROFILE, out=out, policy=policy, seed=1, habit=habit, watch=watch
    )


def span_s(policy: str, kept: Path) -> float:
    """Seconds that the jobs take under a policy, undisturbed."""
    out = kept / policy
    if not out.exists():
        executed(out, policy, kept)
    return float(RunLog.open(out).record["wall_s"])


def assert_right(run: Path) -> None:
    """All jobs of a run ended, with the bits they have alone."""
    log = RunLog.open(run)
    assert not log.partial
    assert (log.table("jobs")["status"] == "finished").all()
    training = log.table("training")
    assert training["job_id"].tolist() == [each["job_id"] for each in JOBS]
    assert training["steps"].tolist() == [each["total_steps"] for each in JOBS]
    assert training["same_bits"].all()


def deaths_within(out: Path, policy: str, kept: Path, seed: int) -> list[str]:
    """Execute while one to three of workers, jobs and zygotes die; return who, and when."""
    rng = random.Random(seed)
    usual_s = span_s(policy, kept)
    strikes = [
        Strike(
            at_s=rng.uniform(0, usual_s),
            whom=rng.choice(["worker", "worker", "all", "all", "zygote"]),
            lot=rng.random(),
        )
        for _ in range(rng.randint(1, 3))
    ]
    prey = Prey()
    striker = Striker(strikes, prey)

    def watch(_driver: Any, cluster: Any, _now_s: float) -> None:
        prey.see(cluster.agent)
        if striker.ident is None:
            striker.start()

    try:
        assert executed(out, policy, kept, watch).complete
    finally:
        striker.end()
    return striker.done


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(10))
def test_workers_jobs_and_zygotes_die(tmp_path: Path, kept: Path, policy: str, seed: int) -> None:
    deaths_within(tmp_path / "run", policy, kept, seed)
    assert_right(tmp_path / "run")
    assert not psutil.Process().children(recursive=True)
    assert not folder_of(tmp_path / "run").exists()


def of_this(tmp_path: Path) -> Iterator[psutil.Process]:
    """All processes that an execution of this test started, whoever is their parent now."""
    mark = f"TANDEM_LOCK_DIR={tmp_path}".encode()
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark in environ and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (OSError, psutil.NoSuchProcess):
            continue


def nobody_within(tmp_path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while left := list(of_this(tmp_path)):
        if time.monotonic() > end:
            return not left
        time.sleep(0.05)
    return True


class Executions:
    """``tandem execute`` as processes, each resuming what the one before left."""

    def __init__(self, tmp_path: Path, kept: Path, policy: str) -> None:
        self.tmp_path, self.runs = tmp_path, [tmp_path / "run"]
        Workload.from_jobs(JOBS).table.to_parquet(tmp_path / "jobs.parquet")
        save(PROFILE, tmp_path / "profile.json")
        self._common = ["--profile", str(tmp_path / "profile.json"), "--quiet", "--no-report"]
        self._common += ["--references", str(kept / "digests.json")]
        self._common += ["--checkpoint-every", str(EVERY)]
        self._new = [str(tmp_path / "jobs.parquet"), "--policy", policy, "--seed", "1"]
        self._new += ["--devices", "cpu-defaultx2", "--out", str(self.runs[0])]

    def left(self) -> Path | None:
        """The last run that left something to go on with."""
        return next((run for run in reversed(self.runs) if folder_of(run).exists()), None)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tandem", "execute", *self._common]
        left = self.left()
        if left is None:
            command += self._new
        else:
            self.runs.append(left.with_name(f"{left.name}-resumed"))
            command += ["--resume", str(left)]
        environ = os.environ | {"PYTHONPATH": str(Path(tandem.__file__).parent)}
        return subprocess.Popen(command, cwd=self.tmp_path, env=environ, stderr=subprocess.PIPE)

    def killed(self, rng: random.Random, usual_s: float) -> bool:
        """Kill one at a random instant; False if it had ended by itself.

        A quarter is killed before time begins: while it is read in, or workers are started.
        """
        early = rng.random() < 0.25
        after_s = rng.uniform(0.0, 4.0 if early else usual_s)
        with self.start() as process:
            journal = folder_of(self.runs[-1]) / "journal.jsonl"
            while not early and not journal.exists() and process.poll() is None:
                time.sleep(0.01)
            try:
                _, said = process.communicate(timeout=after_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                assert nobody_within(self.tmp_path, 20), list(of_this(self.tmp_path))
                # If nothing is left it had just ended, or time had not begun.
                return self.left() is not None or not self.runs[-1].exists()
        assert process.returncode == 0, said.decode()
        return False

    def to_the_end(self) -> None:
        """Let one end by itself."""
        with self.start() as process:
            _, said = process.communicate(timeout=LONGEST_S)
        assert process.returncode == 0, said.decode()


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(20, 30))
def test_the_driver_dies(tmp_path: Path, kept: Path, policy: str, seed: int) -> None:
    """Once or twice; killed outright, with whatever it was doing half done."""
    rng = random.Random(seed)
    usual_s = span_s(policy, kept)
    runs = Executions(tmp_path, kept, policy)
    if all(runs.killed(rng, usual_s) for _ in range(rng.randint(1, 2))):
        runs.to_the_end()
    assert_right(runs.runs[-1])
    assert not list(tmp_path.glob("*.work*"))
    assert nobody_within(tmp_path, 10)
