"""From a row of a workload to a job of the engine; and the bits that it must end with.

A job's task is named by its columns ``model``, ``batch_size`` and ``num_workers``; the seed of its
model and data is a function of the run's seed and the job's name. Its determinism level is D2 if it
may mix types, else D1. The reference is the same job alone, all logical workers on one lane from
the first step to the last: what the digests of an executed run are compared with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.jobspec import JobSpec
from executor.levels import Agreement, Level, agree
from executor.messages import Habits
from executor.pool import Place
from executor.presets import model_task
from executor.task import TaskSpec
from traces import DataError, Elastic, Job, Workload
from traces.errors import UsageError
from traces.workermap import WorkerMap

_REFERENCE_S = 3600.0


class Recipes:
    """The engine's jobs of a workload, by rank.

    Raises DataError for jobs that are not elastic or do not say what they train, UsageError for
    models that are not known and for levels that the lanes do not have.
    """

    def __init__(self, workload: Workload, places: Mapping[Place, DeviceLane], seed: int) -> None:
        self.jobs = list(workload.jobs())
        self.places = places
        self._seed = seed
        for job in self.jobs:
            _check(job, workload.source.path)
            self.task(job.rank)
            self.agreement(job.rank)

    @property
    def ids(self) -> list[str]:
        """Names of the jobs, in rank order."""
        return [job.job_id for job in self.jobs]

    def elastic(self, rank: int) -> Elastic:
        """What the job says of its size."""
        elastic = self.jobs[rank].elastic
        assert elastic is not None
        return elastic

    def steps(self, rank: int) -> int:
        """Global steps of a job."""
        return int(self.elastic(rank).total_steps or 0)

    def task(self, rank: int) -> TaskSpec:
        """What a job trains."""
        elastic = self.elastic(rank)
        task = model_task(str(elastic.model), elastic.batch_size or 1, elastic.num_workers)
        text = f"{self._seed}/{self.jobs[rank].job_id}"
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        return replace(task, settings={**task.settings, "seed": drawn % 2**31})

    def lanes(self, rank: int) -> list[Place]:
        """The lanes that a job may ever get."""
        allowed = self.jobs[rank].request.gpu_types
        mixes = self.elastic(rank).mixes_types
        found = [
            p for p, lane in self.places.items() if mixes or not allowed or lane.gpu_type in allowed
        ]
        if not found:
            raise DataError(
                f"job {self.jobs[rank].job_id}: no lane of its GPU types",
                column="gpu_type",
                value="|".join(allowed),
                expected="one of " + ", ".join(sorted({x.gpu_type for x in self.places.values()})),
            )
        return found

    def agreement(self, rank: int) -> Agreement:
        """A job's determinism level, agreed for all lanes that it may ever get."""
        level = Level.D2 if self.elastic(rank).mixes_types else Level.D1
        try:
            return agree(level, [self.places[p] for p in self.lanes(rank)])
        except UsageError as error:
            raise UsageError(
                f"job {self.jobs[rank].job_id}: {error} (columns gpu_type and mixes_types)"
            ) from None

    def spec(self, rank: int, habits: Habits, *, resume: bool) -> JobSpec:
        """Return the engine's job."""
        return JobSpec(
            job_id=self.jobs[rank].job_id,
            task=self.task(rank),
            num_workers=self.elastic(rank).num_workers,
            steps=self.steps(rank),
            habits=habits,
            resume=resume,
            agreement=self.agreement(rank),
        )

    def identity(self, rank: int) -> str:
        """What a job's bits depend on, as one digest: task, workers, steps, kernels, torch."""
        import torch  # noqa: PLC0415

        agreement = self.agreement(rank)
        said: list[Any] = [self.task(rank).to_json(), self.elastic(rank).num_workers]
        said += [self.steps(rank), agreement.to_json(), torch.__version__]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _check(job: Job, path: str) -> None:
    """Refuse what cannot be executed."""
    elastic = job.elastic
    missing = "max_gpus" if elastic is None else None
    if elastic is not None:
        for column in ("model", "batch_size", "total_steps"):
            if not getattr(elastic, column):
                missing = missing or column
    if missing is not None:
        raise DataError(
            f"job {job.job_id} cannot be executed",
            file=path or None,
            column=missing,
            expected="num_workers, max_gpus, model, batch_size and total_steps for every job",
        )
    assert elastic is not None
    if elastic.total_steps != int(elastic.total_steps or 0):
        raise DataError(
            f"job {job.job_id}: part of a step",
            file=path or None,
            column="total_steps",
            value=elastic.total_steps,
            expected="a whole number of global steps",
        )


def warm(agent: Agent, place: Place, lane: DeviceLane, agreement: Agreement) -> None:
    """Run one tiny job on a lane, so that its worker processes have loaded torch.

    Raises ExecutorError if the lane cannot run it.
    """
    spec = JobSpec(
        job_id=f"warm/{place[0]}/{place[1]}/{agreement.level.value}",
        task=model_task("dense:width=8", 1, 1),
        num_workers=1,
        steps=1,
        agreement=agreement,
    )
    agent.start(spec, WorkerMap.of([place], [1]))
    agent.wait(lambda event: isinstance(event, e.Finished))


def references(
    recipes: Recipes,
    agent: Agent,
    kept: Path | None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Return the digest that each job must end with, by name; one that fails alone has none.

    Jobs that are not known from the file ``kept`` are run alone, on one lane each, as many at a
    time as there are lanes; what is found is added to the file.
    """
    known = _read(kept)
    wanted = {recipes.identity(job.rank): job.rank for job in recipes.jobs}
    todo = [(key, rank) for key, rank in wanted.items() if key not in known]
    running: dict[str, tuple[str, Place]] = {}
    total = len(todo)
    while todo or running:
        busy = {place for _, place in running.values()}
        for key, rank in list(todo):
            place = next((p for p in recipes.lanes(rank) if p not in busy), None)
            if place is None:
                continue
            todo.remove((key, rank))
            busy.add(place)
            spec = replace(recipes.spec(rank, Habits(), resume=False), job_id=f"reference/{key}")
            workers = recipes.elastic(rank).num_workers
            agent.start(spec, WorkerMap.of([place], [workers]))
            running[spec.job_id] = (key, place)
            say(f"{recipes.jobs[rank].job_id} alone ({total - len(todo)} of {total})")
        for event in agent.poll(1.0):
            if isinstance(event, e.Failed):
                key, _ = running.pop(event.job_id)
                say(f"{recipes.jobs[wanted[key]].job_id} fails even alone: {event.reason}")
            if isinstance(event, e.Finished):
                key, _ = running.pop(event.job_id)
                known[key] = event.digest
                _write(kept, known)
    found = {job.job_id: known.get(recipes.identity(job.rank)) for job in recipes.jobs}
    return {job_id: digest for job_id, digest in found.items() if digest is not None}


def _read(path: Path | None) -> dict[str, str]:
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", file=path, expected="JSON") from error
    if not isinstance(found, dict):
        raise DataError("no file of digests", file=path, expected="an object of texts")
    return {str(key): str(value) for key, value in found.items()}


def _write(path: Path | None, known: Mapping[str, str]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(path.name + ".part")
        making.write_text(json.dumps(dict(sorted(known.items())), indent=1), encoding="utf-8")
        making.replace(path)
