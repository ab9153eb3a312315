"""Real worker processes are killed or stopped at random instants: the bits of an undisturbed run.

Scripted faults (``test_faults.py``) happen where the engine asks for them. Here a thread of its
own sends signals by process id, at instants drawn over the run, whatever agent and workers are
doing: a start, a step, a rescale, or the recovery from the signal before. Which instruction is hit
depends on the machine, so a seed repeats the shape of a run and not its interleaving.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from executor import events as e
from executor.agent import Agent
from executor.jobspec import JobSpec
from executor.pool import WorkerPool
from executor.shards import Sharding
from tests.executor.test_processes import alive
from tests.executor.test_schedules import random_schedule
from tests.executorcases import LANES, Digests, contradiction, digests_of, job, on, trained
from traces.workermap import WorkerMap

STEPS = {"mlp": 16, "longer": 8, "rows": 12}
DEADLINE_S = 0.4
LONGEST_S = 100.0

Known = dict[tuple[str, int], tuple[Digests, float]]
"""By task and logical workers: what :func:`undisturbed` found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Something bad at an instant, in seconds from the start.

    ``whom``: a worker, ``all`` of one job, or the ``zygote`` that forks them. ``lot``: which one,
    as a share of their number. ``for_s``: they are stopped for so long; None: killed.
    """

    at_s: float
    whom: str = "worker"
    lot: float = 0.0
    for_s: float | None = None


@dataclass(slots=True)
class Prey:
    """Processes, those of workers by job, as the agent's thread saw them last."""

    jobs: list[list[int]] = field(default_factory=list)
    zygotes: list[int] = field(default_factory=list)

    def see(self, agent: Agent) -> None:
        """Look who is there now."""
        found = [
            [pid for handle in job.handles if (pid := handle.pid) is not None]
            for job in agent.jobs.values()
        ]
        self.jobs = [pids for pids in found if pids]
        self.zygotes = [z.process.pid for z in agent._pool._zygotes.values() if z.alive]


