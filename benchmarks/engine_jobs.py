"""Whole jobs with an agent: rescales, recoveries, bytes sent, sharded tables.

The part of ``benchmarks/engine.py`` that does not run inside the processes that compute.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_steps as steps

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.faults import Fault
from executor.jobspec import JobSpec
from executor.messages import Habits
from executor.pool import WorkerPool
from executor.shards import Sharding
from executor.task import TaskSpec
from executor.tree import whole_subtrees
from executor.workloads import workload
from traces.workermap import WorkerMap

LANES = {
    device: {
        (0, i): DeviceLane(name=f"{device}{i}", gpu_type=device, device=name) for i in range(12)
    }
    for device, name in (("cpu", "cpu"), ("cuda", "cuda:0"))
}
LARGE = {"width": 2048, "layers": 2, "batch": 4}
LARGE_BYTES = (2 * (2048 * 2048 + 2048) + 2048 + 1) * 4 * 3  # parameters and AdamW's two moments
TABLES = {"ids": 200_000, "dim": 32, "items": 50, "batch": 32, "admit_after": 1}
MAPS = (
    (1, 1),
    (2, 2),
    (4, 4),
    (1, 3),
    (3, 5),
    (1, 2, 1),
    (2, 2, 2, 2),
    (3, 2, 3),
    (1, 6, 1),
    (5, 6, 5),
)


def on(*counts: int, first: int = 0) -> WorkerMap:
    """A worker map over devices ``first``, ``first + 1``, ..."""
    return WorkerMap.of([(0, first + d) for d in range(len(counts))], counts)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


# Elasticity.


@contextmanager
def agent_of(processes: int, device: str = "cpu") -> Iterator[tuple[Agent, WorkerPool]]:
    """An agent with worker processes that are warm."""
    lanes = LANES[device]
    with WorkerPool() as pool, Agent(lanes, pool=pool) as agent:
        agent.warm_up(dict.fromkeys(list(lanes)[:processes], 1))
        yield agent, pool


def job(task: TaskSpec, job_id: str, steps_: int, **settings: Any) -> JobSpec:
    """A job of four logical workers."""
    return JobSpec(
        job_id=job_id, task=task, num_workers=4, steps=steps_, habits=Habits(), **settings
    )


def events_of(events: Sequence[e.Event], kind: Any) -> list[Any]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def elasticity(task: TaskSpec, rescales: int, kills: int, device: str = "cpu") -> dict[str, Any]:
    """Rescale from one device to two and back; then kill a device, again and again.

    Two workers on CUDA share the first GPU.
    """
    with agent_of(2, device) as (agent, _):
        agent.start(job(task, "rescale", 10_000), on(4), pause_at=3)
        seen = agent.settle("rescale")
        agent.pause_at("rescale", 10_000)
        grown, shrunk = [], []
        for number in range(2 * rescales):
            agent.rescale("rescale", on(2, 2) if number % 2 == 0 else on(4))
            seen += (now := agent.wait(lambda event: isinstance(event, e.Rescaled)))
            (shrunk if number % 2 else grown).append(events_of(now, e.Rescaled)[0])
        agent.stop("rescale", checkpoint=False)
        agent.settle("rescale")
        step_s = statistics.median(p.seconds for p in events_of(seen, e.Progress))
        faults = tuple(
            Fault(kind="kill", step=4 + 4 * n, rank=2, point="fold") for n in range(kills)
        )
        agent.start(job(task, "kill", 6 + 4 * kills, faults=faults), on(2, 2))
        seen = agent.wait(lambda event: isinstance(event, e.Finished))
        recovered = events_of(seen, e.Recovered)
    found = {"step_s": rounded(step_s)}
    for name, values in (
        ("grow_s", [r.seconds for r in grown]),
        ("grow_pause_s", [r.pause_s for r in grown]),
        ("shrink_s", [r.seconds for r in shrunk]),
        ("recovery_s", [r.seconds for r in recovered]),
    ):
        found[name] = {
            "median": rounded(statistics.median(values)),
            "all": [rounded(v) for v in values],
        }
    found["grow_in_steps"] = rounded(found["grow_s"]["median"] / step_s)
    found["recovery_in_steps"] = rounded(found["recovery_s"]["median"] / step_s)
    return found


def large_state(rescales: int, device: str = "cpu") -> dict[str, Any]:
    """The same for a large state, and what the wire alone would take."""
    _store, where, _folder = steps.meeting("cpu")
    bandwidth = max(steps.forked(lambda i: steps.bandwidth(i, LARGE_BYTES, where), 2))
    found = elasticity(workload("dense", 4, **LARGE), rescales, max(1, rescales - 1), device)
    wire_s = LARGE_BYTES / bandwidth
    return found | {
        "state_mib": round(LARGE_BYTES / 2**20, 1),
        "bandwidth_bytes_per_s": rounded(bandwidth),
        "wire_s": rounded(wire_s),
        "pause_over_wire": rounded(found["grow_pause_s"]["median"] / wire_s),
        "rescale_over_wire": rounded(found["grow_s"]["median"] / wire_s),
    }


# Bytes.


def sent_by_first(counts: tuple[int, ...]) -> float:
    """Bytes that device 0 sends per byte of gradient."""
    size = len(counts)
    return (len(whole_subtrees(0, counts[0], sum(counts))) + 1) * (size - 1) / size


def reduction_bytes(counts: tuple[int, ...]) -> dict[str, float]:
    """Bytes sent per byte of gradient by the device that sends most, exactly; and in a ring.

    Chunks are taken as equal: a bucket is padded to a multiple of the devices.
    """
    size, workers = len(counts), sum(counts)
    first = 0
    sent = []
    for count in counts:
        trees = len(whole_subtrees(first, first + count, workers))
        sent.append((trees + 1) * (size - 1) / size)
        first += count
    ring = 2 * (size - 1) / size
    return {"most": max(sent), "mean": sum(sent) / size, "ring": ring, "ratio": max(sent) / ring}


def reduction() -> dict[str, Any]:
    """Bytes sent for the dense gradient by worker map, against a ring; one map as counted."""
    by_map = {
        "+".join(map(str, counts)): {k: rounded(v) for k, v in reduction_bytes(counts).items()}
        for counts in MAPS
    }
    settings = {"width": 256, "layers": 4, "batch": 2}
    gradient = (4 * (256 * 256 + 256) + 256 + 1) * 4
    counted = {}
    with WorkerPool(threads=True) as pool, Agent(LANES["cpu"], pool=pool) as agent:
        for counts in ((2, 2), (1, 2, 1), (1, 3)):
            name = "+".join(map(str, counts))
            agent.start(job(workload("dense", 4, **settings), name, 3), on(*counts))
            seen = agent.wait(lambda event: isinstance(event, e.Finished))
            trees = sent_by_first(counts)
            sent = events_of(seen, e.Progress)[-1].sent_bytes
            counted[name] = {
                "sent_by_device_0": sent,
                "by_arithmetic": round(trees * gradient),
                "ratio": rounded(sent / (trees * gradient)),
            }
    return {"per_gradient_byte": by_map, "counted": counted}


# Sharded tables.


def tables() -> dict[str, Any]:
    """Rows, bytes and time of sharded tables against whole ones on 2 and 4 devices."""
    found: dict[str, Any] = {}
    kinds = {"whole": None, "mirrored": Sharding(), "single": Sharding(mirrored=False)}
    task = workload("rows", 4, **TABLES)
    for counts in ((2, 2), (1, 1, 1, 1)):
        with WorkerPool(threads=True) as pool, Agent(LANES["cpu"], pool=pool) as agent:
            rows, sent = {}, {}
            for name, sharding in kinds.items():
                agent.start(job(task, name, 9, sharding=sharding), on(*counts), pause_at=6)
                seen = agent.settle(name)
                held = [
                    handle._worker._replica.task.tables.tables["item"].num_rows  # type: ignore[attr-defined]
                    for handle in agent.jobs[name].members.values()
                ]
                rows[name] = max(held)
                sent[name] = statistics.median(p.sent_bytes for p in events_of(seen, e.Progress))
                agent.stop(name, checkpoint=False)
                agent.settle(name)
        found[str(len(counts))] = {
            "rows_on_the_fullest_device": rows,
            "rows_over_whole": {k: rounded(v / rows["whole"]) for k, v in rows.items()},
            "bytes_sent_by_device_0": sent,
            "bytes_over_whole": {k: rounded(v / sent["whole"]) for k, v in sent.items()},
            "time": table_times(task, counts, kinds),
        }
    return found


def table_times(
    task: TaskSpec, counts: tuple[int, ...], kinds: dict[str, Sharding | None]
) -> dict[str, Any]:
    """Processor seconds of all devices and wall seconds of a step, jobs in turns."""
    block, blocks = 3, 6
    taken: steps.Clocks = {name: [] for name in kinds}
    with agent_of(0) as (agent, _):
        for number, (name, sharding) in enumerate(kinds.items()):
            first = number * len(counts)  # lanes of its own, so that all jobs stand side by side
            agent.start(
                job(task, name, 1000, sharding=sharding), on(*counts, first=first), pause_at=2
            )
            agent.settle(name)
        for turn in range(blocks):
            for name in kinds:
                pids = [h.pid for h in agent.jobs[name].members.values()]
                cpu, wall = processor_s(pids), time.perf_counter()
                agent.advance(name, 2 + block * (turn + 1))
                wall = time.perf_counter() - wall
                taken[name].append(((processor_s(pids) - cpu) / block, wall / block))
    return {
        name: {
            "processor_s": rounded(statistics.median(t[0] for t in taken[name])),
            "wall_s": rounded(statistics.median(t[1] for t in taken[name])),
            "processor_over_whole": steps.ratio(taken, name, "whole"),
        }
        for name in kinds
    }


def processor_s(pids: Sequence[int | None]) -> float:
    """Processor seconds that these processes have had."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
