"""What one worker process measures of a task on its lane, alone: the parts of a step.

Run as a process of its own with the environment of its lane and level, so that it computes with
their kernels. Of a task with n logical workers on one device it times

- a *micro-batch*: fetching a batch, forward and backward (``Task.micro_step``), and the sleep of a
  slowed lane;
- the *update*: ``Task.apply``;
- whole *steps* (``executor.replica``) for several n, among which the slope is a micro-batch and a
  switch: leaving one logical worker's context, entering the next, adding its gradient.

On a CPU lane the seconds are those that the processor worked for the process's first thread, which
computes all of it: on a quiet machine they are the clock's, on a busy one they are what the lane
would take. How much of the clock they were is told too (``share``). On a GPU they are the clock's.
Steps are taken unslowed, so that a slowed lane's switch is not mistaken.

The kinds take turns, and the process measures in short rounds on request, so that a machine that is
slower for a while is slower for all that is measured. Memory is the process's highest resident size
after a task's first round, torch included (on a GPU: what torch's allocator reserved at most);
tasks are taken in the order given, so the smallest comes first.

    python -m executor.measure     reads a request, then a line for each round; answers each in JSON
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from executor.devices import DeviceLane
from executor.exchange import Exchange
from executor.layout import Layout
from executor.levels import Agreement, configure
from executor.reduce import BUCKET_BYTES, order_of
from executor.replica import Replica
from executor.task import Task, TaskSpec

WARM_UP = 3
_NEVER_MORE = 400

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Seconds of each kind, in the order taken; ``steps_s`` by number of logical workers.

    ``micro_s`` as the lane is slowed, ``unslowed_s`` as it would be if it were not.

    ``gradient_bytes``: of the dense parameters; ``has_tables``: are there sparse ones besides?
    ``share``: of the clock's time in which the lane's processor worked for us; 1 on a GPU.
    """

    micro_s: Sequence[float]
    unslowed_s: Sequence[float]
    update_s: Sequence[float]
    steps_s: Mapping[int, Sequence[float]]
    gradient_bytes: int
    memory_mib: int
    has_tables: bool
    share: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Samples:
        """Return what :func:`main` printed; JSON has no whole numbers as keys."""
        steps = {int(n): tuple(times) for n, times in values["steps_s"].items()}
        return cls(**{**values, "steps_s": steps})

    def joined(self, later: Samples) -> Samples:
        """Return the samples of two rounds as one."""
        return replace(
            self,
            micro_s=[*self.micro_s, *later.micro_s],
            unslowed_s=[*self.unslowed_s, *later.unslowed_s],
            share=min(self.share, later.share),
            update_s=[*self.update_s, *later.update_s],
            steps_s={n: [*times, *later.steps_s[n]] for n, times in self.steps_s.items()},
        )


class Bench:
    """A task on this process's lane, ready to be timed again and again.

    ``tasks``: the same task by number of logical workers, one among them.
    """

    def __init__(self, tasks: Mapping[int, TaskSpec], lane: DeviceLane) -> None:
        self._device = torch.device(lane.device)
        alone = tasks[1].build(self._device)
        self._clock = time.thread_time if self._device.type == "cpu" else time.perf_counter
        parts = _parts(alone, lane.slowdown, self._clock)
        self._kinds: dict[str, Callable[[], float]] = {
            "micro": lambda: next(parts),
            "unslowed": lambda: next(parts),
            "update": lambda: next(parts),
        }
        self._counts = tuple(tasks)
        for n, spec in tasks.items():
            replica = _replica(spec.build(self._device), n)
            self._kinds[f"step {n}"] = _timed(replica, self._device, self._clock)
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in alone.parameters())
        self._has_tables = alone.tables is not None
        for _ in range(WARM_UP):
            for take in self._kinds.values():
                take()
        self._memory_mib = _memory_mib(self._device)

    def round(self, seconds: float) -> Samples:
        """Time every kind in turn, for about so many seconds, once at least."""
        times: dict[str, list[float]] = {kind: [] for kind in self._kinds}
        worked, began = self._clock(), time.perf_counter()
        end = began + seconds
        while not times["micro"] or (
            time.perf_counter() < end and len(times["micro"]) < _NEVER_MORE
        ):
            for kind, take in self._kinds.items():
                times[kind].append(take())
        share = (self._clock() - worked) / (time.perf_counter() - began)
        return Samples(
            micro_s=times["micro"],
            unslowed_s=times["unslowed"],
            share=min(1.0, share),
            update_s=times["update"],
            steps_s={n: times[f"step {n}"] for n in self._counts},
            gradient_bytes=self._gradient_bytes,
            memory_mib=self._memory_mib,
            has_tables=self._has_tables,
        )


def _replica(task: Task, num_workers: int) -> Replica:
    """All logical workers of a task on this one device."""
    order = order_of(task.parameters(), num_workers, BUCKET_BYTES)
    replica = Replica(task, order)
    ranks = range(num_workers)
    nobody = Exchange("", "", 0, 1)  # one device: nothing is sent
    replica.configure(Layout(blocks=(ranks,), index=0), nobody, replica.first_contexts(ranks))
    return replica


def _parts(task: Task, slowdown: float, clock: Clock) -> Iterator[float]:
    """Yield the seconds of a micro-batch slowed, unslowed, of its update; of the next, ..."""
    place = task.source.first(0)
    while True:
        began = clock()
        batch, place = task.source.fetch(0, place)
        fetched = clock()
        part = task.micro_step(0, batch)
        _finish(task.device)
        done = clock()
        yield fetched - began + (done - fetched) * slowdown
        yield done - began
        began = clock()
        task.apply(part)
        _finish(task.device)
        yield clock() - began


def _timed(replica: Replica, device: torch.device, clock: Clock) -> Callable[[], float]:
    def step() -> float:
        began = clock()
        replica.do_step()
        _finish(device)
        return clock() - began

    return step


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_mib(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device) >> 20)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)  # KiB on Linux


def main() -> int:
    """Read a request from standard input, then measure a round for every line that follows."""
    import os  # noqa: PLC0415

    request = json.loads(sys.stdin.readline())
    lane = DeviceLane.from_json(request["lane"])
    configure(Agreement.from_json(request["agreement"]), lane)
    if lane.cpus:
        os.sched_setaffinity(0, lane.cpus)
    benches = [Bench(_tasks(case), lane) for case in request["cases"]]
    for _ in sys.stdin:
        found = [asdict(bench.round(float(request["seconds"]))) for bench in benches]
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    return 0


def _tasks(case: Mapping[str, Any]) -> dict[int, TaskSpec]:
    return {
        int(n): TaskSpec(factory=spec["factory"], settings=spec["settings"])
        for n, spec in case.items()
    }


if __name__ == "__main__":
    sys.exit(main())
