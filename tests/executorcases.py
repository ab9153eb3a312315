"""Jobs on small tasks, and the digests they leave, for tests of the executor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from multiprocessing import Pipe
from typing import Any

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.faults import Fault
from executor.hashing import combined
from executor.jobspec import JobSpec
from executor.messages import Habits
from executor.pool import Handle
from executor.task import TaskSpec
from executor.workloads import workload
from traces.workermap import WorkerMap

LANES = {(0, i): DeviceLane(name=f"cpu{i}", gpu_type="cpu-default") for i in range(4)}

Digests = dict[int, dict[str, str]]


class MuteWorker(Handle):
    """Says nothing, writes down what it is told. ``deaf``: it is gone, as the first word shows."""

    def __init__(self, number: int, *, deaf: bool = False) -> None:
        self._ends = Pipe()
        super().__init__(LANES[0, number], number, self._ends[0])
        self.told: list[Any] = []
        self._deaf = deaf

    def say(self, order: Any) -> bool:
        self.told.append(order)
        self.gone = self._deaf
        return not self.gone

    def close(self) -> None:
        """Close the pipe that it has, but does not use."""
        for end in self._ends:
            end.close()


def job(
    name: str | TaskSpec,
    workers: int,
    steps: int,
    *,
    job_id: str = "job",
    seed: int = 3,
    faults: Sequence[Fault] = (),
    resume: bool = False,
    **habits: object,
) -> JobSpec:
    """A job on a named task whose digests are reported after every step."""
    task = name if isinstance(name, TaskSpec) else workload(name, workers, seed=seed)
    settled = {"digest_every": 1, "deadline_s": 20.0} | habits
    return JobSpec(
        job_id=job_id,
        task=task,
        num_workers=workers,
        steps=steps,
        habits=Habits(**settled),  # type: ignore[arg-type]
        faults=tuple(faults),
        resume=resume,
        bucket_bytes=2048,
    )


def on(*counts: int, first: int = 0, order: Sequence[int] | None = None) -> WorkerMap:
    """A worker map: so many ranks on devices ``first``, ``first + 1``, ..., or those of order."""
    devices = range(first, first + len(counts)) if order is None else order
    return WorkerMap.of([(0, d) for d in devices], counts)


def digests_of(events: Iterable[e.Event]) -> Digests:
    """Digests by step and tensor; all devices must agree, and a step done again must agree too."""
    found: Digests = {}
    for event in events:
        if isinstance(event, e.Digested):
            of_step = found.setdefault(event.step, {})
            for name, value in event.digests.items():
                assert of_step.setdefault(name, value) == value, (event.step, name)
    return found


def losses_of(events: Iterable[e.Event]) -> dict[int, float]:
    """Losses by step; a step that was done again must have the same."""
    found: dict[int, float] = {}
    for event in events:
        if isinstance(event, e.Progress):
            assert found.setdefault(event.step, event.loss) == event.loss, event.step
    return found


def trained(
    agent: Agent, spec: JobSpec, schedule: Sequence[tuple[int, WorkerMap]]
) -> list[e.Event]:
    """Run a job through maps, each until a step, and return all events."""
    (until, first), *rest = schedule
    agent.start(spec, first, pause_at=until)
    seen = agent.settle(spec.job_id)
    for until, worker_map in rest:
        agent.rescale(spec.job_id, worker_map)
        seen += agent.advance(spec.job_id, until)
    return seen


def first_difference(a: Digests, b: Digests) -> tuple[int, str] | None:
    """The first step and tensor that differ or that only one has, or None."""
    for step in sorted(a.keys() | b.keys()):
        for name in sorted(a.get(step, {}).keys() | b.get(step, {}).keys()):
            if a.get(step, {}).get(name) != b.get(step, {}).get(name):
                return step, name
    return None


def contradiction(events: Iterable[e.Event], expected: Digests) -> tuple[int, str] | None:
    """As first_difference, but a device may have died before it told of a step it committed.

    The digest with which the job finished covers what nobody told.
    """
    events = list(events)
    last = max(expected)
    (end,) = [event.digest for event in events if isinstance(event, e.Finished)]
    for step, told in sorted(digests_of(events).items()):
        for name, value in sorted(told.items()):
            if expected[step].get(name) != value:
                return step, name
    return None if end == combined(expected[last]) else (last, "the digest of everything")
