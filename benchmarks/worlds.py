"""What the real world costs a driver, and what an execution costs its jobs.

    python benchmarks/worlds.py [--out benchmarks/results/worlds.json] [--seconds 60]

Executes four LONGER jobs on the machine's lanes under ``easyscale``, sized from a quick profile so
that each would run about ``--seconds`` alone on one lane, and records:

- ``driver_ms_per_event``: what the driver does between two waits, policy, log and the agent's
  commands included, per event that its clock processed (aimed for: under 5 ms);
- ``plan_to_first_step_s``: from the command to the first step there, for starts and for rescales;
- ``not_training``: share of the held device time before a first step after a start or rescale, and
  between the last step and the release (aimed for: under 3 % for jobs of a minute and more).

Every job's bits are compared with those of the same job alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from executor.devices import parse_lanes
from executor.execute import execute
from executor.fingerprint import fingerprint
from executor.machine import probe
from executor.profiler import QUICK, profile
from traces import Profile, RunLog, Workload

MODEL, BATCH, WORKERS = "tiny:length=32", 16, 4


def workload(measured: Profile, seconds: float) -> Workload:
    """Four jobs, submitted a tenth of ``seconds`` apart."""
    rates = measured.rates(MODEL, BATCH, WORKERS)
    gpu_type = next(iter(rates.microbatch_s))
    step_s = WORKERS * rates.microbatch_s[gpu_type] + rates.update_s[gpu_type]
    return Workload.from_jobs(
        [
            {
                "job_id": f"job-{i}",
                "submit_s": i * seconds / 10,
                "num_gpus": 1,
                "num_workers": WORKERS,
                "min_gpus": 1,
                "max_gpus": 2,
                "model": MODEL,
                "batch_size": BATCH,
                "total_steps": round(seconds / step_s),
            }
            for i in range(4)
        ]
    )


def measure(seconds: float) -> dict[str, Any]:
    """Profile, execute, and read the numbers from the run's log."""
    machine = probe()
    lanes = list(parse_lanes("auto", machine))
    measured = profile([MODEL], [BATCH], lanes, machine, effort=QUICK).profile
    jobs = workload(measured, seconds)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = execute(jobs, lanes, profile=measured, out=out, policy="easyscale")
        training = RunLog.open(out).table("training")
    said, counts = done.record["executor"], done.record["counts"]
    device_s = said["device_s"]
    idle_s = sum(device_s.get(name, 0.0) for name in ("start", "rescale", "closing"))
    return {
        "machine": fingerprint(machine),
        "jobs": len(jobs),
        "mean_jct_s": float(done.jobs["jct_s"].mean()),
        "decisions": counts["decisions"],
        "resizes": counts["resizes"],
        "driver_ms_per_event": 1e3 * said["driver_s_per_event"],
        "plan_to_first_step_s": {
            "starts": said["start_s"],
            "median_start": statistics.median(said["start_s"]),
            "rescales": said["rescale_s"],
            "median_rescale": statistics.median(said["rescale_s"]) if said["rescale_s"] else None,
        },
        "not_training": idle_s / sum(device_s.values()),
        "same_bits": bool(training["same_bits"].all()),
    }


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "results" / "worlds.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    found = measure(args.seconds)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