class Striker(threading.Thread):
    """Sends the signals. ``done`` says what was struck, and when."""

    def __init__(self, strikes: Sequence[Strike], prey: Prey) -> None:
        super().__init__(daemon=True)
        self.done: list[str] = []
        self._strikes = sorted(strikes, key=lambda strike: strike.at_s)
        self._prey = prey
        self._over = threading.Event()
        self._stopped: dict[int, float] = {}

    def run(self) -> None:
        began = time.monotonic()
        for strike in self._strikes:
            while (left_s := began + strike.at_s - time.monotonic()) > 0:
                self._wake()
                if self._over.wait(min(left_s, 0.02)):
                    break
            while not (pids := self._struck(strike)) and not self._over.wait(0.001):
                pass
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if strike.for_s is None else signal.SIGSTOP)
                if strike.for_s is not None:
                    self._stopped[pid] = time.monotonic() + strike.for_s
            if pids:
                self.done.append(f"{time.monotonic() - began:.3f} s: {strike}")
        while self._stopped and not self._over.wait(0.02):
            self._wake()
        self._wake(everybody=True)

    def end(self) -> None:
        """Let everybody who is stopped go on, and send nothing more."""
        self._over.set()
        if self.ident is not None:  # else what ended the test came before it began
            self.join()

    def _struck(self, strike: Strike) -> list[int]:
        jobs = list(self._prey.jobs)
        if strike.whom == "zygote":
            return list(self._prey.zygotes)
        groups = jobs if strike.whom == "all" else [[pid] for pids in jobs for pid in pids]
        return groups[int(strike.lot * len(groups))] if groups else []

    def _wake(self, *, everybody: bool = False) -> None:
        for pid, until_s in list(self._stopped.items()):
            if everybody or time.monotonic() >= until_s:
                del self._stopped[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def real(processes: WorkerPool) -> Iterator[Agent]:
    with Agent(LANES, pool=processes) as agent:
        yield agent


@pytest.fixture(scope="module")
def known() -> Known:
    return {}


def undisturbed(agent: Agent, known: Known, name: str, workers: int) -> tuple[Digests, float]:
    """Digests by step with whole tables on one device, and the seconds that two devices take."""
    if (name, workers) not in known:
        spec = job(name, workers, STEPS[name])
        expected = digests_of(trained(agent, spec, [(spec.steps, on(workers))]))
        began = time.monotonic()
        trained(agent, replace(spec, job_id="two"), [(spec.steps, on(1, workers - 1))])
        known[name, workers] = expected, time.monotonic() - began
    return known[name, workers]


def battered(
    agent: Agent,
    spec: JobSpec,
    schedule: Sequence[tuple[int, WorkerMap]],
    strikes: Sequence[Strike],
) -> tuple[list[e.Event], list[str]]:
    """Train through the maps, each commanded while the job runs; return events and strikes."""
    prey = Prey()
    striker = Striker(strikes, prey)
    (until, first), *rest = schedule
    seen: list[e.Event] = []
    agent.start(spec, first)
    striker.start()
    job, end = agent.jobs[spec.job_id], time.monotonic() + LONGEST_S
    try:
        while not job.over:
            assert time.monotonic() < end, (striker.done, seen[-3:])
            events = agent.poll(0.01)
            seen += events
            assert not [event for event in events if isinstance(event, e.Failed)], striker.done
            if rest and job.step >= until and not job.over:
                (until, following), *rest = rest
                agent.rescale(spec.job_id, following)
            prey.see(agent)
    finally:
        striker.end()
    return seen + agent.poll(0.0), striker.done


def some_strikes(rng: random.Random, span_s: float, kinds: Sequence[str]) -> list[Strike]:
    """One to three, from before the first worker is there to after the usual end."""
    strikes: list[Strike] = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(kinds)
        strikes.append(
            Strike(
                at_s=rng.uniform(0.0, (1.2 if strikes else 0.7) * span_s),
                whom={"zygote": "zygote", "kill all": "all", "stop all": "all"}.get(kind, "worker"),
                lot=rng.random(),
                # Shorter than the deadline, about as long, longer.
                for_s=rng.choice([0.1, 1.4, 3.0]) if kind.startswith("stop") else None,
            )
        )
    return strikes


def held_against(
    agent: Agent,
    known: Known,
    name: str,
    seed: int,
    kinds: Sequence[str],
    *,
    folder: Path | None = None,
    sharding: Sharding | None = None,
) -> int:
    """One run with random strikes; return how many there were."""
    rng = random.Random(seed)
    workers = rng.randint(2, 5)
    expected, span_s = undisturbed(agent, known, name, workers)
    steps = STEPS[name]
    habits: dict[str, Any] = {"folder": str(folder), "checkpoint_every": 3} if folder else {}
    if any(kind.startswith("stop") for kind in kinds):
        habits["deadline_s"] = DEADLINE_S
    spec = replace(job(name, workers, steps, **habits), sharding=sharding)
    schedule = random_schedule(rng, workers, steps)
    strikes = some_strikes(rng, span_s, kinds)
    events, struck = battered(agent, spec, schedule, strikes)
    told = f"seed {seed}: {schedule}; {struck}"
    assert contradiction(events, expected) is None, told
    # Each step is told of once, in order: none is lost, none counts twice.
    progress = [event.step for event in events if isinstance(event, e.Progress)]
    assert progress == list(range(1, steps + 1)), told
    return len(struck)


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_instants(real: Agent, known: Known, seed: int) -> None:
    held_against(real, known, "mlp", seed, ["kill"])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 200, 25))
def test_a_hundred_runs_with_kills(real: Agent, known: Known, first: int) -> None:
    struck = [held_against(real, known, "mlp", s, ["kill"]) for s in range(first, first + 25)]
    assert sum(struck) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 240, 10))
@pytest.mark.parametrize("name", ["longer", "rows"])
@pytest.mark.parametrize("shards", ["whole", "mirrored", "single"])
def test_kills_with_tables(
    real: Agent,
    known: Known,
    tmp_path: Path,
    name: str,
    shards: str,
    first: int,
) -> None:
    sharding = None if shards == "whole" else Sharding(mirrored=shards == "mirrored")
    for seed in range(first, first + 10):
        folder = None if seed % 2 else tmp_path / f"{seed}"
        held_against(real, known, name, seed, ["kill"], folder=folder, sharding=sharding)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(300, 340, 10))
@pytest.mark.parametrize("name", ["mlp", "rows"])
def test_everything_at_once(
    real: Agent,
    known: Known,
    tmp_path: Path,
    name: str,
    first: int,
) -> None:
    """All workers die, or the process that forks them; or some, or all, stand still for a while."""
    kinds = ["kill", "kill all", "zygote", "stop", "stop all"]
    for seed in range(first, first + 10):
        folder = None if seed % 2 else tmp_path / f"{seed}"
        sharding = Sharding(mirrored=bool(seed % 3)) if name == "rows" and seed % 4 else None
        held_against(real, known, name, seed, kinds, folder=folder, sharding=sharding)


def test_nobody_is_left(real: Agent) -> None:
    """Workers that were taken for hung or dead are gone, and not only forgotten."""
    held = [pid for handle in real._pool._all.values() if (pid := handle.pid) is not None]
    zygotes = [z.process.pid for z in real._pool._zygotes.values() if z.alive]
    below = [pid for zygote in zygotes for pid in children_of(zygote)]
    assert set(below) == set(alive(held))


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return alive(map(int, text.split()))
