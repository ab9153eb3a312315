"""Add a device type by profiling: measure it, and ask what a cluster with it would do.

Measures a small model on this machine's lanes (here: CPU lanes, one of them slowed by a stated
factor, which stands for a slower device), saves the profile, and simulates a queue of elastic jobs
on a cluster of each type and of both.

    python examples/new_device.py --lanes cpu,cpu:slowdown=2 --out profile.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from executor.devices import parse_lanes
from executor.machine import probe
from executor.profiler import Effort, profile
from policies.model import Model
from simulator import simulate
from traces import Profile, Workload, profile_file

MODEL, BATCH = "dense:width=64", 16
SHORT = Effort(rounds=2, seconds=0.1, steps=4)


def queue(jobs: int) -> Workload:
    """Elastic jobs of four logical workers that may mix device types."""
    return Workload.from_jobs(
        [
            {
                "job_id": f"job-{i}",
                "submit_s": float(i),
                "num_gpus": 2,
                "num_workers": 4,
                "min_gpus": 1,
                "max_gpus": 4,
                "mixes_types": True,
                "model": MODEL,
                "batch_size": BATCH,
                "total_steps": 2000,
            }
            for i in range(jobs)
        ]
    )


def what_if(measured: Profile, types: list[str]) -> None:
    """Print the mean JCT on four devices of each type, and on four of each."""
    clusters = [f"1x4:{t}" for t in types]
    for cluster in (*clusters, ",".join(clusters)):
        jobs = simulate(queue(6), cluster, policy="easyscale", model=Model(profile=measured)).jobs
        print(f"{cluster:40} mean JCT {jobs['jct_s'].mean():7.1f} s")


def main() -> None:
    """Measure, save, simulate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lanes", default="cpu,cpu:slowdown=2")
    parser.add_argument("--out")
    args = parser.parse_args()
    machine = probe()
    lanes = list(parse_lanes(args.lanes, machine))
    measured = profile([MODEL], [BATCH], lanes, machine, effort=SHORT, say=print).profile
    out = Path(args.out or Path(tempfile.mkdtemp(prefix="tandem-")) / "profile.json")
    profile_file.save(measured, out)
    print(out)
    what_if(measured, sorted({lane.gpu_type for lane in lanes}))


if __name__ == "__main__":
    main()
