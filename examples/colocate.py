"""Training that lives on what an online service leaves idle.

A service needs 4 of 16 GPUs at night and 12 at noon. Elastic training fills the rest: it gives a
device back within seconds when the service asks, and comes back when it does not need it. Printed
is how much of the cluster was allocated with the service alone and with training beside it, and how
long the service ever waited for a device.

    python examples/colocate.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from policies.model import Costs, Model
from policies.services import Diurnal, Service
from reports.metrics import metrics
from simulator import simulate
from traces import RunLog, Workload

CLUSTER = "2x8:a100"
GIVE_WAY_S = 10.0


def training(jobs: int) -> Workload:
    """Jobs of eight logical workers that run on one to eight GPUs, one every half hour."""
    return Workload.from_jobs(
        [
            {
                "job_id": f"train-{i:02}",
                "submit_s": 1800.0 * i,
                "duration_s": 7200.0,
                "num_gpus": 8,
                "num_workers": 8,
                "min_gpus": 0,
                "max_gpus": 8,
                "priority": "opportunistic",
            }
            for i in range(jobs)
        ]
    )


def main() -> None:
    """Run the service beside training for a day, and print what it did to both."""
    service = Service(
        demand=Diurnal(low=4, high=12), gpu_type="a100", give_way_s=GIVE_WAY_S, linger_s=60.0
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = simulate(
            training(24),
            CLUSTER,
            policy="easyscale",
            model=Model(costs=Costs(start_s=10.0, rescale_s=5.0)),
            services=[service],
            out=out,
        )
        found = metrics(RunLog.open(out))
    finished = int(result.jobs["jct_s"].notna().sum())
    print(f"{finished} of {len(result.jobs)} training jobs finished, none failed")
    for name in sorted(n for n in found if "serving" in n or n == "allocation_ratio"):
        print(f"{name:32} {found[name]}")


if __name__ == "__main__":
    main()
