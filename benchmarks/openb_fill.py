"""How full does each placement get a cluster? The fill experiment of the FGD paper, on openb.

"Beware of Fragmentation" (Weng et al., ATC'23, section 6): pods are drawn at random, with
replacement, from the openb trace until they ask for 130 % of the cluster's GPUs, and arrive one by
one; none leaves, and one that fits nowhere is turned away. What counts is the share of GPUs
allocated at the end (a shared GPU counts by its part). Times are not used.

Run: ``python benchmarks/openb_fill.py --data DIR`` with ``pods.csv.gz`` and ``nodes.csv`` in DIR;
numbers go to ``benchmarks/results/openb_fill.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from policies.contract import PlacementPolicy
from policies.free import FreeGpus
from policies.placement.fragmentation import Fragmentation, typical
from policies.registry import make_placement
from traces import ClusterSpec, Request, Workload
from traces.formats.openb import read, read_nodes

PLACEMENTS = ("fgd", "fgd:score=exact", "best-fit", "count", "spread")
LOAD = 1.3


def draw(workload: Workload, spec: ClusterSpec, seed: int) -> list[Request]:
    """Draw requests until they ask for ``LOAD`` times the cluster's GPUs."""
    rng = np.random.default_rng(seed)
    wanted = LOAD * spec.num_gpus
    drawn: list[Request] = []
    asked = 0.0
    while asked < wanted:
        for i in rng.integers(len(workload), size=1024).tolist():
            request = workload.requests[workload.request_of[i]]
            drawn.append(request)
            asked += request.gpus
            if asked >= wanted:
                break
    return drawn


def fill(placement: PlacementPolicy, requests: list[Request], spec: ClusterSpec) -> FreeGpus:
    """Place what can be placed, in order of arrival; return what is left free."""
    free = FreeGpus(spec)
    for request in requests:
        allocation = placement.place(request, free)
        if allocation is not None:
            free.take(allocation, request)
    return free


def idle_gpus(free: FreeGpus) -> float:
    """GPUs not allocated, shares as fractions."""
    return sum(pool.free + pool.share_milli / 1000 for pool in free.pools)


def main() -> None:
    """Run all placements over all seeds and write the numbers."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=here.parents[1] / "shared/data/openb")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=here / "results" / "openb_fill.json")
    arguments = parser.parse_args()
    spec = read_nodes(arguments.data / "nodes.csv")
    workload = read(arguments.data / "pods.csv.gz", {})
    demand = Counter(workload.requests[i] for i in workload.request_of.tolist())
    measure = Fragmentation(typical(demand))
    results: dict[str, Any] = {}
    for name in PLACEMENTS:
        rows = []
        for seed in arguments.seeds:
            requests = draw(workload, spec, seed)
            began = time.perf_counter()
            free = fill(make_placement(name).prepare(demand), requests, spec)
            took = time.perf_counter() - began
            idle = idle_gpus(free)
            rows.append(
                {
                    "seed": seed,
                    "pods": len(requests),
                    "allocated_share": round(1 - idle / spec.num_gpus, 6),
                    "idle_gpus": round(idle, 3),
                    "fragmented_gpus": round(sum(measure(free)), 3),
                    "seconds": round(took, 2),
                }
            )
            print(name, rows[-1], flush=True)
        mean = statistics.fmean(row["allocated_share"] for row in rows)
        results[name] = {"mean_allocated_share": round(mean, 6), "runs": rows}
    report = {
        "what": "share of GPUs allocated after pods that ask for 130 % of them have arrived",
        "source": "openb pods.csv.gz, nodes.csv (Alibaba clusterdata, gpu-v2023)",
        "nodes": len(spec.nodes),
        "gpus": spec.num_gpus,
        "load": LOAD,
        "published": {"fgd": 0.953, "from": "a sample in the FGD repository's README"},
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
