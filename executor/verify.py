"""Does a task keep its bits? A reference run, and a battery of random schedules held against it.

The reference has all logical workers on one device and is never disturbed. A schedule is drawn from
a seed: worker maps, moves of single workers, stops with a checkpoint from which the job resumes on
other devices, and kills at named points of a step. Digests of every parameter, moment, table column
and context must be the reference's at every step that a device told of, and the digest of
everything at the end. A difference is reported as the first step, and there the first tensor by
name, that differs. The sparse tables of the schedules may be sharded; those of the reference are
whole, so sharded tables are held against whole ones.

Leaves out: which operator is to blame; ``tandem devices --compare`` says where lanes differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from executor import events as e
from executor.agent import Agent, moved
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.faults import Fault
from executor.hashing import combined
from executor.jobspec import JobSpec
from executor.levels import Level, agree
from executor.messages import Habits
from executor.pool import Place
from executor.shards import Sharding
from executor.task import TaskSpec
from traces.workermap import WorkerMap

KINDS = ("rescale", "migrate", "resume", "kill")
_KILLED_AT = ("micro-step", "backward", "exchange", "fold", "apply", "applied")
_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """What is verified: a task on some lanes, for so many steps and schedules.

    ``kinds``: which of ``KINDS`` a schedule may have. ``level``: the determinism level the lanes
    agree on. ``sharding``: of the schedules' tables, None: whole. ``reduction``: the order of
    summation. Raises ExecutorError for numbers or kinds out of range.
    """

    task: TaskSpec
    num_workers: int
    lanes: tuple[DeviceLane, ...]
    steps: int = 10
    schedules: int = 10
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    level: Level = Level.D1
    sharding: Sharding | None = None
    reduction: str = "tree"

    def __post_init__(self) -> None:
        for name, least in (("num_workers", 1), ("steps", 2), ("schedules", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ExecutorError(
                    "bad number",
                    where=name,
                    value=getattr(self, name),
                    expected=f"{least} or more",
                )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ExecutorError(
                "unknown kind of disturbance", value=self.kinds, expected=", ".join(KINDS)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What is done when ``step`` steps are done (a kill: in the next step), and the map then."""

    step: int
    kind: str
    worker_map: WorkerMap
    fault: Fault | None = None

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.step}: kill rank {self.fault.rank} at {self.fault.point}"
        return f"{self.step}: {self.kind} to {self.worker_map}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One schedule: what was done, and the first (step, tensor) that differs, if any.

    ``compared``: digests that were held against the reference. ``rescale_s``: seconds from each
    command to the first step after it; ``recovery_s``: from each break.
    """

    number: int
    acts: tuple[str, ...]
    difference: tuple[int, str] | None
    compared: int
    rescale_s: tuple[float, ...]
    recovery_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All schedules, and the digest of everything at the end of the reference."""

    digest: str
    outcomes: tuple[Outcome, ...]

    @property
    def differing(self) -> tuple[Outcome, ...]:
        """The schedules whose bits differ from the reference."""
        return tuple(outcome for outcome in self.outcomes if outcome.difference is not None)


class Collected:
    """Digests by step and tensor of one run, from the events of its devices."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, str]] = {}
        self.end: str | None = None
        self.told = 0
        self.disagreement: tuple[int, str] | None = None

    def take(self, events: Iterable[e.Event]) -> None:
        """Take digests in; devices that tell of one step must agree on what they share."""
        for event in events:
            if isinstance(event, e.Finished):
                self.end = event.digest
            if not isinstance(event, e.Digested):
                continue
            together = self.by_step.setdefault(event.step, {})
            for name, value in sorted(event.digests.items()):
                self.told += 1
                if together.setdefault(name, value) != value and self.disagreement is None:
                    self.disagreement = (event.step, name)

    def difference(self, reference: Mapping[int, Mapping[str, str]]) -> tuple[int, str] | None:
        """Return the first (step, tensor) that is not the reference's."""
        for step, told in sorted(self.by_step.items()):
            for name, value in sorted(told.items()):
                if reference.get(step, {}).get(name) != value:
                    return step, name
        if self.disagreement is not None:
            return self.disagreement
        last = max(reference)
        if self.end != combined(reference[last]):
            return last, "the digest of everything"
        return None


