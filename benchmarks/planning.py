"""How long does a plan for one elastic job take? At 64 logical workers and 4 GPU types.

Each question is asked cold, as if nothing about it had been asked before (memos emptied), and again
with the job's times merged but the GPUs new, as a run asks: a job keeps its rates for life. A plan
is the best worker map by type and its Equation 1; a map is ``assign`` on devices; proposals are all
increments of all types. Half of the jobs pay for switches, updates and reductions, half do not.

Run: ``python benchmarks/planning.py``; numbers go to ``benchmarks/results/planning.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from policies.intra import balance, growth
from policies.intra.companion import Companion
from policies.rates import step_time_of
from traces import Elastic, Profile
from traces.profile import ModelProfile, ReduceCost
from traces.workermap import Gpu

TYPES = ("v100", "p100", "t4", "k80")
WORKERS = 64
MOST_GPUS = 16
FREE = dict.fromkeys(TYPES, 16)


def profile_of(rng: np.random.Generator, *, costs: bool) -> Profile:
    """A profile of one model with times drawn between 0.1 and 1 s."""
    seconds = {t: float(s) for t, s in zip(TYPES, rng.uniform(0.1, 1.0, 4), strict=True)}
    if not costs:
        return Profile(models={"m": ModelProfile(microbatch_s={8: seconds})}, origin="analytic")
    model = ModelProfile(
        microbatch_s={8: seconds},
        switch_s={t: 0.003 * s for t, s in seconds.items()},
        update_s={t: 0.05 * s for t, s in seconds.items()},
        gradient_bytes=4e8,
    )
    reduce = ReduceCost(latency_s=1e-4, bytes_per_s=5e9)
    return Profile(models={"m": model}, origin="analytic", reduce=reduce)


def gpus_of(rng: np.random.Generator) -> list[Gpu]:
    """1 to 16 GPUs of each type, eight to a node."""
    return [
        Gpu(node * 2 + i // 8, i % 8, t)
        for node, t in enumerate(TYPES)
        for i in range(int(rng.integers(1, MOST_GPUS + 1)))
    ]


def forget(*, rates_too: bool) -> None:
    """Empty the memos."""
    balance.best.cache_clear()
    growth.growths.cache_clear()
    step_time_of.cache_clear()
    if rates_too:
        balance.ladder.cache_clear()
        balance._reductions.cache_clear()


def timed(ask: Callable[[], Any]) -> float:
    """Milliseconds of processor time of one answer."""
    start = time.process_time_ns()
    ask()
    return (time.process_time_ns() - start) / 1e6


def spread(times_ms: list[float]) -> dict[str, float]:
    """Median, 99th percentile and greatest."""
    return {
        "median_ms": round(statistics.median(times_ms), 4),
        "p99_ms": round(float(np.quantile(times_ms, 0.99)), 4),
        "max_ms": round(max(times_ms), 4),
    }


def measure(questions: int, seed: int) -> dict[str, Any]:
    """Ask ``questions`` of each kind."""
    rng = np.random.default_rng(seed)
    companion = Companion()
    job = Elastic(num_workers=WORKERS, max_gpus=WORKERS, mixes_types=True, model="m", batch_size=8)
    found: dict[str, list[float]] = {}
    for number in range(questions):
        costs = bool(number % 2)
        profile = profile_of(rng, costs=costs)
        gpus = gpus_of(rng)
        counts = {t: sum(gpu.gpu_type == t for gpu in gpus) for t in TYPES}
        profile.rates("m", 8)
        asks: dict[str, Callable[[], Any]] = {
            "plan": lambda c=counts, p=profile: companion.plan(job, c, p),  # type: ignore[misc]
            "map": lambda g=gpus, p=profile: companion.assign(job, g, p),  # type: ignore[misc]
            "proposals": lambda c=counts, p=profile: companion.proposals(  # type: ignore[misc]
                job, {t: n // 2 for t, n in c.items()}, FREE, p
            ),
        }
        for name, ask in asks.items():
            kind = f"{name}, {'with' if costs else 'no'} communication"
            forget(rates_too=True)
            found.setdefault(f"{kind}, cold", []).append(timed(ask))
            forget(rates_too=False)
            found.setdefault(f"{kind}, new GPUs", []).append(timed(ask))
    return {name: spread(times) for name, times in sorted(found.items())}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/planning.json")
    args = parser.parse_args()
    document = {
        "what": "processor time of one answer about one elastic job",
        "workers": WORKERS,
        "gpu_types": len(TYPES),
        "gpus_per_type": f"1 to {MOST_GPUS}",
        "questions": args.questions,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "results": measure(args.questions, args.seed),
    }
    args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document["results"], indent=2))


if __name__ == "__main__":
    main()
