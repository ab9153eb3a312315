"""Elastic scheduling: is ``easyscale`` repaired better than as the artifact plans, and how fast?

    python benchmarks/elastic.py EASYSCALE_WORKLOAD --profile FILE [--philly TRACE]

Four parts, every start and change of size charged 20 s in all:

- draws: 20 workloads of 62 jobs drawn from the rows of EasyScale's, at four loads; average JCT of
  ``easyscale`` repaired against paper, paired, with a bootstrap interval of the mean ratio,
- latency: decisions a second and the 99th percentile of one decision, with 1,000 active jobs on
  64 to 32,768 GPUs,
- philly: the first 20,000 jobs of Philly made elastic, on 512 GPUs of three types,
- the processor seconds each part took (the machine has other work).

Writes ``benchmarks/results/elastic.json`` and prints it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies import ClusterView
from policies.inter.easyscale import EasyScale
from policies.model import Costs, Model
from policies.plan import Plan
from simulator.reproduce import CLUSTER, PAUSE_S, roomier
from simulator.run import simulate
from traces import Profile, Workload, load, load_cluster
from traces.elastic_rule import ElasticRule, make_elastic
from traces.feasibility import infeasible
from traces.profile_sources import load_profile

SEEDS = range(20)
LOADS = (0.5, 0.75, 1.0, 1.5)
SPAN_S = 4_700.0  # of the submissions of EasyScale's workload
GPUS = (64, 512, 4_096, 32_768)
ACTIVE = 1_000
OTHERS = ("fifo", "easy", "srtf", "tiresias", "afs", "optimus", "static-share:share=0.25")
PHILLY_JOBS = 20_000
PHILLY_CLUSTER = "32x8:v100:16,16x8:p100:16,16x8:t4:16"
PHILLY_RULE = ElasticRule(mix="bert;electra;ncf;swintransformer")


def costs() -> Costs:
    """What every start and every change costs."""
    return Costs(start_s=PAUSE_S, rescale_s=PAUSE_S)


def drawn(base: Workload, seed: int, load_factor: float, count: int = 62) -> Workload:
    """Jobs drawn from the rows of ``base`` with replacement, submitted at uniform instants."""
    rng = np.random.default_rng([seed, 62])
    table = base.table.iloc[rng.integers(0, len(base), count)].reset_index(drop=True)
    table["job_id"] = [f"draw{seed}-{i}" for i in range(count)]
    table["submit_s"] = np.sort(rng.uniform(0.0, SPAN_S / load_factor, count))
    return Workload(table)


def mean_jct_s(jobs: Workload, policy: str, profile: Profile) -> float:
    """Average JCT of one run in the honest world."""
    paper = "version=paper" in policy
    run = simulate(
        roomier(jobs) if paper else jobs,
        CLUSTER,
        policy=policy,
        model=Model(profile=profile, costs=costs()),
    )
    return float(run.jobs["jct_s"].mean())


def draws(base: Workload, profile: Profile) -> dict[str, Any]:
    """Repaired against paper and others on 20 drawn workloads, paired."""
    fits = ~infeasible(base, load_cluster(CLUSTER)).mask
    base = Workload(base.table[fits])
    names = ("easyscale", "easyscale:estimates=true", "easyscale:version=paper", *OTHERS)
    rows = []
    for seed in SEEDS:
        factor = LOADS[seed % len(LOADS)]
        jobs = drawn(base, seed, factor)
        found = {name: mean_jct_s(jobs, name, profile) for name in names}
        rows.append({"seed": seed, "load": factor, "jct_s": found})
    gains = {
        name: interval([r["jct_s"][name] / r["jct_s"]["easyscale"] for r in rows])
        for name in names
        if name != "easyscale"
    }
    return {"workloads": rows, "gain_of_easyscale_over": gains}


def interval(ratios: Sequence[float]) -> dict[str, float]:
    """Geometric mean of paired ratios, its 95 % bootstrap interval, and the worst pair."""
    logs = np.log(np.array(ratios))
    rng = np.random.default_rng(0)
    means = rng.choice(logs, (10_000, len(logs))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(np.exp(logs.mean())),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "worst": float(np.exp(logs.min())),
    }


@dataclass(frozen=True, kw_only=True)
class Timed(EasyScale):
    """Notes how long each plan takes, and for how many jobs it was."""

    def plan(self, view: ClusterView) -> Plan:
        """Plan, and note the processor time."""
        begin = time.process_time()
        made = super().plan(view)
        TIMES.append((time.process_time() - begin, len(view.elastic) + len(view.waiting)))
        return made


TIMES: list[tuple[float, int]] = []


def latency(base: Workload, profile: Profile, gpus: int) -> dict[str, float]:
    """Decisions with 1,000 jobs active: a job is submitted whenever one would end at rate 1."""
    nodes = gpus // 8
    spec = f"{nodes // 2}x8:v100:16,{nodes // 4}x8:p100:16,{nodes // 4}x8:t4:16"
    rng = np.random.default_rng(gpus)
    table = base.table.iloc[rng.integers(0, len(base), 2 * ACTIVE)].reset_index(drop=True)
    table["job_id"] = [f"job{i}" for i in range(len(table))]
    mean_s = 600.0
    table["duration_s"] = rng.exponential(mean_s, len(table))
    later = np.sort(rng.uniform(0.0, mean_s, ACTIVE))
    table["submit_s"] = np.concatenate((np.zeros(ACTIVE), later))
    TIMES.clear()
    begin = time.process_time()
    simulate(
        Workload(table),
        spec,
        policy=Timed(),
        model=Model(profile=profile, costs=costs()),
        misfits="reject",
        until_s=mean_s,
    )
    run_s = time.process_time() - begin
    seconds = np.array([t for t, active in TIMES if active >= 0.9 * ACTIVE])
    return {
        "gpus": gpus,
        "decisions": len(seconds),
        "active_jobs": float(np.mean([n for _, n in TIMES])),
        "mean_ms": 1e3 * float(seconds.mean()),
        "median_ms": 1e3 * float(np.median(seconds)),
        "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
        "decisions_per_s": 1.0 / float(seconds.mean()),
        "run_s": run_s,
    }


def philly(trace: Path, profile: Profile, count: int) -> dict[str, Any]:
    """Philly made elastic by a rule, on three types of GPUs."""
    jobs = make_elastic(load(trace).head(count), PHILLY_RULE, profile)
    rows = {}
    for name in ("easyscale", "easyscale:version=paper", "best-effort", "srtf", "tiresias"):
        begin = time.process_time()
        run = simulate(
            roomier(jobs) if "paper" in name else jobs,
            PHILLY_CLUSTER,
            policy=name,
            model=Model(profile=profile, costs=costs()),
            misfits="reject",
            untimed="reject",
        )
        jct = run.jobs["jct_s"].dropna()
        rows[name] = {
            "jobs": len(jct),
            "mean_jct_h": float(jct.mean()) / 3600,
            "median_jct_h": float(jct.median()) / 3600,
            "p99_jct_h": float(np.percentile(jct, 99)) / 3600,
            "resizes": int(run.jobs["resizes"].sum()),
            "preemptions": int(run.jobs["preemptions"].sum()),
            "processor_s": time.process_time() - begin,
        }
        print(name, json.dumps(rows[name]), flush=True)
    return {"cluster": PHILLY_CLUSTER, "rule": str(PHILLY_RULE), "policies": rows}


def main() -> None:
    """Run the parts."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", help="EasyScale's workload, a CSV")
    parser.add_argument("--profile", required=True, help="times of its applications")
    parser.add_argument("--philly", type=Path, help="the flat Philly trace; left out: no such part")
    parser.add_argument("--philly-jobs", type=int, default=PHILLY_JOBS)
    parser.add_argument("--parts", default="draws,latency,philly", help="joined by commas")
    parser.add_argument("--out", type=Path, default=here / "results" / "elastic.json")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    base = load(args.workload, "easyscale", options={"duplicates": "artifact"})
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    parts = args.parts.split(",")
    begin = time.process_time()
    if "draws" in parts:
        found["draws"] = draws(base, profile)
        found["draws"]["processor_s"] = time.process_time() - begin
        print(json.dumps(found["draws"]["gain_of_easyscale_over"], indent=1))
    if "latency" in parts:
        found["latency"] = [latency(base, profile, gpus) for gpus in GPUS]
        print(json.dumps(found["latency"], indent=1))
    if "philly" in parts and args.philly is not None:
        found["philly"] = philly(args.philly, profile, args.philly_jobs)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
