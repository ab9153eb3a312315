"""What elasticity, determinism and sharding cost the engine, each as a ratio within one run.

    python benchmarks/elasticity.py [--out benchmarks/results/executor.json] [--device cpu]

Steps (``elasticity_steps``): the engine with one logical worker a process against plain
DistributedDataParallel with as many processes, as it is (``stock``) and with deterministic
algorithms (``D0``); several logical workers on one device against as many micro-batches in a plain
loop; memory of 1 to 16 logical workers on one device. Elasticity: seconds from the command to
rescale to the first step on the new map, how long training stood, and seconds from a kill to the
first step after it, for the model ``tiny`` and for a large state beside the bandwidth between two
processes. Reduction: bytes sent against a ring, by arithmetic, and as counted. Sharded tables
against whole ones: rows held, bytes sent, time of a step.

Sides take turns, what is quoted is the median of ratios formed turn by turn. Ratios of steps are
those of processor time, wall time stands beside them; seconds of rescales are wall time, on a
machine whose load is in the file. Under three minutes on two free cores. ``--device cuda`` puts the
first part on GPUs (two for the comparison with DistributedDataParallel); it was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import elasticity_steps as steps
import torch
import torch._dynamo  # what optimizers import when first used, before the forks

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane
from executor.faults import Fault
from executor.job import JobSpec
from executor.messages import Habits
from executor.pool import WorkerPool
from executor.presets import model_task
from executor.shards import Sharding
from executor.task import TaskSpec
from executor.workloads import workload
from traces.workermap import WorkerMap

LANES = {(0, i): DeviceLane(name=f"cpu{i}", gpu_type="cpu") for i in range(12)}
MIDDLE = {"width": 512, "layers": 4}
BATCHES = (128, 1024)
WORKERS = (1, 2, 4, 8, 16)
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


# Steps.


def overhead(device: str, blocks: int) -> dict[str, Any]:
    """The engine against DistributedDataParallel, two processes, by the size of the batch."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    found = {}
    for batch in BATCHES:
        settings = MIDDLE | {"batch": batch}
        _store, where, _folder = steps.meeting(device)
        parts = steps.forked(
            lambda index, s=settings, w=where: steps.data_parallel(index, 2, s, 2, blocks, w), 2
        )
        taken = {name: [t for part in parts for t in part[name]] for name in parts[0]}
        found[f"batch {batch}"] = {
            "stock_step_s": rounded(statistics.median(t[0] for t in taken["stock"])),
            "engine_over_stock": steps.ratio(taken, "D1", "stock"),
            "D0_over_stock": steps.ratio(taken, "D0", "stock"),
            "D1_over_D0": steps.ratio(taken, "D1", "D0"),
            "D1_over_D0_wall": steps.ratio(taken, "D1", "D0", clock=1),
        }
    return found


def switch(device: str, blocks: int) -> dict[str, Any]:
    """Logical workers in turn against micro-batches without contexts, one process."""
    found: dict[str, Any] = {}
    clock = 1 if device == "cuda" else 0
    for batch in BATCHES:
        settings = MIDDLE | {"batch": batch}
        (alone,) = steps.forked(lambda _, s=settings: steps.switch_alone(s, device), 1)
        found[f"batch {batch}"] = by_workers = {
            "switch_s": rounded(alone["switch_s"]),
            "micro_batch_s": rounded(alone["micro_batch_s"]),
            "switch_over_micro_batch": rounded(alone["switch_s"] / alone["micro_batch_s"]),
        }
        for workers in (1, 4):
            (taken,) = steps.forked(
                lambda _, n=workers, s=settings: steps.switching(n, s, 2, blocks, device), 1
            )
            by_workers[f"{workers} workers over plain"] = steps.ratio(taken, "EST", "plain", clock)
    return found


def memory(device: str) -> dict[str, Any]:
    """Highest memory of logical workers on one device, where activations rule and where not."""
    found = {}
    for name, settings in (
        ("activations", {"width": 256, "layers": 8, "batch": 1024}),
        ("state", {"width": 1024, "layers": 8, "batch": 16}),
    ):
        mib = {}
        for workers in WORKERS:
            (mib[workers],) = steps.forked(
                lambda _, n=workers, s=settings: steps.peak_mib(n, s, device), 1
            )
        found[name] = settings | {
            "mib": {str(n): round(m, 1) for n, m in mib.items()},
            "over_one": {str(n): rounded(m / mib[1]) for n, m in mib.items()},
        }
    return found


