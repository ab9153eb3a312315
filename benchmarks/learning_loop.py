"""What learning in the loop is worth when a profile is wrong (docs/policies/intra.md).

``python benchmarks/learning_loop.py WORKLOAD PROFILE``: EasyScale's 62 jobs on its cluster under
``easyscale``, every start and change 20 s; the truth differs from the profile that is believed by a
lognormal factor on micro-batch times, per model and type (bias) and per job and type (noise).
Average JCT without learning and with it, over seeds, on the same draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from policies.learner import Learning
from policies.model import Costs, Model
from policies.rates import Distortion
from simulator.run import simulate
from traces import load
from traces.profile_sources import load_profile

CLUSTER = "4x8:v100,2x8:p100,2x8:t4"
SETTINGS = ((0.0, 0.0), (0.0, 0.5), (0.3, 0.0), (0.3, 0.5), (0.6, 0.0), (0.6, 0.5))
WAYS: dict[str, Learning | None] = {
    "blind": None,
    "learning": Learning(),
    "without fallback": Learning(fallback=False),
}


def measure(workload: str, profile_file: str, seeds: int) -> list[dict[str, Any]]:
    """One row per setting: average JCT (s) by way, and on how many seeds learning is better."""
    profile = load_profile(profile_file)
    jobs = load(workload, "easyscale", options={"duplicates": "artifact"})
    costs = Costs(start_s=20.0, rescale_s=20.0)
    believed = Model(profile=profile, costs=costs)
    rows: list[dict[str, Any]] = []
    for bias, noise in SETTINGS:
        jct_s: dict[str, list[float]] = {name: [] for name in WAYS}
        for seed in range(1, 1 + (seeds if bias or noise else 1)):
            wrong = Distortion(seed=seed, bias=bias, noise=noise)
            truth = Model(profile=profile, costs=costs, distortion=wrong)
            for name, way in WAYS.items():
                run = simulate(
                    jobs, CLUSTER, policy="easyscale", model=truth, believed=believed, learning=way
                )
                jct_s[name].append(float(run.jobs["jct_s"].mean()))
        better = sum(a < b for a, b in zip(jct_s["learning"], jct_s["blind"], strict=True))
        row: dict[str, Any] = {"bias": bias, "noise": noise, "seeds": len(jct_s["blind"])}
        row |= {name: round(sum(v) / len(v), 1) for name, v in jct_s.items()}
        rows.append(row | {"better": better})
        print(row | {"better": better}, flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload")
    parser.add_argument("profile")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/learning_loop.json")
    args = parser.parse_args()
    found = measure(args.workload, args.profile, args.seeds)
    Path(args.out).write_text(json.dumps({"rows": found}, indent=1) + "\n", encoding="utf-8")