def verify(
    battery: Battery,
    *,
    threads: bool = False,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Verdict:
    """Run the reference and all schedules; ``on_outcome`` is called after each.

    ``threads``: workers are threads of this process, and all lanes then have its kernels. Raises
    ExecutorError if a job fails or has no tables to shard, UsageError if the lanes cannot agree on
    the level.
    """
    agreement = None if threads else agree(battery.level, battery.lanes)
    lanes = {(0, number): lane for number, lane in enumerate(battery.lanes)}
    rng = np.random.default_rng(battery.seed)
    with Agent(lanes, threads=threads) as agent, tempfile.TemporaryDirectory() as folder:
        spec = JobSpec(
            job_id="verify-bits",
            task=battery.task,
            num_workers=battery.num_workers,
            steps=battery.steps,
            habits=Habits(digest_every=1, folder=folder),
            agreement=agreement,
            reduction=battery.reduction,
        )
        whole = WorkerMap.of([(0, 0)], [battery.num_workers])
        reference = Collected()
        agent.start(spec, whole)
        reference.take(agent.settle(spec.job_id))
        assert reference.end is not None
        spec = _sharded(battery, spec, reference)
        outcomes = []
        for number in range(battery.schedules):
            acts = schedule(battery, rng)
            own = Path(folder) / f"{number}"
            outcome = _held_against(agent, spec, acts, own, number, reference)
            outcomes.append(outcome)
            if on_outcome is not None:
                on_outcome(outcome)
    return Verdict(digest=reference.end, outcomes=tuple(outcomes))


def _sharded(battery: Battery, spec: JobSpec, reference: Collected) -> JobSpec:
    """The job of the schedules, once the reference has shown what state there is."""
    last = reference.by_step[battery.steps]
    if battery.sharding is not None and not any(name.startswith("table/") for name in last):
        raise ExecutorError(
            "the task has no sparse tables to shard",
            where=battery.task.factory,
            expected="a task with tables, or tables that are not sharded",
        )
    return replace(spec, sharding=battery.sharding)


def schedule(battery: Battery, rng: np.random.Generator) -> list[Act]:
    """Draw a schedule: a first map, then an act at some of the steps, in order."""
    at = _random_map(battery, rng)
    acts = [Act(step=0, kind="start", worker_map=at)]
    number = int(rng.integers(1, min(5, battery.steps)))
    for step in sorted(rng.choice(np.arange(1, battery.steps), number, replace=False).tolist()):
        kind = str(rng.choice(battery.kinds))
        fault = None
        if kind == "kill":
            fault = Fault(
                kind="kill",
                step=step,
                rank=int(rng.integers(battery.num_workers)),
                point=str(rng.choice(_KILLED_AT)),
            )
        elif kind == "migrate":
            at = _random_move(battery, at, rng)
        else:
            at = _random_map(battery, rng)
        acts.append(Act(step=step, kind=kind, worker_map=at, fault=fault))
    return acts


def _random_map(battery: Battery, rng: np.random.Generator) -> WorkerMap:
    most = min(len(battery.lanes), battery.num_workers)
    devices = int(rng.integers(1, most + 1))
    cuts = sorted(rng.choice(np.arange(1, battery.num_workers), devices - 1, replace=False))
    ends = [0, *map(int, cuts), battery.num_workers]
    order = rng.permutation(len(battery.lanes))[:devices].tolist()
    counts = [ends[i + 1] - ends[i] for i in range(devices)]
    return WorkerMap.of([(0, device) for device in order], counts)


def _random_move(battery: Battery, at: WorkerMap, rng: np.random.Generator) -> WorkerMap:
    """Move one worker where that leaves contiguous blocks; the same map if nothing was found."""
    for _ in range(_TRIES):
        rank = int(rng.integers(battery.num_workers))
        place: Place = (0, int(rng.integers(len(battery.lanes))))
        try:
            return moved(at, rank, place)
        except ExecutorError:
            continue
    return at


def _held_against(
    agent: Agent,
    spec: JobSpec,
    acts: Sequence[Act],
    folder: Path,
    number: int,
    reference: Collected,
) -> Outcome:
    """Run one schedule and compare."""
    faults = tuple(act.fault for act in acts if act.fault is not None)
    own = replace(spec, habits=replace(spec.habits, folder=str(folder)), faults=faults)
    job_id = spec.job_id
    agent.start(own, acts[0].worker_map, pause_at=acts[1].step)
    seen = agent.settle(job_id)
    for act, following in zip(acts[1:], [*acts[2:], None], strict=True):
        until = spec.steps if following is None else following.step
        if act.kind == "resume":
            agent.stop(job_id, checkpoint=True)
            seen += agent.settle(job_id)
            agent.start(replace(own, resume=True), act.worker_map, pause_at=until)
            seen += agent.settle(job_id)
        else:
            agent.rescale(job_id, act.worker_map)
            seen += agent.advance(job_id, until)
    found = Collected()
    found.take(seen)
    return Outcome(
        number=number,
        acts=tuple(map(str, acts)),
        difference=found.difference(reference.by_step),
        compared=found.told,
        rescale_s=tuple(x.seconds for x in seen if isinstance(x, e.Rescaled)),
        recovery_s=tuple(x.seconds for x in seen if isinstance(x, e.Recovered)),
    )
