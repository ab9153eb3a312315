"""``tandem validate``: execute a workload, simulate it from the profile, and compare.

A command made of other commands, which it reaches through the front door: ``profile`` (if none is
given), ``execute`` for every policy and repeat, ``run`` on the log that the execution left, as a
trace, under the same policy, from the profile and again at the pace that the execution turned out
to have, and ``fidelity``, which reads the folder that all of it is in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from traces.errors import UsageError

_VALIDATE = """example:
  tandem validate jobs.csv --policy fifo --policy easyscale --repeats 5 --out runs/validation
"""
_POLICIES = ("fifo", "srtf", "tiresias", "easyscale")
_MANIFEST = "validation.json"


def add_validate(subparsers: Any) -> None:
    """Register the command."""
    validate = subparsers.add_parser(
        "validate",
        help="execute a workload, simulate it from the profile, and say how far apart they are",
        description="Execute a workload on this machine's devices under each policy, simulate the"
        " log of each execution from the profile under the same policy, and write one page that"
        " compares them.",
        epilog=_VALIDATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    validate.add_argument("trace", metavar="WORKLOAD", help="job table with elastic jobs")
    validate.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME[:param=value,...]",
        help=f"may be repeated (default: {', '.join(_POLICIES)})",
    )
    validate.add_argument("--placement", default="count", metavar="NAME[:param=value,...]")
    validate.add_argument("--intra", default="companion", metavar="NAME[:param=value,...]")
    validate.add_argument("--devices", default="auto", metavar="LANES", help="see `tandem devices`")
    validate.add_argument(
        "--profile", metavar="FILE", help="what `tandem profile` measured (default: measured now)"
    )
    validate.add_argument("--repeats", type=int, default=1, metavar="N", help="default: 1")
    validate.add_argument("--seed", type=int, default=0, help="of models and data (default: 0)")
    validate.add_argument("--out", required=True, metavar="DIR", help="folder for all of it")
    validate.add_argument("--quick", action="store_true", help="a quick profile")
    validate.add_argument(
        "--at-pace",
        action="store_true",
        help="before and after each execution time steps again, and scale the profile by them: for"
        " a machine whose speed drifts",
    )
    validate.add_argument("--no-verify", action="store_true", help="do not compare jobs' bits")
    validate.add_argument("--json", action="store_true", help="print the numbers as JSON")
    validate.add_argument("--quiet", action="store_true", help="no progress")
    validate.set_defaults(run=_validate)


def _validate(args: argparse.Namespace) -> int:
    from executor.cli import need_torch

    need_torch()
    if args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: expected 1 or more")
    folder = Path(args.out)
    if (folder / _MANIFEST).exists():
        raise UsageError(f"--out {folder}: holds a validation already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if args.profile is None:
        _profile(args, folder)
    else:
        text = Path(args.profile).read_text(encoding="utf-8")
        (folder / "profile.json").write_text(text, encoding="utf-8")
    world = _world(args, folder)
    pairs: list[dict[str, Any]] = []
    for repeat in range(args.repeats):  # policies take turns, so that a slow hour meets them all
        for policy in args.policy or _POLICIES:
            pairs.append(_pair(args, folder, world, policy, repeat))
            (folder / _MANIFEST).write_text(json.dumps({"pairs": pairs}, indent=1))
    said = ["fidelity", str(folder)]
    return int(args.tandem([*said, "--json"] if args.json else said))


def _profile(args: argparse.Namespace, folder: Path) -> None:
    """Measure what the workload needs."""
    cases = _cases(args)
    command = ["profile", "--lanes", args.devices, "--out", str(folder / "profile.json")]
    for model in sorted({model for model, _ in cases}):
        command += ["--model", model]
    for batch in sorted({batch for _, batch in cases}):
        command += ["--batch", str(batch)]
    _step(args, [*command, *(["--quick"] if args.quick else [])])


def _world(args: argparse.Namespace, folder: Path) -> list[str]:
    """What the simulated world is, as arguments of ``tandem run``; the inventory goes to a file."""
    import pandas as pd

    from executor.cluster import cluster_of
    from executor.devices import parse_lanes
    from executor.execute import costs_of
    from executor.machine import probe
    from traces import load
    from traces.profile_sources import load_profile

    spec, _ = cluster_of(list(parse_lanes(args.devices, probe())))
    rows = [
        {"node": node.name, "gpu_type": node.gpu_type, "num_gpus": node.num_gpus}
        for node in spec.nodes
    ]
    pd.DataFrame(rows).to_csv(folder / "nodes.csv", index=False)
    costs = costs_of(load_profile(folder / "profile.json"), load(args.trace))
    said = ["--cluster", str(folder / "nodes.csv")]
    for name in ("start", "save", "rescale"):
        said += ["--cost", f"{name}={getattr(costs, f'{name}_s')!r}"]
    said += ["--cost", f"drain={costs.drain_steps!r}"]
    return [*said, "--placement", args.placement, "--intra", args.intra]


def _pair(
    args: argparse.Namespace, folder: Path, world: Sequence[str], policy: str, repeat: int
) -> dict[str, Any]:
    """Execute once and simulate what was executed."""
    name = f"{_safe(policy)}-{repeat + 1}"
    profile = folder / "profile.json"
    paces: list[dict[str, float]] = []
    if args.at_pace:
        profile = folder / f"profile-{name}.json"
        paces.append(_pace(args, folder))
        _scaled(folder, paces, profile)
    executed, simulated = f"executed-{name}", f"simulated-{name}"
    command = ["execute", args.trace, "--policy", policy, "--placement", args.placement]
    command += ["--intra", args.intra, "--devices", args.devices, "--seed", str(args.seed)]
    command += ["--profile", str(profile), "--out", str(folder / executed)]
    command += ["--references", str(folder / "digests.json"), "--checkpoint-every", "0"]
    _step(args, [*command, "--no-report", *(["--no-verify"] if args.no_verify else [])])
    before = profile
    if args.at_pace:
        paces.append(_pace(args, folder))
        profile = folder / f"profile-{name}-around.json"
        _scaled(folder, paces, profile)
    again = ["run", str(folder / executed), "--policy", policy, *world, "--no-report"]
    again += ["--set", "durations=from-steps"]
    _step(args, [*again, "--profile", str(profile), "--out", str(folder / simulated)])
    found = {"policy": policy, "executed": executed, "simulated": simulated, "paces": paces}
    return found | _at_its_pace(args, folder, name, before, again)


def _at_its_pace(
    args: argparse.Namespace, folder: Path, name: str, known: Path, again: Sequence[str]
) -> dict[str, Any]:
    """Simulate what was executed once more, at the pace that the execution turned out to have.

    ``known``: the profile that the execution knew.
    """
    from executor.pace import at_pace, pace_of
    from traces import RunLog
    from traces.profile_file import save
    from traces.profile_sources import load_profile

    profile = load_profile(known)
    factor = pace_of(RunLog.open(folder / f"executed-{name}").record)
    models = profile.models.values()
    kinds = {kind for m in models for times in m.microbatch_s.values() for kind in times}
    path, paced = folder / f"profile-{name}-paced.json", f"paced-{name}"
    save(at_pace(profile, dict.fromkeys(sorted(kinds), factor)), path)
    _step(args, [*again, "--profile", str(path), "--out", str(folder / paced)])
    return {"paced": paced, "pace": factor}


def _pace(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure how fast the machine is now."""
    from executor.devices import parse_lanes
    from executor.machine import probe
    from executor.pace import pace
    from traces.profile_sources import load_profile

    lanes = list(parse_lanes(args.devices, probe()))
    return pace(load_profile(folder / "profile.json"), _cases(args), lanes)


