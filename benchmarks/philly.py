"""The README's table and figure: the whole Philly trace under every queue discipline.

    python benchmarks/philly.py TRACE

TRACE is the flat Philly CSV (``tandem traces fetch philly`` says where it comes from). Writes
``benchmarks/results/philly.json`` and ``docs/figures/philly-jct.svg``, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from reports.figures import duration_cdf
from reports.metrics import metrics
from reports.style import paper, svg
from simulator import simulate
from traces import RunLog, load

CLUSTER = "64x8:v100"
POLICIES = (
    "fifo",
    "conservative",
    "easy",
    "best-effort",
    "sjf",
    "las",
    "tiresias",
    "gittins",
    "srtf",
    "srsf",
)
DRAWN = ("fifo", "easy", "best-effort", "tiresias", "srtf")
COLUMNS = (
    "mean_jct_s",
    "median_jct_s",
    "p99_jct_s",
    "mean_queueing_s",
    "allocation_ratio",
    "preemptions",
)


def main() -> None:
    """Run them all."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", help="the flat Philly trace")
    parser.add_argument("--out", type=Path, default=here / "results" / "philly.json")
    parser.add_argument("--figure", type=Path, default=here.parent / "docs/figures/philly-jct.svg")
    args = parser.parse_args()
    workload = load(args.trace)
    rows: list[dict[str, Any]] = []
    curves = {}
    print(
        "| policy | mean JCT | median JCT | p99 JCT | mean wait | allocation ratio | preemptions |"
    )
    print("|---|---|---|---|---|---|---|")
    for policy in POLICIES:
        with tempfile.TemporaryDirectory() as scratch:
            result = simulate(workload, CLUSTER, policy=policy, out=Path(scratch) / "run")
            found = metrics(RunLog.open(Path(scratch) / "run"))
        row = {"policy": policy, **{name: found[name] for name in COLUMNS}}
        rows.append(row)
        if policy in DRAWN:
            curves[policy] = result.jobs["jct_s"].to_numpy()
        hours = [f"{row[name] / 3600:,.1f} h" for name in COLUMNS[:4]]
        print(
            f"| `{policy}` | {' | '.join(hours)} | {row['allocation_ratio']:.3f} |"
            f" {row['preemptions']:,} |",
            flush=True,
        )
    args.out.write_text(
        json.dumps(
            {"trace": workload.digest(), "jobs": len(workload), "cluster": CLUSTER, "rows": rows},
            indent=1,
        )
        + "\n"
    )
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    with paper() as (drawing, ax):
        duration_cdf(ax, curves, "job completion time")
        drawing.patch.set(facecolor="white", alpha=1.0)
        args.figure.write_text(svg(drawing))
    print(f"written: {args.out}, {args.figure}")


if __name__ == "__main__":
    main()