# Elasticity.


@contextmanager
def agent_of(processes: int) -> Iterator[tuple[Agent, WorkerPool]]:
    """An agent with worker processes that are warm."""
    with WorkerPool() as pool, Agent(LANES, pool=pool) as agent:
        agent.warm_up(dict.fromkeys(list(LANES)[:processes], 1))
        yield agent, pool


def job(task: TaskSpec, job_id: str, steps_: int, **settings: Any) -> JobSpec:
    """A job of four logical workers."""
    return JobSpec(
        job_id=job_id, task=task, num_workers=4, steps=steps_, habits=Habits(), **settings
    )


def events_of(events: Sequence[e.Event], kind: Any) -> list[Any]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def elasticity(task: TaskSpec, rescales: int, kills: int) -> dict[str, Any]:
    """Rescale from one device to two and back; then kill a device, again and again."""
    with agent_of(2) as (agent, _):
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


def large_state(rescales: int) -> dict[str, Any]:
    """The same for a large state, and what the wire alone would take."""
    _store, where, _folder = steps.meeting("cpu")
    bandwidth = max(steps.forked(lambda i: steps.bandwidth(i, LARGE_BYTES, where), 2))
    found = elasticity(workload("dense", 4, **LARGE), rescales, max(1, rescales - 1))
    wire_s = LARGE_BYTES / bandwidth
    return found | {
        "state_mib": round(LARGE_BYTES / 2**20, 1),
        "bandwidth_bytes_per_s": rounded(bandwidth),
        "wire_s": rounded(wire_s),
        "pause_over_wire": rounded(found["grow_pause_s"]["median"] / wire_s),
        "rescale_over_wire": rounded(found["grow_s"]["median"] / wire_s),
    }


# Bytes.


def reduction() -> dict[str, Any]:
    """Bytes sent for the dense gradient by worker map, against a ring; one map as counted."""
    by_map = {
        "+".join(map(str, counts)): {
            k: rounded(v) for k, v in steps.reduction_bytes(counts).items()
        }
        for counts in MAPS
    }
    settings = {"width": 256, "layers": 4, "batch": 2}
    gradient = (4 * (256 * 256 + 256) + 256 + 1) * 4
    counted = {}
    with WorkerPool(threads=True) as pool, Agent(LANES, pool=pool) as agent:
        for counts in ((2, 2), (1, 2, 1), (1, 3)):
            name = "+".join(map(str, counts))
            agent.start(job(workload("dense", 4, **settings), name, 3), on(*counts))
            seen = agent.wait(lambda event: isinstance(event, e.Finished))
            trees = steps.sent_by_first(counts)
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
        with WorkerPool(threads=True) as pool, Agent(LANES, pool=pool) as agent:
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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/executor.json"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--short", action="store_true", help="fewer turns, to try it out")
    parser.add_argument("--only", nargs="*", help="some parts only")
    args = parser.parse_args()
    blocks, rescales = (2, 1) if args.short else (5, 3)
    torch.set_num_threads(1)
    began = time.perf_counter()
    load = os.getloadavg()
    results: dict[str, Any] = {}
    for name, measure in (
        ("data_parallel", lambda: overhead(args.device, blocks)),
        ("switch", lambda: switch(args.device, blocks)),
        ("memory", lambda: memory(args.device)),
        # Those above fork, which a process with threads should not.
        ("elastic_large", lambda: large_state(rescales)),
        ("elastic_tiny", lambda: elasticity(model_task("tiny", 4, 4), rescales, rescales)),
        ("reduction", reduction),
        ("tables", tables),
    ):
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        results[name] = measure()
        print(f"{name:14} {time.perf_counter() - start:6.1f} s")
    record = {
        "setting": {"middle": MIDDLE, "large": LARGE, "tables": TABLES, "device": args.device},
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "architecture": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "load_before": [round(x, 1) for x in load],
            "load_after": [round(x, 1) for x in os.getloadavg()],
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(time.perf_counter() - began, 1),
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
