"""``tandem reproduce``: published experiments again, from files named on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_reproduce(subparsers: Any) -> None:
    """Register the command and its experiments."""
    reproduce = subparsers.add_parser(
        "reproduce",
        help="make a published experiment again, and say what of it survives",
        description="Make a published experiment again, from files that are named here, and say"
        " what of its gains survives honest costs and baselines.",
    )
    which = reproduce.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    trace = which.add_parser(
        "easyscale-trace", help="EasyScale's trace experiment (SC'23, Figure 14)"
    )
    trace.add_argument("workload", metavar="WORKLOAD", help="the artifact's workload, a CSV")
    trace.add_argument("--profile", required=True, metavar="FILE", help="times of its applications")
    trace.add_argument(
        "--pause",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds charged for every start and every change of size (default: 20)",
    )
    trace.add_argument("--json", action="store_true", help="print every row as JSON")
    trace.set_defaults(run=_reproduce_trace)

    shared = which.add_parser(
        "co-location",
        help="training beside an online service: the service alone, apart from training, shared",
    )
    shared.add_argument(
        "demand", metavar="DEMAND", help="as --serving of tandem run: FILE[:from_s=S], diurnal:..."
    )
    shared.add_argument("--cluster", required=True, metavar="SPEC|FILE", help="as of tandem run")
    shared.add_argument("--days", type=float, default=1.0, metavar="D", help="(default: 1)")
    shared.add_argument("--policy", default="easyscale", metavar="NAME", help="of training")
    shared.add_argument(
        "--serving-type", metavar="TYPE", help="GPU type of the service (default: most numerous)"
    )
    shared.add_argument("--scale-in", type=float, default=30.0, metavar="S", help="default: 30")
    shared.add_argument("--refill", type=float, default=300.0, metavar="S", help="default: 300")
    shared.add_argument(
        "--pause",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds charged for every start and every change of size (default: 20)",
    )
    shared.add_argument("--seed", type=int, default=0, help="of the made-up training (default: 0)")
    shared.add_argument(
        "--out", default="runs/co-location", metavar="DIR", help="run directories and figure"
    )
    shared.add_argument("--overwrite", action="store_true", help="replace runs that are there")
    shared.add_argument("--json", action="store_true", help="print everything as JSON")
    shared.set_defaults(run=_reproduce_colocation)


def _reproduce_colocation(args: argparse.Namespace) -> int:
    from simulator.colocation import run_settings, say, study
    from traces.runwriter import check_target

    out = Path(args.out)
    asked = study(
        args.demand,
        args.cluster,
        days=args.days,
        gpu_type=args.serving_type,
        policy=args.policy,
        pause_s=args.pause,
        give_way_s=args.scale_in,
        linger_s=args.refill,
        seed=args.seed,
    )
    for setting in ("alone", "apart", "shared"):
        check_target(out / setting, overwrite=args.overwrite)
    if not args.json:
        say(asked, print)
        print()
    runs = [str(path) for _, path in run_settings(asked, out, overwrite=args.overwrite)]
    figure = ["--figure", str(out / "co-location.png")]
    code: int = args.tandem(["co-location", *runs, *figure, *(["--json"] if args.json else [])])
    return code


def _reproduce_trace(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from simulator.reproduce import readings, say

    found = []
    for reading in readings(args.workload, args.profile, pause_s=args.pause):
        if args.json:
            found.append(asdict(reading))
            continue
        say(reading, print)
        print()
    if args.json:
        print(json.dumps(found, indent=1))
    return 0
