"""What the engine itself measures for a profile: steps on worker maps, start, rescale, checkpoint.

Every trial is a real job of the agent on real lanes. A step's seconds are those between two
commits, after a warm-up; the first step of a job is none of them. A rescale is charged with its
*pause*, the time between the last step on the old map and the begin of the next, because a job goes
on while its newcomers get ready; a start with the time to its first commit, less one step.

Lanes that share a core are not used at once: what they would measure is each other.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.jobspec import JobSpec
from executor.levels import Agreement
from executor.messages import Habits
from executor.pool import Place
from executor.presets import model_task
from traces.workermap import WorkerMap

WARM_UP = 4
_ENOUGH = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of what happens beside steps: medians, and how many of each were seen."""

    start_s: float
    rescale_s: float
    checkpoint_s: float
    rescales: int


def apart(lanes: Sequence[DeviceLane]) -> list[Place]:
    """Return the places, (0, index), of lanes that share no core with an earlier one of them."""
    used: set[int] = set()
    found: list[Place] = []
    for index, lane in enumerate(lanes):
        if not used & set(lane.cpus):
            found.append((0, index))
            used |= set(lane.cpus)
    return found


class Trials:
    """Jobs on lanes of one machine, all at one level. Use as a context manager."""

    def __init__(self, lanes: Sequence[DeviceLane], agreement: Agreement) -> None:
        self.lanes: Mapping[Place, DeviceLane] = {(0, i): lane for i, lane in enumerate(lanes)}
        self._agreement = agreement
        self._numbers = count()
        self._agent = Agent(self.lanes)

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()

    def step_s(self, model: str, batch: int, worker_map: WorkerMap, *, steps: int) -> list[float]:
        """Return the seconds of ``steps`` steps of a new job on a worker map."""
        return self.at_once(model, batch, [worker_map], steps=steps)[0]

    def at_once(
        self, model: str, batch: int, worker_maps: Sequence[WorkerMap], *, steps: int
    ) -> list[list[float]]:
        """Return the seconds of ``steps`` steps of new jobs that run beside one another.

        A job on each worker map; no two maps may have a lane in common.
        """
        specs = [self._spec(model, batch, one.num_workers) for one in worker_maps]
        for spec, worker_map in zip(specs, worker_maps, strict=True):
            self._agent.start(spec, worker_map, pause_at=WARM_UP + steps)
        events = [event for spec in specs for event in self._agent.settle(spec.job_id)]
        for spec in specs:
            self._end(spec.job_id)
        return [_seconds(events, spec.job_id)[WARM_UP:] for spec in specs]

    def costs(self, model: str, batch: int, maps: Sequence[WorkerMap], *, repeats: int) -> Costs:
        """Return what start, rescale (through ``maps`` in turn) and checkpoint cost.

        Workers are warm: the lanes' processes have been there once.
        """
        num_workers = maps[0].num_workers
        self.step_s(model, batch, maps[-1], steps=1)
        starts, pauses, saves = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(repeats):
                spec = self._spec(model, batch, num_workers, folder=folder)
                self._agent.start(spec, maps[0], pause_at=WARM_UP)
                events = self._agent.settle(spec.job_id)
                typical = statistics.median(_seconds(events, spec.job_id)[1:])
                starts += [
                    max(0.0, event.seconds - typical)
                    for event in events
                    if isinstance(event, e.Running)
                ]
                saves.append(self._checkpoint(spec.job_id))
                for number, worker_map in enumerate([*maps[1:], maps[0]], 1):
                    pauses += self._rescale(spec.job_id, worker_map, WARM_UP * (number + 1))
                self._end(spec.job_id)
        return Costs(
            start_s=statistics.median(starts),
            rescale_s=statistics.median(pauses) if pauses else 0.0,
            checkpoint_s=statistics.median(saves),
            rescales=len(pauses),
        )

    def _spec(self, model: str, batch: int, num_workers: int, folder: str | None = None) -> JobSpec:
        return JobSpec(
            job_id=f"trial {next(self._numbers)}",
            task=model_task(model, batch, num_workers),
            num_workers=num_workers,
            steps=_ENOUGH,
            habits=Habits(folder=folder),
            agreement=self._agreement,
        )

    def _checkpoint(self, job_id: str) -> float:
        """Seconds to write a checkpoint of a job that stands still."""
        began = time.monotonic()
        self._agent.checkpoint(job_id)
        events = self._agent.wait(lambda event: isinstance(event, e.Checkpointed))
        at_s = [event.at_s for event in events if isinstance(event, e.Checkpointed)]
        self._agent.settle(job_id)
        return at_s[-1] - began

    def _rescale(self, job_id: str, worker_map: WorkerMap, until: int) -> list[float]:
        """Rescale while the job runs; return the seconds for which it paused."""
        self._agent.pause_at(job_id, until)
        self._agent.rescale(job_id, worker_map)
        events = self._agent.settle(job_id)
        return [event.pause_s for event in events if isinstance(event, e.Rescaled)]

    def _end(self, job_id: str) -> None:
        self._agent.stop(job_id, checkpoint=False)
        self._agent.wait(lambda event: isinstance(event, e.Stopped) and event.job_id == job_id)


def _seconds(events: Iterable[e.Event], job_id: str) -> list[float]:
    """Seconds of a job's steps, in order."""
    steps = (event for event in events if isinstance(event, e.Progress))
    return [event.seconds for event in steps if event.job_id == job_id]
