"""The demo: a generated week on 64 nodes of 8 GPUs under three policies, saved and compared.

Its second act is a workload of real training jobs, which the front door has executed.

The week is drawn by the Philly generator (``traces/synthetic``); its time is stretched (or
compressed) until it offers 90 % of the cluster, so that queues form and policies differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from policies.model import Costs, Model
from simulator.cluster import Checkpoints
from simulator.run import simulate
from traces import ClusterSpec
from traces.synthetic import generate

# The second act: six LONGER jobs, small enough for two CPU cores, executed and simulated.
TRAINING = """\
job_id,submit_s,num_gpus,num_workers,min_gpus,max_gpus,model,batch_size,total_steps
a,0,2,4,1,2,tiny:length=32,8,80
b,1,1,2,1,2,tiny:length=32,8,100
c,3,2,4,1,2,tiny:length=32,8,60
d,5,1,1,1,1,tiny:length=32,8,150
e,7,2,2,1,2,tiny:length=32,8,100
f,9,1,4,1,2,tiny:length=32,8,40
"""
CLUSTER = "64x8:v100:16"
POLICIES = ("fifo", "srtf", "tiresias:knob=4")


def demo(out: Path, *, seed: int, say: Callable[[str], object]) -> list[Path]:
    """Run the demo into directories below ``out``, replacing earlier ones; return them."""
    spec = ClusterSpec.parse(CLUSTER)
    week = generate("philly", seed=seed, days=7, load=0.9, cluster=spec, users=40)
    submit = week.table["submit_s"]
    days = float(submit.iloc[-1] - submit.iloc[0]) / 86_400
    say(f"{len(week):,} jobs in the manner of Philly, {days:.1f} days at 90 % of {CLUSTER}")
    say(
        f"{'policy':<16} {'mean JCT':>10} {'mean wait':>10}"
        f" {'preemptions':>12} {'simulated in':>13}"
    )
    runs = []
    for policy in POLICIES:
        path = out / policy.partition(":")[0]
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
        jct_h, wait_h = (result.jobs[c].mean() / 3600 for c in ("jct_s", "queueing_s"))
        preemptions = result.record["counts"]["preemptions"]
        say(
            f"{policy:<16} {jct_h:>8.1f} h {wait_h:>8.2f} h {preemptions:>12,}"
            f" {result.record['wall_s']:>11.1f} s"
        )
        runs.append(path)
    return runs
