"""A policy of one's own for elastic jobs, in both worlds: share the devices out evenly.

Every job gets the same number of devices, as far as they go round, and all are resized when one
comes or goes. The same object is checked, simulated, and executed on this machine with real
training jobs, whose bits do not depend on what it did to them.

    python examples/elastic_policy.py             # check and simulate
    python examples/elastic_policy.py --execute   # and run it here
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from executor.devices import parse_lanes
from executor.execute import execute
from executor.machine import probe
from policies import ClusterView, Draft, JobState, Policy, check_policy
from policies.model import Model
from simulator import simulate
from traces import Profile, RunLog, Workload
from traces.profile import ModelProfile

MODEL = "dense:width=64"


@dataclass(frozen=True, kw_only=True)
class EvenShare(Policy):
    """Elastic jobs share each GPU type evenly; rigid jobs start when they fit."""

    name: ClassVar[str] = "even-share"
    resizes: ClassVar[bool] = True

    def plan(self, view: ClusterView) -> Draft:
        """Shrink those that have more than their share, then start and grow the others."""
        draft = view.draft()
        elastic = [job for job in (*view.running, *view.waiting) if job.elastic is not None]
        for job in view.waiting:
            if job.elastic is None:
                draft.start(job)
        # One type each: the one a job is on, or the first that it may use.
        pool = {job: _pool(job) for job in elastic}
        wanted = {}
        for job in elastic:
            assert job.elastic is not None
            sharers = sum(pool[other] == pool[job] for other in elastic)
            share = view.free.pools[pool[job]].capacity // sharers
            wanted[job] = min(max(share, job.elastic.least_gpus), job.elastic.max_gpus)
        for job in sorted(elastic, key=lambda job: wanted[job] - sum(job.held)):
            if sum(job.held) != wanted[job]:
                counts = [0] * len(view.free.pools)
                counts[pool[job]] = wanted[job]
                draft.resize(job, counts)
        return draft


def _pool(job: JobState) -> int:
    held = [pool for pool, count in enumerate(job.held) if count]
    return held[0] if held else job.shape.pools[0]


def workload() -> Workload:
    """Three jobs that arrive one after another."""
    return Workload.from_jobs(
        [
            {
                "job_id": name,
                "submit_s": submit_s,
                "num_gpus": 1,
                "num_workers": 4,
                "min_gpus": 1,
                "max_gpus": 2,
                "model": MODEL,
                "batch_size": 16,
                "total_steps": steps,
            }
            for name, submit_s, steps in (("a", 0.0, 150), ("b", 0.5, 80), ("c", 1.0, 40))
        ]
    )


def main() -> None:
    """Check it, simulate it, and execute it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--execute", action="store_true")
    args = parser.parse_args()
    policy = EvenShare()
    print(check_policy(policy), end="\n\n")
    lanes = list(parse_lanes("cpux2", probe()))
    times = ModelProfile(microbatch_s={16: {lanes[0].gpu_type: 0.002}}, start_s=0.1, rescale_s=0.1)
    assumed = Profile(models={MODEL: times}, origin="analytic")
    jobs = simulate(
        workload(), f"1x2:{lanes[0].gpu_type}", policy=policy, model=Model(profile=assumed)
    ).jobs
    print(f"simulated: mean JCT {jobs['jct_s'].mean():.2f} s")
    if args.execute:
        out = Path(tempfile.mkdtemp(prefix="tandem-")) / "run"
        jobs = execute(workload(), lanes, profile=assumed, out=out, policy=policy).jobs
        same = RunLog.open(out).table("training")["same_bits"]
        print(f"executed:  mean JCT {jobs['jct_s'].mean():.2f} s; bits as alone: {same.all()}")


if __name__ == "__main__":
    main()
