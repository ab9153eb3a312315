"""How fast a trace replays: against a bare SimPy loop, against its own size, against a backlog.

    python benchmarks/replay.py TRACE [--out benchmarks/results/replay.json]

Each measurement is a process of its own, so its peak memory is its own. There the simulation and a
*bare loop* run in turn, five times (once for a million jobs), and the median of the five ratios of
processor times is quoted, because the machine is not ours alone. The bare loop is SimPy replaying
the same jobs on unlimited GPUs (one process per job that waits for its run time, started by an
arrivals process), topped up with plain timeouts to as many events as the simulation had (where it
has more of its own, its time is scaled down to that number).

The simulation counts in full: log in memory and on disk, jobs table, run.json, and the hash of the
workload. Reading the trace is measured by itself.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import simpy

from simulator import simulate
from traces import Workload, load

CLUSTER = "64x8:v100"
POLICIES = ("fifo", "best-effort", "srtf", "tiresias")
MILLION = 1_000_000


def repeated(workload: Workload, jobs: int) -> Workload:
    """The trace again and again, each copy behind the last, until there are ``jobs`` jobs."""
    table = workload.table
    if jobs <= len(table):
        return workload.head(jobs)
    submit = table["submit_s"]
    period = float(submit.iloc[-1] - submit.iloc[0]) + 600.0
    copies = -(-jobs // len(table))
    long = pd.concat([table] * copies, ignore_index=True).head(jobs)
    copy = np.arange(jobs) // len(table)
    long["submit_s"] = long["submit_s"] + copy * period
    long["job_id"] = long["job_id"] + "-" + pd.Series(copy).astype("string")
    return Workload(long, workload.source)


def backlog(jobs: int) -> Workload:
    """All jobs at once, sizes and run times drawn: nearly all of them wait nearly all the time."""
    draw = np.random.default_rng(1)
    return Workload(
        pd.DataFrame(
            {
                "submit_s": np.floor(draw.uniform(0, 600, jobs)),
                "duration_s": np.ceil(draw.lognormal(7, 1.5, jobs)),
                "num_gpus": draw.choice(
                    [1, 2, 4, 8, 16, 32], jobs, p=[0.7, 0.1, 0.08, 0.08, 0.03, 0.01]
                ),
            }
        )
    )


def bare_loop_s(workload: Workload, events: int) -> float:
    """Processor seconds of bare SimPy for these jobs, with ``events`` events."""
    env = simpy.Environment()

    def job(duration_s: float) -> Iterator[simpy.Event]:
        yield env.timeout(duration_s)

    def arrivals() -> Iterator[simpy.Event]:
        for submit_s, duration_s in jobs:
            if submit_s > env.now:
                yield env.timeout(submit_s - env.now)
            env.process(job(duration_s))

    def ticks(count: int, step_s: float) -> Iterator[simpy.Event]:
        for _ in range(count):
            yield env.timeout(step_s)

    table = workload.table
    submit = table["submit_s"]
    # Per job: its process starts, its timeout, its end; per arrival instant one timeout.
    own = 3 * len(table) + submit.nunique() + 2
    jobs = list(zip(submit.tolist(), table["duration_s"].tolist(), strict=True))
    spare = max(0, events - own)
    began = time.process_time()
    env.process(arrivals())
    env.process(ticks(spare, float(submit.iloc[-1]) / max(spare, 1)))
    env.run()
    return (time.process_time() - began) * events / (own + spare)


def one(trace: str, policy: str, jobs: int, out: Path) -> dict[str, Any]:
    """Measure one replay in this process."""
    began = time.process_time()
    workload = backlog(jobs) if trace == "backlog" else repeated(load(trace), jobs)
    reading_s = time.process_time() - began
    cpu_s, wall_s, bare_s, rate = [], [], [], []
    for _ in range(1 if jobs > 200_000 else 5):
        began, wall = time.process_time(), time.perf_counter()
        result = simulate(workload, CLUSTER, policy=policy, out=out, overwrite=True)
        cpu_s.append(time.process_time() - began)
        wall_s.append(time.perf_counter() - wall)
        events = result.record["counts"]["events"]
        bare_s.append(bare_loop_s(workload, events))
        rate.append(bare_s[-1] / cpu_s[-1])
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "policy": policy,
        "jobs": jobs,
        "events_per_job": round(events / jobs, 3),
        "preemptions_per_job": round(result.record["counts"]["preemptions"] / jobs, 3),
        "cpu_s": round(median(cpu_s), 3),
        "wall_s": round(median(wall_s), 3),
        "cpu_us_per_job": round(median(cpu_s) / jobs * 1e6, 2),
        "bare_cpu_s": round(median(bare_s), 3),
        "rate_against_bare": round(median(rate), 4),
        "rates_against_bare": [round(r, 4) for r in rate],
        "reading_cpu_s": round(reading_s, 3),
        "peak_mib": round(peak_mib),
        "mean_jct_s": float(result.jobs["jct_s"].mean()),
    }


def profile(trace: str, policy: str, jobs: int, out: Path) -> list[str]:
    """The functions in which a replay spends its time."""
    workload = repeated(load(trace), jobs)
    profiler = cProfile.Profile()
    profiler.runcall(simulate, workload, CLUSTER, policy=policy, out=out, overwrite=True)
    stats = pstats.Stats(profiler)
    total: float = stats.total_tt  # type: ignore[attr-defined]
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:12]  # type: ignore[attr-defined]
    return [
        f"{own / total:6.1%}  {calls:>9} calls  {Path(file).name}:{line}({name})"
        for (file, line, name), (_, calls, own, _, _) in rows
    ]


def in_a_process(*arguments: str) -> Any:
    """Run this file with ``arguments`` and read the JSON it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (
            x.partition(":")[2].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "simpy": simpy.__version__,
    }


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", help="the flat Philly trace")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "replay.json"
    )
    parser.add_argument("--one", nargs=2, metavar=("POLICY", "JOBS"), help=argparse.SUPPRESS)
    parser.add_argument("--profile", nargs=2, metavar=("POLICY", "JOBS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        if args.one:
            print(json.dumps(one(args.trace, args.one[0], int(args.one[1]), run)))
            return
        if args.profile:
            print(json.dumps(profile(args.trace, args.profile[0], int(args.profile[1]), run)))
            return
    whole = len(load(args.trace))
    record: dict[str, Any] = {
        "machine": machine(),
        "cluster": CLUSTER,
        "replays": [],
        "backlog": [],
        "profiles": {},
    }
    for jobs in (10_000, whole, MILLION):
        for policy in POLICIES:
            row = in_a_process(args.trace, "--one", policy, str(jobs))
            record["replays"].append(row)
            print(row, flush=True)
    for policy in POLICIES:
        row = in_a_process("backlog", "--one", policy, "50000")
        record["backlog"].append(row)
        print(row, flush=True)
    cost = {(r["policy"], r["jobs"]): r["cpu_us_per_job"] for r in record["replays"]}
    record["growth_10k_to_1m"] = {p: round(cost[p, MILLION] / cost[p, 10_000], 3) for p in POLICIES}
    for policy in ("fifo", "srtf", "tiresias"):
        record["profiles"][policy] = in_a_process(args.trace, "--profile", policy, "40000")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
