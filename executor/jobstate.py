"""What is, of a job that runs: its step and map, its workers and trouble, and what is wanted of it.

One object that the state machine (``executor.job``) and its scripts (``executor.scripts``) share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from executor import events as e
from executor import messages as m
from executor.crew import Crew
from executor.devices import DeviceLane
from executor.jobspec import JobSpec
from executor.layout import StepReport
from executor.pool import Handle, Place, WorkerPool
from executor.regroup import Change
from executor.telling import Diary
from executor.trouble import Trouble
from executor.wanted import Wanted
from executor.witness import Witness
from traces.workermap import WorkerMap

# Over all jobs: a worker that served another job must not take its generations for ours.
_GENERATIONS = itertools.count(1)


class JobState:
    """The state of one job.

    ``map``: of the generation, None before the first. ``order``: of reduction, the job's for life
    once a worker has built the task. ``handed``: contexts with which the generation began, by step.
    ``holdings`` names those of sharded tables. ``faults``: still to be injected.
    """

    def __init__(
        self,
        spec: JobSpec,
        lanes: Mapping[Place, DeviceLane],
        pool: WorkerPool,
        address: str,
        *,
        emit: Callable[[e.Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.spec = spec
        self.wanted = Wanted(spec)
        self.crew = Crew(lanes, pool, spec.agreement)
        self._witness = Witness(spec.agreement, pool.kernels)
        self.trouble: Trouble[Handle] = Trouble()
        self.diary = Diary(spec.job_id, emit, clock)
        self.step = 0
        self.loss = float("nan")
        self.map: WorkerMap | None = None
        self.over = False
        self.generation = 0
        self.order: Any = None
        self.handed: dict[int, Mapping[int, bytes]] = {}
        self.holdings = itertools.count(1)
        self.faults = list(spec.faults)
        self._address = address

    @property
    def unlike(self) -> bool:
        """Whether what is wanted differs from what is, the step aside."""
        wanted, trouble = self.wanted, self.trouble
        if wanted.stop is not None or trouble.failure is not None:
            return True
        if wanted.map is None:
            return False
        return trouble.broken or wanted.save or wanted.map != self.map

    def newcomers(self) -> dict[Handle, m.Request]:
        """Call workers to devices of the wanted map that have none, to build the task there."""
        wanted = self.wanted
        if wanted.map is None or wanted.stop is not None:
            return {}
        return {handle: self.attach(handle) for handle in self.crew.call(wanted.map.gpus)}

    def attach(self, handle: Handle) -> m.Attach:
        """The request to build the task."""
        return m.Attach(
            job_id=self.spec.job_id,
            task=self.spec.task,
            lane=handle.lane,
            agreement=self.spec.agreement,
            bucket_bytes=self.spec.bucket_bytes,
            reduction=self.spec.reduction or "tree",
            order=self.order,
            habits=self.spec.habits,
            battery=self._witness.asks(handle),
        )

    def built(self, handle: Handle, reply: m.Reply) -> None:
        """A newcomer has built the task, or could not."""
        if reply.error is not None:
            self.trouble.failure = reply.error
            return
        found = int(reply.value["num_workers"])
        if found != self.spec.num_workers:
            self.trouble.failure = (
                f"job {self.spec.job_id!r}: the task has {found} logical workers;"
                f" expected {self.spec.num_workers}"
            )
        apart = self._witness.heard(handle, reply.value.get("battery"))
        if apart is not None:
            self.trouble.failure = apart
        self.crew.attached.add(handle)
        self.order = reply.value["order"]

    def begin_generation(self) -> None:
        """What belongs to the generation before is old from now on."""
        self.generation = next(_GENERATIONS)

    def change(self) -> Change:
        """What the requests of this generation's change of devices have in common."""
        return Change(
            name=f"{self.spec.job_id}/{id(self)}",
            generation=self.generation,
            address=self._address,
            faults=tuple(self.faults),
        )

    def step_done(self, report: StepReport) -> None:
        """A step is committed."""
        self.step, self.loss = report.step, report.loss
        self.diary.step(report)

    def mark_broken(self, reason: str) -> None:
        """The generation is broken; told of once, also if a request had been refused before."""
        if not self.trouble.broken or not self.diary.recovering:
            self.trouble.broken = True
            self.diary.broke(self.step, reason)

    def not_saved(self, step: int, reason: str) -> None:
        """The checkpoint that was wanted is not, and will not be, written."""
        self.wanted.save = False
        self.diary.tell(e.Checkpointed, step=step, path=None, reason=reason)
