"""How far simulation and execution are apart, for every shipped policy: docs/fidelity.md's table.

    python benchmarks/fidelity.py --out runs/fidelity      # half an hour on a machine left alone
    python benchmarks/fidelity.py --table

Profiles the machine's lanes, then executes and simulates ``examples/fidelity.csv`` under each
policy (``tandem validate``): five times under the four that fidelity is asked of, twice under each
other one. Policies whose thresholds and rounds are meant for jobs of hours get some for jobs of
seconds. A workload decides much where decisions hinge on fractions of a second, so the profile's
jobs are also simulated with all steps by up to 8 % faster and slower: from which error on does the
simulated world decide otherwise?
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from executor.cluster import cluster_of
from executor.devices import parse_lanes
from executor.execute import costs_of
from executor.machine import probe
from executor.pace import at_pace
from policies.model import Model
from reports.fidelity import decisions, open_validation
from simulator.run import simulate
from traces import ClusterSpec, Profile, RunLog, load
from traces.profile_sources import load_profile

ROOT = Path(__file__).resolve().parent.parent
WORKLOAD = ROOT / "examples" / "fidelity.csv"
RESULT = ROOT / "benchmarks" / "results" / "fidelity.json"
ASKED = ("fifo", "srtf", "tiresias:thresholds=4;10", "easyscale")
OTHERS = (
    *("best-effort", "easy", "conservative", "sjf", "srsf", "las:quantum_gpu_s=4"),
    *("gittins:levels=1;2;4;8;16", "quota", "yarn-cs", "easyscale:version=paper"),
    *("afs", "optimus:round_s=5", "static-share"),
)
ERRORS = (0.02, 0.04, 0.06, 0.08)


def tandem(*args: str) -> None:
    """Run a command of ours; end with it if it fails."""
    subprocess.run([sys.executable, str(ROOT / "tandem.py"), *args], check=True)


@cache
def lanes() -> ClusterSpec:
    """Return this machine's lanes as a cluster."""
    return cluster_of(list(parse_lanes("auto", probe())))[0]


def decided(policy: str, profile: Profile, factor: float) -> list[str]:
    """Return the decisions in the simulated world, in order."""
    workload = load(WORKLOAD)
    slower = at_pace(profile, {node.gpu_type: factor for node in lanes().nodes})
    model = Model(profile=slower, costs=costs_of(profile, workload))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(workload, lanes(), policy=policy, model=model, intra="companion", out=out)
        return [what for what, _ in decisions(RunLog.open(out))]


def margin(policy: str, profile: Profile) -> float | None:
    """Return the least of ``ERRORS`` at which other decisions are taken, None if none is."""
    usual = decided(policy, profile, 1.0)
    for error in ERRORS:
        if any(decided(policy, profile, 1.0 + sign * error) != usual for sign in (-1, 1)):
            return error
    return None


def validated(out: Path, name: str, policies: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Execute and simulate; return the numbers by policy."""
    chosen = [word for policy in policies for word in ("--policy", policy)]
    known = ["--profile", str(out / "profile.json"), "--repeats", str(repeats), "--at-pace"]
    tandem("validate", str(WORKLOAD), *chosen, *known, "--out", str(out / name))
    return numbers(out / name, load_profile(out / "profile.json"))


def numbers(folder: Path, measured: Profile) -> list[dict[str, Any]]:
    """Return the numbers of a validation by policy."""
    manifest = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    paces = [pace for pair in manifest["pairs"] for pace in pair["paces"]]
    usual = {kind: fmean(pace[kind] for pace in paces) for kind in paces[0]}
    profile = at_pace(measured, usual)
    return [
        one.as_dict()
        | {"decides_otherwise_at": margin(one.policy, profile)}
        | {
            name: [pair[name] for pair in manifest["pairs"] if pair["policy"] == one.policy]
            for name in ("paces", "pace")
        }
        for one in open_validation(folder)
    ]


def measure(out: Path, repeats: int, of_others: int) -> dict[str, Any]:
    """Profile, then validate under all policies."""
    out.mkdir(parents=True)
    elastic = [job.elastic for job in load(WORKLOAD).jobs()]
    said = []
    for one in dict.fromkeys((e.model, e.batch_size) for e in elastic if e is not None):
        said += ["--model", str(one[0]), "--batch", str(one[1])]
    tandem("profile", *said, "--out", str(out / "profile.json"))
    rows = validated(out, "asked", ASKED, repeats) if repeats else []
    rows += validated(out, "others", OTHERS, of_others) if of_others else []
    profile = load_profile(out / "profile.json")
    return {"machine": profile.machine, "notes": profile.notes, "policies": rows}


def table(found: dict[str, Any]) -> str:
    """Return the page's table, in Markdown."""
    lines = [
        "| policy | runs | JCT error | 95th percentile | makespan error | bias | decided alike"
        " | JCT error at the run's pace | decided alike | decides otherwise from | bits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["policies"]:
        runs, paced, at = row["repeats"], row["at_pace"], row["decides_otherwise_at"]
        cells = [
            f"`{row['policy']}`",
            str(runs),
            *(_error(row[name]) for name in ("mean_error", "p95_error", "makespan_error")),
            f"{row['bias']['value']:+.1%}",
            f"{row['decided_alike']} of {runs}",
            _error(paced["mean_error"]),
            f"{paced['decided_alike']} of {runs}",
            f"{at:.0%}" if at else f"over {ERRORS[-1]:.0%}",
            f"{row['same_bits']} equal, {row['other_bits']} other",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _error(value: dict[str, Any]) -> str:
    """A mean, with its interval if there is one."""
    mean, interval = value["value"], value["interval"]
    if interval is None:
        return f"{mean:.1%}"
    return f"{mean:.1%} [{interval[0]:.1%} to {interval[1]:.1%}]"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for all runs; must not exist")
    parser.add_argument("--repeats", type=int, default=5, help="under the four asked of")
    parser.add_argument("--others", type=int, default=2, help="repeats under each other policy")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file")
    parser.add_argument("--table", action="store_true", help="make the table from the JSON file")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.result.read_text(encoding="utf-8"))))
        return
    if args.out is None:
        parser.error("--out DIR is needed")
    found = measure(args.out, args.repeats, args.others)
    args.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