def _scaled(folder: Path, paces: Sequence[dict[str, float]], path: Path) -> None:
    """Write the profile of the machine at the mean of its paces."""
    from executor.pace import at_pace
    from traces.profile_file import save
    from traces.profile_sources import load_profile

    mean = {kind: fmean(one[kind] for one in paces) for kind in paces[0]}
    save(at_pace(load_profile(folder / "profile.json"), mean), path)


def _cases(args: argparse.Namespace) -> list[tuple[str, int]]:
    """What the workload runs: models at batch sizes per logical worker."""
    from traces import load

    jobs = [job.elastic for job in load(args.trace).jobs()]
    cases = {(e.model, e.batch_size) for e in jobs if e is not None}
    return sorted((model, batch) for model, batch in cases if model and batch)


def _step(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Run a command of ours; what it prints is not the answer here."""
    from contextlib import redirect_stdout

    if not args.quiet:
        print(f"tandem {' '.join(command[:4])} ...", file=sys.stderr)
    quiet = ["--quiet"] if command[0] in {"run", "execute"} and not sys.stderr.isatty() else []
    with redirect_stdout(sys.stderr):
        code = args.tandem([*command, *quiet])
    if code:
        raise SystemExit(code)


def _safe(policy: str) -> str:
    """A policy's text as part of a folder's name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in policy)
