"""The demo: a generated week on 32 nodes of 8 GPUs under three policies, saved and compared.

The week is drawn by the Philly generator (``traces/synthetic``) and stretched until it offers 90 %
of the cluster, so that queues form and policies differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from policies.model import Costs, Model
from simulator.cluster import Checkpoints
from simulator.run import simulate
from traces import ClusterSpec
from traces.synthetic import generate

CLUSTER = "32x8:v100:8"
POLICIES = ("fifo", "srtf", "tiresias:knob=4")


def demo(out: Path, *, seed: int, say: Callable[[str], object]) -> list[Path]:
    """Run the demo into directories below ``out``, replacing earlier ones; return them."""
    spec = ClusterSpec.parse(CLUSTER)
    week = generate("philly", seed=seed, days=7, load=0.9, cluster=spec, users=40)
    say(f"generated {len(week):,} jobs: one week in the manner of Philly, at 90 % of {CLUSTER}")
    runs = []
    for policy in POLICIES:
        name = policy.partition(":")[0]
        path = out / name
        result = simulate(
            week,
            CLUSTER,
            policy=policy,
            placement="consolidated:require=false",
            out=path,
            overwrite=path.exists(),
            name=policy,
            seed=seed,
            model=Model(costs=Costs(start_s=10, restore_s=20, save_s=5)),
            checkpoints=Checkpoints(every_s=1800),
        )
        mean = result.jobs["jct_s"].mean()
        say(f"{policy}: mean JCT {mean:,.0f} s, {result.record['wall_s']:.1f} s of simulation")
        runs.append(path)
    return runs
