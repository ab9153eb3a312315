"""GPUs held over time, as the artifact plans and repaired, against EasyScale's published curve.

    python benchmarks/easyscale_curve.py WORKLOAD --profile FILE [--published FIG15] [--figure SVG]

WORKLOAD is the artifact's; FIG15 its table of allocated GPUs every 60 s (Figure 15: time, preferred
types, mixed types). Prints the mean and largest distance of ours from it, one round later (the
artifact stamps what a round decides with the instant before it), writes
``benchmarks/results/easyscale_curve.json``, and draws the four curves if asked to.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from policies.inter.easyscale import PAPER_ROUND_S
from policies.model import Costs, Model
from policies.registry import make_policy
from reports.series import series
from reports.style import legend, line, paper, svg
from reports.tables import read
from simulator.artifact import ArtifactModel
from simulator.reproduce import CLUSTER, PAUSE_S, roomier
from simulator.run import simulate
from traces import RunLog, load
from traces.profile_sources import load_profile

RUNS = (
    ("as the artifact plans, preferred types", "easyscale:version=paper,types=preferred", 0),
    ("as the artifact plans, mixed types", "easyscale:version=paper", 1),
    ("repaired, preferred types", "easyscale:types=preferred", None),
    ("repaired, mixed types", "easyscale", None),
)


def held(workload: str, profile: str, policy: str, times_s: Any) -> Any:
    """GPUs held at these instants: the artifact's policies in its own world, ours in the honest."""
    jobs = load(workload, "easyscale", options={"duplicates": "artifact"})
    times = load_profile(profile)
    made = make_policy(policy)
    model = Model(profile=times, costs=Costs(start_s=PAUSE_S, rescale_s=PAUSE_S))
    if "version=paper" in policy:
        types = "preferred" if "types=preferred" in policy else "mixed"
        model = ArtifactModel(profile=times, costs=Costs(start_s=PAUSE_S), types=types)
        jobs = roomier(jobs)
    with tempfile.TemporaryDirectory() as folder:
        simulate(jobs, CLUSTER, policy=made, model=model, out=Path(folder) / "run")
        tables = read(RunLog.open(Path(folder) / "run"))
        return series(tables).total("allocated").at(times_s)


def main() -> None:
    """Run, compare, draw."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--published", help="the artifact's table of allocated GPUs")
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--out", type=Path, default=here / "results" / "easyscale_curve.json")
    args = parser.parse_args()
    times_s = np.arange(0.0, 6_800.0, PAPER_ROUND_S)
    curves = {n: held(args.workload, args.profile, p, times_s) for n, p, _ in RUNS}
    found: dict[str, Any] = {n: {"mean_gpus": float(c.mean())} for n, c in curves.items()}
    published: Any = None
    if args.published is not None:
        published = np.loadtxt(args.published, skiprows=1)
        for name, policy, column in RUNS:
            if column is not None:
                at_s = published[:, 0] + PAPER_ROUND_S
                ours = held(args.workload, args.profile, policy, at_s)
                distance = np.abs(ours - published[:, 1 + column])
                found[name] |= {
                    "mean_distance_gpus": float(distance.mean()),
                    "largest_distance_gpus": float(distance.max()),
                }
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.figure is not None:
        draw(args.figure, times_s, curves, published)


def draw(path: Path, times_s: Any, curves: dict[str, Any], published: Any) -> None:
    """The curves, and the published ones thin and dashed beside them."""
    with paper(7.4, 3.2) as (drawing, ax):
        for index, (name, curve) in enumerate(curves.items()):
            ax.step(times_s / 60.0, curve, where="post", label=name, **line(index))
        if published is not None:
            for column in (1, 2):
                ax.plot(
                    published[:, 0] / 60.0 + 1.0,
                    published[:, column],
                    color=line(column - 1)["color"],
                    linewidth=0.8,
                    linestyle=":",
                    label="published" if column == 1 else None,
                )
        ax.set_xlabel("time since the trace's origin (minutes)")
        ax.set_ylabel("GPUs held")
        ax.set_ylim(0, 66)
        legend(ax, beside=True)
        path.write_text(svg(drawing), encoding="utf-8")


if __name__ == "__main__":
    main()
