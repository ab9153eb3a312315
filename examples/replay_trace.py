"""Replay a real trace: check it, run it under two policies, and write one report.

    python examples/replay_trace.py jobs.csv --format philly --cluster 64x8:v100

Without a file a generated day in the manner of Philly stands in. What ``check`` finds is printed
first: whether the jobs fit on this cluster at all, and what the loader repaired.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reports.html import write_report
from simulator import simulate
from traces import ClusterSpec, RunLog, Workload, generate, load
from traces.check import check

POLICIES = ("fifo", "srtf")


def replay(workload: Workload, cluster: str, out: Path) -> Path:
    """Check and replay a workload; return the path of the report."""
    spec = ClusterSpec.parse(cluster)
    for finding in check(workload, spec).findings:
        print(f"{finding.severity}: {finding.text}")
    runs = []
    for policy in POLICIES:
        result = simulate(workload, spec, policy=policy, misfits="reject", out=out / policy)
        jct_h = result.jobs["jct_s"].mean() / 3600
        print(f"{policy:6} mean JCT {jct_h:6.2f} h, {result.record['counts']['preemptions']} stops")
        runs.append(RunLog.open(out / policy))
    return write_report(runs, out / "report.html")


def main() -> None:
    """Read the command line, and say where the report is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--cluster", default="8x8:v100")
    parser.add_argument("--out")
    args = parser.parse_args()
    day = generate("philly", seed=3, days=1, load=0.8, cluster=ClusterSpec.parse(args.cluster))
    workload = day if args.trace is None else load(args.trace, format=args.format)
    out = Path(args.out or tempfile.mkdtemp(prefix="tandem-"))
    print(replay(workload, args.cluster, out))


if __name__ == "__main__":
    main()
