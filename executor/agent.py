"""The agent of one machine: starts and watches workers, and carries out what is wanted of jobs.

Poll-driven: commands return at once, and ``poll`` does all waiting, in one place, over the pipes of
all workers. So many jobs run side by side and one thread looks after them; a driver on wall time
waits in ``poll`` too. The agent takes no part in a step: between two commands workers go on by
themselves and only tell.

Lanes are the machine's devices by (node, index), as worker maps name them. A lane belongs to one
job at a time, in the order of commands: a job that wants a lane which another is leaving gets ready
on it and begins when it is free.

    with Agent(lanes) as agent:
        agent.start(spec, worker_map)
        agent.wait(lambda event: isinstance(event, events.Finished))

Leaves out: decisions. Which job runs where is its caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from executor import events as e
from executor.board import Board
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.job import Job
from executor.jobspec import JobSpec
from executor.pool import Handle, Place, WorkerPool
from traces.workermap import WorkerMap

_TICK_S = 0.25


class Agent:
    """Workers and jobs of one machine. Use as a context manager: no process is left behind.

    ``lanes``: the machine's lanes by (node, index). ``pool``: workers that are there already; the
    agent makes and ends one of its own otherwise. ``threads``: that pool's workers are threads.
    """

    def __init__(
        self,
        lanes: Mapping[Place, DeviceLane],
        *,
        pool: WorkerPool | None = None,
        threads: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lanes = dict(lanes)
        self.jobs: dict[str, Job] = {}
        self._clock = clock
        self._own_pool = pool is None
        self._pool = WorkerPool(threads=threads) if pool is None else pool
        self._board = Board()
        self._events: list[e.Event] = []
        self._queues: dict[Place, list[str]] = {}

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Commands.

    def warm_up(self, counts: Mapping[Place, int]) -> None:
        """Have workers of these devices' lanes started, to be ready when they are wanted."""
        for gpu, number in counts.items():
            self._pool.warm_up(self.lanes[gpu], number)

    def start(self, spec: JobSpec, worker_map: WorkerMap, *, pause_at: int | None = None) -> None:
        """Start a job. Raises ExecutorError for a map that does not fit, or a job that is there."""
        old = self.jobs.get(spec.job_id)
        if old is not None and not old.over:
            raise ExecutorError("the job is there already", where=f"job {spec.job_id!r}")
        job = Job(
            spec,
            self.lanes,
            self._pool,
            self._board.address,
            emit=self._events.append,
            clock=self._clock,
            may_run=self._may_run,
        )
        if pause_at is not None:
            job.pause_at(pause_at)
        job.rescale(worker_map)
        self.jobs[spec.job_id] = job
        self._line_up()

    def rescale(self, job_id: str, worker_map: WorkerMap) -> None:
        """Move a job to another worker map at the next step boundary, without restart."""
        self._job(job_id).rescale(worker_map)
        self._line_up()

    def migrate(self, job_id: str, rank: int, gpu: Place) -> None:
        """Move one logical worker to a neighbouring device, or to one that is not in the map.

        Blocks of ranks stay contiguous, so a rank can move where its block borders; a rank in the
        middle of a block can go to a device of its own. Raises ExecutorError otherwise.
        """
        job = self._job(job_id)
        if job.map is None:
            raise ExecutorError("the job does not run yet", where=f"job {job_id!r}")
        self.rescale(job_id, moved(job.map, rank, gpu))

    def pause_at(self, job_id: str, step: int) -> None:
        """Let a job go on until ``step`` steps are done, and stand there."""
        self._job(job_id).pause_at(step)

    def checkpoint(self, job_id: str) -> None:
        """Write a checkpoint of a job at the next step boundary."""
        self._job(job_id).checkpoint()

    def stop(self, job_id: str, *, checkpoint: bool = True) -> None:
        """Take a job off its devices at the next step boundary."""
        self._job(job_id).stop(checkpoint=checkpoint)

    def lose_lane(self, gpu: Place) -> None:
        """A device is gone. Jobs on it go on with their other devices, or wait for a new map."""
        lane = self.lanes.pop(gpu, None)
        for job in self.jobs.values():
            if lane is not None and not job.over:
                job.lose(gpu, lane)
        self._line_up()

    def return_lane(self, gpu: Place, lane: DeviceLane) -> None:
        """A device is there (again)."""
        self.lanes[gpu] = lane

    def hold(self, gpu: Place, name: str) -> bool:
        """Line up for a lane on behalf of something that is no job; return whether it is free now.

        May be asked again. Jobs that come later wait until :meth:`release`.
        """
        queue = self._queues.setdefault(gpu, [])
        if name not in queue:
            queue.append(name)
        return queue[0] == name

    def release(self, gpu: Place, name: str) -> None:
        """Give a lane back that was held, or wanted, under a name."""
        queue = self._queues.get(gpu, [])
        if name in queue:
            queue.remove(name)
        self._line_up()

    # Waiting.

    def poll(self, timeout_s: float = 0.0) -> list[e.Event]:
        """Wait until something happened, at most ``timeout_s``; return the events in order."""
        end = time.monotonic() + timeout_s
        while True:
            self._look(max(0.0, min(end - time.monotonic(), _TICK_S)))
            if self._events or time.monotonic() >= end:
                events, self._events[:] = list(self._events), []
                return events

    def wait(
        self, condition: Callable[[e.Event], bool], *, timeout_s: float = 120.0
    ) -> list[e.Event]:
        """Poll until an event meets the condition; return all events until then, it included.

        Raises ExecutorError if a job fails meanwhile, or if the time is over.
        """
        seen: list[e.Event] = []
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            events = self.poll(min(1.0, max(0.0, end - time.monotonic())))
            seen += events
            if any(map(condition, events)):
                return seen
            _raise_failure(events)
        raise ExecutorError("nothing of the kind happened", value=f"{timeout_s:g} s")

    def settle(self, job_id: str, *, timeout_s: float = 120.0) -> list[e.Event]:
        """Poll until a job stands still as it is wanted to, or is over; return the events."""
        job = self.jobs.get(job_id) or self._job(job_id)
        seen: list[e.Event] = []
        end = time.monotonic() + timeout_s
        while not job.standing:
            if time.monotonic() > end:
                raise ExecutorError("the job does not come to rest", where=f"job {job_id!r}")
            seen += self.poll(_TICK_S)
        seen += self.poll(0.0)
        _raise_failure(seen)
        return seen

    def advance(self, job_id: str, step: int, *, timeout_s: float = 120.0) -> list[e.Event]:
        """Let a job go on until ``step`` and wait until it stands there; return the events."""
        self.pause_at(job_id, step)
        return self.settle(job_id, timeout_s=timeout_s)

    def close(self) -> None:
        """End everything at once; jobs keep the checkpoints that they have."""
        for job in self.jobs.values():
            for handle in job.handles:
                self._pool.bury(handle)
        self.jobs.clear()
        if self._own_pool:
            self._pool.close()
        self._board.close()

    def _job(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None or job.over:
            raise ExecutorError(
                "no such job, or it is over", value=job_id, expected=", ".join(sorted(self.jobs))
            )
        return job

    def _look(self, timeout_s: float) -> None:
        """Take in what workers said, for at most so long."""
        holders: dict[Connection, tuple[Job, Handle]] = {}
        for job in self.jobs.values():
            for handle in job.handles:
                if not handle.gone:
                    holders[handle.pipe] = (job, handle)
        if not holders:
            time.sleep(timeout_s)
        for pipe in wait(list(holders), timeout_s) if holders else []:
            assert isinstance(pipe, Connection)
            self._hear(pipe, *holders[pipe])
        for job in list(self.jobs.values()):
            for handle in [h for h in job.handles if h.gone]:
                job.gone(handle, "the worker is gone")
            job.tick()
        self._line_up()

    def _hear(self, pipe: Connection, job: Job, handle: Handle) -> None:
        try:
            while not handle.gone and pipe.poll():
                news: Any = pipe.recv()
                if handle in job.handles:
                    job.hear(handle, news)
        except (EOFError, OSError):
            if handle in job.handles:
                job.gone(handle, "the worker died")

    # Lanes.

    def _line_up(self) -> None:
        """Keep the queue of every lane; let jobs go on whose lanes have become free."""
        for job_id, job in self.jobs.items():
            claims = job.claims()
            for gpu in claims:
                queue = self._queues.setdefault(gpu, [])
                if job_id not in queue:
                    queue.append(job_id)
            for gpu, queue in self._queues.items():
                if gpu not in claims and job_id in queue:
                    queue.remove(job_id)
        for job in list(self.jobs.values()):
            job.go()

    def _may_run(self, job: Job) -> bool:
        """Whether a job is first in line on all its lanes."""
        return all(
            (self._queues.get(gpu) or [job.spec.job_id])[0] == job.spec.job_id
            for gpu in job.claims()
        )


def _raise_failure(events: Iterable[e.Event]) -> None:
    for event in events:
        if isinstance(event, e.Failed):
            raise ExecutorError(event.reason, where=f"job {event.job_id!r}")


def moved(worker_map: WorkerMap, rank: int, gpu: Place) -> WorkerMap:
    """Return the map after one logical worker has moved to ``gpu``.

    Raises ExecutorError if ranks would not be in contiguous blocks any more.
    """
    places = [device for device, ranks in worker_map.blocks() for _ in ranks]
    if not 0 <= rank < len(places):
        raise ExecutorError("no such rank", value=rank, expected=f"0 to {len(places) - 1}")
    places[rank] = gpu
    gpus: list[Place] = []
    counts: list[int] = []
    for place in places:
        if gpus and gpus[-1] == place:
            counts[-1] += 1
        elif place in gpus:
            raise ExecutorError(
                "a device would hold ranks that do not follow each other",
                where=f"rank {rank} to {place[0]}/{place[1]}",
                value=str(worker_map),
                expected="a rank at the border of its block, or a device that is not in the map",
            )
        else:
            gpus.append(place)
            counts.append(1)
    return WorkerMap.of(gpus, counts)
