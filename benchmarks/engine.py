"""What the engine costs: determinism, logical workers, elasticity and sharding, ratios in one run.

    python benchmarks/engine.py [--only PART ...] [--device cpu] [--out FILE]

- ``data_parallel``: a step of the engine (``D1``) with one logical worker a process against
  DistributedDataParallel with as many, as it is (``stock``) and deterministic (``D0``).
- ``switch``: logical workers in turn on one process against as many micro-batches in a plain loop,
  and one switch by itself (EasyScale's Fig. 11: at most 2 %).
- ``memory``: of 1 to 16 logical workers on one device (Fig. 10), beside the floor.
- ``large``, ``tiny``: seconds from the command to rescale to the first step on the new map, how
  long training stood, seconds from a kill to the first step after it.
- ``reduction``: bytes sent against a ring, by arithmetic, and as counted.
- ``tables``: sharded tables against whole ones: rows held, bytes sent, time of a step.

Sides take turns; what is quoted is the median of ratios formed turn by turn, with quartiles. Ratios
of steps are of processor time, wall time stands beside them; seconds of rescales are wall time, on
a machine whose load is in the file. A run of some parts replaces those parts of the file. Six
minutes on two free cores. With ``--device cuda`` all but ``reduction`` and ``tables`` run on GPUs,
ratios of steps are of the clock, and processes for which there are too few GPUs share the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_jobs as jobs
import engine_steps as steps
import torch
import torch._dynamo  # what optimizers import when first used, before the forks

from executor.presets import model_task
from executor.task import TaskSpec
from executor.workloads import workload

OUT = Path(__file__).resolve().parent / "results" / "engine.json"
MIDDLE = {"width": 512, "layers": 4}
DATA_PARALLEL = {  # processes, batch of each
    "cpu": ((2, 128), (2, 1024), (4, 128), (4, 1024)),
    "cuda": ((1, 128), (1, 1024), (2, 1024)),
}
BATCHES = (128, 1024)
WORKERS = (1, 2, 4, 8, 16)
MEMORY = {
    "LONGER": lambda n: model_task("tiny:length=64", 128, n),
    "activations": lambda n: workload("dense", n, seed=1, width=256, layers=8, batch=1024),
    "state": lambda n: workload("dense", n, seed=1, width=1024, layers=8, batch=16),
}


def data_parallel(device: str, turns: int) -> dict[str, Any]:
    """The engine against DistributedDataParallel, by processes and size of the batch."""
    found = {}
    clock = 1 if device == "cuda" else 0
    for size, batch in DATA_PARALLEL[device]:
        settings = MIDDLE | {"batch": batch}
        block = 10 if batch == BATCHES[0] else 4  # steps of a turn; 0.15 to 0.2 s alone
        _store, where, _folder = steps.meeting(device)
        parts = steps.forked(
            lambda index, n=size, s=settings, b=block, w=where: steps.data_parallel(
                index, n, s, b, turns, w
            ),
            size,
        )
        taken = {name: [t for part in parts for t in part[name]] for name in parts[0]}
        found[f"{size} process{'es' * (size > 1)}, batch {batch}"] = {
            "stock_step_s": jobs.rounded(statistics.median(t[clock] for t in taken["stock"])),
            "D1_over_stock": steps.ratio(taken, "D1", "stock", clock),
            "D0_over_stock": steps.ratio(taken, "D0", "stock", clock),
            "D1_over_D0": steps.ratio(taken, "D1", "D0", clock),
            "D1_over_D0_wall": steps.ratio(taken, "D1", "D0", clock=1),
        }
    return found


def switch(device: str, turns: int) -> dict[str, Any]:
    """Logical workers in turn against micro-batches without contexts, one process."""
    found: dict[str, Any] = {}
    clock = 1 if device == "cuda" else 0
    for batch in BATCHES:
        settings = MIDDLE | {"batch": batch}
        (alone,) = steps.forked(lambda _, s=settings: steps.switch_alone(s, device), 1)
        found[f"batch {batch}"] = by_workers = {
            "switch_s": jobs.rounded(alone["switch_s"]),
            "micro_batch_s": jobs.rounded(alone["micro_batch_s"]),
            "switch_over_micro_batch": jobs.rounded(alone["switch_s"] / alone["micro_batch_s"]),
        }
        for workers in (1, 4):
            (taken,) = steps.forked(
                lambda _, n=workers, s=settings: steps.switching(n, s, 2, 2 * turns, device), 1
            )
            by_workers[f"{workers} workers over plain"] = steps.ratio(taken, "EST", "plain", clock)
    return found


def memory(device: str) -> dict[str, Any]:
    """Highest memory of logical workers on one device, and the floor.

    The floor: while the last of n logical workers computes, log2 n partial sums lie beside its
    activations; after it, its own gradient is in one of them, so that all in all log2 n of them
    stand where one worker has one.
    """
    found = {}
    for name, made in MEMORY.items():
        taken = peaks(made, device)
        gradient, alone = taken[1]["gradient"], taken[1]["peak"]
        found[name] = {
            "gradient_mib": round(gradient, 2),
            "mib": {str(n): round(t["peak"], 1) for n, t in taken.items()},
            "over_one": {str(n): round(t["peak"] / alone, 3) for n, t in taken.items()},
            "floor_over_one": {
                str(n): [round(1 + more * gradient / alone, 3) for more in floor(n)]
                for n in WORKERS
            },
        }
        if device == "cpu":
            first, last = (peak(made(n), device, ())["peak"] for n in (WORKERS[0], WORKERS[-1]))
            found[name]["last_over_one_as_the_allocator_comes"] = round(last / first, 3)
    return found


def peaks(made: Callable[[int], TaskSpec], device: str) -> dict[int, dict[str, float]]:
    """Memory by number of logical workers. Torch knows what it took of a GPU since it was asked."""
    if device == "cpu":
        return {n: peak(made(n), device, steps.GIVE_BACK) for n in WORKERS}
    # The first also takes what cuBLAS takes once a process, so it is measured twice.
    counts = (WORKERS[0], *WORKERS)
    (found,) = steps.forked(lambda _: {n: steps.peak_mib(made(n), device, ()) for n in counts}, 1)
    return dict(found)


def peak(spec: TaskSpec, device: str, options: steps.Options) -> dict[str, float]:
    """Memory in a process of its own."""
    (found,) = steps.forked(lambda _: steps.peak_mib(spec, device, options), 1)
    return dict(found)


def floor(workers: int) -> tuple[int, int]:
    """Gradients more than one logical worker holds: where state is highest, and activations."""
    levels = (workers - 1).bit_length()
    return max(levels - 1, 0), levels


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--short", action="store_true", help="fewer turns, to try it out")
    parser.add_argument("--only", nargs="*", help="some parts only")
    args = parser.parse_args()
    turns, rescales = (2, 1) if args.short else (20 if args.device == "cpu" else 8, 3)
    torch.set_num_threads(1)
    if args.device == "cuda":  # cuBLAS is deterministic with it only, and reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    parts = {
        "data_parallel": lambda: data_parallel(args.device, 2 * turns),
        "switch": lambda: switch(args.device, turns),
        "memory": lambda: memory(args.device),
        # Those above fork, which a process with threads should not.
        "large": lambda: jobs.large_state(rescales, args.device),
        "tiny": lambda: jobs.elasticity(model_task("tiny", 4, 4), rescales, rescales, args.device),
    }
    if args.device == "cpu":
        parts |= {"reduction": jobs.reduction, "tables": jobs.tables}
    record: dict[str, Any] = {"machine": machine(args.device), "parts": {}}
    if args.only and args.out.exists():
        record["parts"] = json.loads(args.out.read_text(encoding="utf-8"))["parts"]
    for name, measure in parts.items():
        if args.only and name not in args.only:
            continue
        load, began = os.getloadavg()[0], time.perf_counter()
        results = measure()
        seconds = round(time.perf_counter() - began, 1)
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        record["parts"][name] = {"load": loads, "seconds": seconds, "results": results}
        print(f"{name:14} {seconds:6.1f} s", flush=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """Where it ran. A GPU's name is asked for in a process of its own: this one forks."""
    gpu = {}
    if device == "cuda":
        gpu = {"gpu": steps.forked(lambda _: torch.cuda.get_device_name(), 1)[0]}
    return gpu | {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
