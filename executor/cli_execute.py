"""``tandem execute``: what is typed, and what is said of it; the work is ``executor.execute``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.cli import add_serving_arguments, service_of
from traces.cli import pairs
from traces.errors import UsageError

if TYPE_CHECKING:
    from executor.devices import DeviceLane
    from executor.execute import Executed, Habit
    from executor.journal import Left
    from executor.online import Serving

_EXECUTE = """examples:
  tandem profile tiny --devices auto --out profile.json
  tandem execute jobs.csv --policy easyscale --devices auto --profile profile.json --out runs/a
  tandem execute --resume runs/a --profile profile.json --out runs/b
"""


def add_execute(subparsers: Any) -> None:
    """Register the command."""
    execute = subparsers.add_parser(
        "execute",
        help="run a workload of real training jobs on this machine's devices under a policy",
        description="Run a workload of real training jobs on this machine's devices under a"
        " policy, and leave the same kind of run directory as `tandem run`.",
        epilog=_EXECUTE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    execute.add_argument("trace", nargs="?", metavar="WORKLOAD", help="job table with elastic jobs")
    execute.add_argument("--format", default="auto", help="format (default: recognised)")
    execute.add_argument(
        "--column", action="append", default=[], metavar="CANONICAL=COLUMN", help="column map"
    )
    execute.add_argument("--devices", default="auto", metavar="LANES", help="see `tandem devices`")
    execute.add_argument(
        "--profile", required=True, metavar="FILE", help="what `tandem profile` measured"
    )
    execute.add_argument("--policy", default="fifo", metavar="NAME[:param=value,...]")
    execute.add_argument("--placement", default="count", metavar="NAME[:param=value,...]")
    execute.add_argument("--intra", default="companion", metavar="NAME[:param=value,...]")
    execute.add_argument("--out", metavar="DIR", help="run directory (default: runs/NAME)")
    execute.add_argument("--name", help="name of the run in reports")
    execute.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    execute.add_argument("--seed", type=int, default=0, help="of models and data (default: 0)")
    execute.add_argument(
        "--checkpoint-every", type=int, default=200, metavar="STEPS", help="default: 200; 0: never"
    )
    execute.add_argument("--sample", type=float, default=1.0, metavar="S", help="default: 1")
    execute.add_argument(
        "--no-verify", action="store_true", help="do not compare bits with those of each job alone"
    )
    execute.add_argument(
        "--references", metavar="FILE", help="keep the digests of jobs alone there, between runs"
    )
    add_serving_arguments(execute, scale_in_s=5.0, refill_s=5.0)
    execute.add_argument(
        "--serving-versions",
        metavar="DIR",
        help="what it serves: see `tandem train --publish` (default: LONGER, tiny, untrained)",
    )
    execute.add_argument(
        "--serving-rate",
        type=float,
        metavar="R",
        help="requests per second for every lane in demand (default: 10)",
    )
    execute.add_argument("--resume", metavar="RUN", help="go on with an execution that was ended")
    execute.add_argument("--no-report", action="store_true", help="do not write report.html")
    execute.add_argument("--json", action="store_true", help="print the metrics as JSON")
    execute.add_argument("--quiet", action="store_true", help="no progress, no summary")
    execute.set_defaults(run=_execute)


def _execute(args: argparse.Namespace) -> int:
    from executor.cli import need_torch

    need_torch()
    if (args.trace is None) == (args.resume is None):
        raise UsageError("execute needs a WORKLOAD, or --resume RUN, and not both")
    if args.checkpoint_every < 0:
        raise UsageError(f"--checkpoint-every {args.checkpoint_every}: expected 0 or more")
    if not 0 < args.sample < float("inf"):
        raise UsageError(f"--sample {args.sample}: expected seconds above 0")
    done = _executed(args)
    if not args.no_report:
        args.tandem(["report", str(done.path), "--quiet"])
    if args.json:
        args.tandem(["metrics", str(done.path), "--json"])
    elif not args.quiet:
        _say(done)
    done.check()
    return 0


def _executed(args: argparse.Namespace) -> Executed:
    from rich.console import Console

    from executor.devices import DeviceLane, parse_lanes
    from executor.execute import execute
    from executor.journal import Left
    from executor.machine import probe
    from executor.watching import watching
    from traces import load
    from traces.profile_sources import load_profile

    profile = load_profile(Path(args.profile))
    if args.resume is None:
        left = None
        workload = load(args.trace, format=args.format, columns=pairs(args.column, "--column"))
        lanes = list(parse_lanes(args.devices, probe()))
        policy, placement, intra = args.policy, args.placement, args.intra
        seed, name = args.seed, args.name
        serving = _serving(args, lanes)
    else:
        left = Left(Path(args.resume))
        workload = left.workload()
        lanes = [DeviceLane.from_json(lane) for lane in left.settings["lanes"]]
        policy, placement, intra = (_text(left, k) for k in ("policy", "placement", "intra"))
        seed, name = int(left.settings["seed"]), args.name or left.settings["name"]
        serving = _serving_again(args, left)
    out = Path(args.out or _default_out(args, policy))
    console = Console(stderr=True, quiet=args.quiet)
    with watching(console, policy) as watch:
        return execute(
            workload,
            lanes,
            profile=profile,
            out=out,
            policy=policy,
            placement=placement,
            intra=intra,
            overwrite=args.overwrite,
            name=name or out.name,
            seed=seed,
            habit=_habit(args),
            serving=serving,
            resumes=left,
            watch=watch,
            say=lambda text: console.print(text, style="dim") if console.is_terminal else None,
        )


def _habit(args: argparse.Namespace) -> Habit:
    from executor.execute import Habit

    return Habit(
        verify=not args.no_verify,
        references=Path(args.references) if args.references else None,
        checkpoint_every=args.checkpoint_every,
        sample_s=args.sample,
    )


def _serving(args: argparse.Namespace, lanes: Sequence[DeviceLane]) -> Serving | None:
    """The online service that the arguments name."""
    from executor.online import Serving

    service = service_of(args, lambda: Counter(lane.gpu_type for lane in lanes))
    if service is None:
        for option in ("serving_versions", "serving_rate"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UsageError(f"--{name}: needs --serving, the demand")
        return None
    folder = None if args.serving_versions is None else Path(args.serving_versions)
    given = {} if args.serving_rate is None else {"rate": args.serving_rate}
    return Serving(service=service, folder=folder, **given)


def _serving_again(args: argparse.Namespace, left: Left) -> Serving | None:
    """The online service that an execution had which goes on."""
    from executor.online import Serving

    if args.serving is not None:
        raise UsageError("--serving: an execution goes on with the service it had; leave it out")
    return Serving.of(left.settings.get("services") or [])


def _text(left: Left, key: str) -> str:
    """The text a policy was made from."""
    spec = left.settings[key]["spec"]
    if not isinstance(spec, str):
        raise UsageError(f"--resume: the {key} was given as an object, and cannot be made again")
    return spec


def _default_out(args: argparse.Namespace, policy: str) -> str:
    if args.resume is not None:
        return f"{args.resume}-resumed"
    return f"runs/{Path(args.trace).stem}-{policy.partition(':')[0]}-executed"


def _say(done: Executed) -> None:
    jobs = done.jobs
    finished = jobs["jct_s"].notna()
    print(f"{finished.sum()} of {len(jobs)} jobs finished", end="")
    if finished.any():
        print(f", mean JCT {jobs['jct_s'][finished].mean():.2f} s", end="")
    print(f", in {done.record['wall_s']:.1f} s")
    print(done.path / "report.html")
