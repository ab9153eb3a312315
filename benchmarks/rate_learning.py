"""What does a wrong profile cost a job, and how soon does learning from progress win it back?

Jobs of 4 to 64 logical workers on 2 to 4 GPU types, a few GPUs of each. The policy believes one
profile; the truth differs from it by lognormal factors per GPU type (log-deviation ``bias``), and
every observation by a further 2 %. In rounds: plan with what is believed, run, observe, learn, plan
again. Written down is the step time of the planned map in the truth, over that of the best map.
``steps``: the job reports its step time alone; ``devices``: each device reports its own.

Run: ``python benchmarks/rate_learning.py``; it writes ``benchmarks/results/rate_learning.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from policies.intra.balance import best, spread
from policies.intra.learning import Memory, learned, observe, observe_devices
from policies.rates import Distortion, Layout, device_s, step_time_of
from traces.profile import JobRates

TYPES = ("v100", "p100", "t4", "k80")
ROUNDS = 8
NOISE = 0.02


def layout_of(rates: JobRates, workers: int, gpus: tuple[int, ...]) -> Layout:
    """Return the best map for what is believed."""
    fit = best(rates, workers, gpus, workers)
    assert fit is not None
    counts = spread(rates, workers, fit.gpus)
    return tuple((t, c) for t, some in zip(rates.microbatch_s, counts, strict=True) for c in some)


def regrets(rng: np.random.Generator, seed: int, bias: float, reports: str) -> list[float]:
    """Step time over the best one's, less 1, in each round."""
    types = TYPES[: int(rng.integers(2, 5))]
    believed = JobRates.plain({t: float(s) for t, s in zip(types, rng.uniform(0.2, 1, 4))})  # noqa: B905
    truth = Distortion(seed=seed, bias=bias).rates(believed)
    workers = int(2 ** rng.integers(2, 7))
    gpus = tuple(int(n) for n in rng.integers(1, 5, len(types)))
    if sum(gpus) > workers:
        gpus = (1,) * len(types)
    optimum_s = step_time_of(truth, layout_of(truth, workers, gpus)).total_s
    memory, found = Memory(), []
    for _ in range(ROUNDS):
        layout = layout_of(learned(believed, memory), workers, gpus)
        step_s = step_time_of(truth, layout).total_s
        found.append(step_s / optimum_s - 1.0)
        if reports == "devices":
            seen = [
                (t, c, device_s(truth, t, c) * float(np.exp(rng.normal(0.0, NOISE))))
                for t, c in layout
            ]
            memory = observe_devices(memory, believed, seen)
        else:
            noisy_s = step_s * float(np.exp(rng.normal(0.0, NOISE)))
            memory = observe(memory, believed, layout, noisy_s)
    return found


def measure(jobs: int, bias: float, reports: str) -> dict[str, Any]:
    """Mean regret by round, and its 95th percentile in the first and last."""
    rows = [regrets(np.random.default_rng(job), job, bias, reports) for job in range(jobs)]
    return {
        "mean_by_round": [round(statistics.fmean(column), 4) for column in zip(*rows, strict=True)],
        "p95_first": round(float(np.quantile([row[0] for row in rows], 0.95)), 4),
        "p95_last": round(float(np.quantile([row[-1] for row in rows], 0.95)), 4),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/rate_learning.json"
    )
    args = parser.parse_args()
    document = {
        "what": "step time of the planned map in the truth over the best one's, less 1",
        "jobs": args.jobs,
        "rounds": ROUNDS,
        "observation_noise": NOISE,
        "results": {
            f"bias {bias:g}, {reports}": measure(args.jobs, bias, reports)
            for bias in (0.0, 0.2, 0.5)
            for reports in ("steps", "devices")
        },
    }
    args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document["results"], indent=2))


if __name__ == "__main__":
    main()
