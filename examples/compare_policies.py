"""Sweep the load under three policies: one generated week, stretched to offer more or less.

Prints the mean JCT in hours by offered load and policy. The jobs are the same at every load; only
the time between their submissions changes.

    python examples/compare_policies.py --days 7 --seed 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd

from simulator import simulate
from traces import ClusterSpec, generate, scale_to_load

CLUSTER = "32x8:v100"
POLICIES = ("fifo", "srtf", "tiresias:knob=4")
LOADS = (0.6, 0.7, 0.8, 0.9, 1.0)


def sweep(
    days: float, seed: int, loads: Sequence[float] = LOADS, policies: Sequence[str] = POLICIES
) -> pd.DataFrame:
    """Return the mean JCT in hours: a row per offered load, a column per policy."""
    cluster = ClusterSpec.parse(CLUSTER)
    drawn = generate("philly", seed=seed, days=days)
    table = pd.DataFrame(index=pd.Index(loads, name="load"), columns=list(policies), dtype=float)
    for load in loads:
        week = scale_to_load(drawn, load, cluster)
        for policy in policies:
            jobs = simulate(week, cluster, policy=policy, seed=seed).jobs
            table.loc[load, policy] = jobs["jct_s"].mean() / 3600
    return table


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    table = sweep(args.days, args.seed)
    print(f"mean JCT, hours, {args.days:g} days in the manner of Philly on {CLUSTER}")
    print(table.to_string(float_format=lambda hours: f"{hours:.2f}"))


if __name__ == "__main__":
    main()
