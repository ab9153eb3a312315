"""``tandem run`` and ``tandem demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.cli import add_serving_arguments, service_of
from simulator.cli_reproduce import add_reproduce
from simulator.progress import progress
from traces.cli import pairs
from traces.errors import UsageError

if TYPE_CHECKING:
    from policies.model import Model
    from policies.services import Service
    from simulator.failures import Source
    from traces.workload import Workload

COSTS = {
    **{name: f"{name}_s" for name in ("start", "restore", "save", "migrate", "rescale")},
    "drain": "drain_steps",
}


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    run = subparsers.add_parser(
        "run",
        help="replay a trace on a simulated cluster under a policy",
        description="Replay a trace on a simulated cluster under a policy, and leave a run"
        " directory with a report.",
    )
    add_trace_arguments(run)
    run.add_argument(
        "--cluster",
        required=True,
        metavar="SPEC|FILE",
        help="NODESxGPUS[:TYPE[:NODES_PER_RACK]], groups joined by commas, or an inventory file",
    )
    run.add_argument(
        "--policy",
        default="fifo",
        metavar="NAME[:param=value,...]",
        help="inter-job policy, or FILE.py:Class (default: fifo); `tandem policies` lists them",
    )
    run.add_argument(
        "--placement",
        default="count",
        metavar="NAME[:param=value,...]",
        help="placement policy (default: count)",
    )
    run.add_argument(
        "--intra",
        metavar="NAME[:param=value,...]",
        help="intra-job policy of elastic jobs (default: companion, with a profile)",
    )
    run.add_argument(
        "--elastic",
        metavar="param=value,...",
        help="make gangs elastic: max, min (times the gang), models, mix, batch",
    )
    run.add_argument(
        "--learn",
        type=float,
        metavar="S",
        help="elastic jobs report their step times S seconds into each stay, and what is believed"
        " of them is corrected by that",
    )
    run.add_argument("--out", metavar="DIR", help="run directory (default: runs/NAME)")
    run.add_argument("--name", help="name of the run in reports (default: made of its parts)")
    run.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    run.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    run.add_argument("--jobs", type=int, metavar="N", help="only the first N jobs by submission")
    run.add_argument(
        "--misfits",
        choices=("refuse", "reject"),
        default="refuse",
        help="jobs that fit nowhere: refuse to run (default), or reject them on arrival",
    )
    run.add_argument(
        "--untimed",
        choices=("refuse", "reject"),
        default="refuse",
        help="jobs without a run time: refuse to run (default), or reject them on arrival",
    )
    add_world_arguments(run)
    add_outage_arguments(run)
    add_serving_arguments(run)
    run.add_argument("--until", type=float, metavar="S", help="stop at this time")
    run.add_argument("--sample", type=float, metavar="S", help="seconds between samples")
    run.add_argument("--no-report", action="store_true", help="do not write report.html")
    run.add_argument("--json", action="store_true", help="print the metrics as JSON")
    run.add_argument("--quiet", action="store_true", help="no progress, no summary")
    run.set_defaults(run=_run)

    add_reproduce(subparsers)
    demo = subparsers.add_parser(
        "demo",
        help="a generated week under three policies, then training jobs executed and simulated",
    )
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo")
    demo.add_argument("--seed", type=int, default=2, help="seed of the generated week")
    demo.add_argument(
        "--simulate-only", action="store_true", help="execute no training jobs on this machine"
    )
    demo.set_defaults(run=_demo)


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which trace to read, and how."""
    parser.add_argument("trace", metavar="TRACE", help="job trace (any known format, or a run)")
    parser.add_argument("--format", default="auto", help="format (default: recognised)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the format; may be repeated",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="CANONICAL=COLUMN",
        help="column map for a table of your own; may be repeated",
    )


def add_world_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how the simulated world behaves."""
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="charged every time: " + ", ".join(COSTS) + " (drain: in steps, needs --profile)",
    )
    parser.add_argument(
        "--speed",
        action="append",
        default=[],
        metavar="TYPE=FACTOR",
        help="speed of a GPU type (default: 1)",
    )
    parser.add_argument(
        "--profile", metavar="FILE", help="times of elastic jobs: a profile, or a published table"
    )
    parser.add_argument(
        "--believed", metavar="FILE", help="profile that the policy is told (default: the truth)"
    )
    parser.add_argument(
        "--across-nodes", type=float, default=1.0, metavar="F", help="rate of gangs over nodes"
    )
    parser.add_argument(
        "--across-racks", type=float, default=1.0, metavar="F", help="rate of gangs over racks"
    )
    parser.add_argument(
        "--checkpoint", type=float, metavar="S", help="seconds of work between checkpoints"
    )
    parser.add_argument(
        "--lose-on-preempt",
        action="store_true",
        help="a preempted job falls back to its last checkpoint instead of saving first",
    )


def add_outage_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which devices go out of service, and when."""
    parser.add_argument(
        "--outages",
        action="append",
        default=[],
        metavar="FILE",
        help="a log of outages: CSV with time_s,node,gpus,event; may be repeated",
    )
    parser.add_argument(
        "--failures",
        metavar="PARAM=S,...",
        help="random failures: node_mtbf_s, node_mttr_s, gpu_mtbf_s, gpu_mttr_s",
    )
    parser.add_argument(
        "--away",
        action="append",
        default=[],
        metavar="nodes=PATTERN;...,from_s=S,to_s=S[,period_s=S]",
        help="nodes that are away for a part of every day; may be repeated",
    )


def services(args: argparse.Namespace) -> list[Service]:
    """Build the ``services`` argument of ``simulate``."""
    from traces import load_cluster

    service = service_of(args, lambda: load_cluster(args.cluster).gpus_by_type())
    return [] if service is None else [service]


def _numbers(items: list[str], option: str) -> dict[str, float]:
    numbers = {}
    for name, value in pairs(items, option).items():
        try:
            numbers[name] = float(value)
        except ValueError:
            raise UsageError(f"{option} {name}={value}: expected a number") from None
    return numbers


def load_trace(args: argparse.Namespace) -> Workload:
    """Read the trace that the arguments name."""
    from traces import load

    workload = load(
        args.trace,
        args.format,
        options=pairs(args.set, "--set"),
        columns=pairs(args.column, "--column") or None,
    )
    jobs = getattr(args, "jobs", None)
    if jobs is not None:
        if jobs < 0:
            raise UsageError(f"--jobs {jobs}: expected 0 or more")
        workload = workload.head(jobs)
    return workload


def world(args: argparse.Namespace) -> dict[str, Any]:
    """Build the ``model``, ``believed`` and ``checkpoints`` arguments of ``simulate``."""
    from dataclasses import replace

    from policies.model import Costs, Model
    from simulator.cluster import Checkpoints
    from traces.errors import did_you_mean
    from traces.profile_sources import load_profile

    costs = {}
    for name, seconds in _numbers(args.cost, "--cost").items():
        if name not in COSTS:
            raise UsageError(f"--cost {name}: no such cost; {did_you_mean(name, list(COSTS))}")
        costs[COSTS[name]] = seconds
    profile = None if args.profile is None else load_profile(args.profile)
    model = Model(
        costs=Costs(**costs),
        speeds=_numbers(args.speed, "--speed"),
        across_nodes=args.across_nodes,
        across_racks=args.across_racks,
        profile=profile,
    )
    believed = None
    if args.believed is not None:
        if profile is None:
            raise UsageError("--believed: needs --profile, the truth it differs from")
        believed = replace(model, profile=load_profile(args.believed))
    return {
        "model": model,
        "believed": believed,
        "checkpoints": Checkpoints(every_s=args.checkpoint, on_preempt=not args.lose_on_preempt),
    }


def check_speeds(args: argparse.Namespace) -> None:
    """Refuse a speed for a GPU type that the cluster lacks: it would change nothing."""
    from traces import load_cluster
    from traces.errors import did_you_mean

    types = load_cluster(args.cluster).gpu_types if args.speed else ()
    for gpu_type in _numbers(args.speed, "--speed"):
        if gpu_type not in types:
            near = did_you_mean(gpu_type, types)
            raise UsageError(f"--speed {gpu_type}: the cluster has no such GPU type; {near}")


def outages(args: argparse.Namespace) -> list[Source]:
    """Build the ``outages`` argument of ``simulate``."""
    from policies.registry import parse_params
    from simulator.failures import Daily, Mtbf, read_outage_log
    from traces import load_cluster

    sources: list[Source] = []
    if args.outages:
        spec = load_cluster(args.cluster)
        sources += [read_outage_log(file, spec) for file in args.outages]
    if args.failures is not None:
        means = Mtbf(**parse_params(Mtbf, args.failures, "--failures"))
        if means.node_mtbf_s is None and means.gpu_mtbf_s is None:
            raise UsageError(
                f"--failures {args.failures!r}: nothing ever fails;"
                " expected node_mtbf_s or gpu_mtbf_s"
            )
        sources.append(means)
    for text in args.away:
        given = parse_params(Daily, text, "--away")
        missing = [n for n in ("nodes", "from_s", "to_s") if n not in given]
        if missing:
            raise UsageError(f"--away {text!r}: {missing[0]} is missing")
        sources.append(Daily(**given))
    return sources


def _run(args: argparse.Namespace) -> int:
    from policies.learner import Learning
    from simulator.run import simulate
    from traces.runwriter import check_target

    name = args.name or _name(args)
    out = Path(args.out or f"runs/{name}")
    check_target(out, overwrite=args.overwrite)
    check_speeds(args)
    given = world(args)
    with progress(name, args.quiet) as on_progress:
        result = simulate(
            _elastic(args, load_trace(args), given["model"]),
            args.cluster,
            intra=args.intra,
            policy=args.policy,
            placement=args.placement,
            out=out,
            overwrite=args.overwrite,
            name=name,
            seed=args.seed,
            misfits=args.misfits,
            untimed=args.untimed,
            sample_s=args.sample,
            until_s=args.until,
            on_progress=on_progress,
            outages=outages(args),
            services=services(args),
            learning=None if args.learn is None else Learning(report_s=args.learn),
            **given,
        )
    for why, count in result.record["rejected"].items():
        if count:
            print(f"tandem: {count} jobs were rejected ({why})", file=sys.stderr)
    # What is left to do is told by other commands; the first that fails says so.
    code = 0 if args.no_report else int(args.tandem(["report", str(out), "--quiet"]))
    if args.json:
        code = code or int(args.tandem(["metrics", str(out), "--json"]))
    elif not args.quiet:
        code = code or int(args.tandem(["metrics", str(out)]))
        if not args.no_report and not code:
            print(f"\nreport: {out / 'report.html'}")
    return code


def _elastic(args: argparse.Namespace, workload: Workload, model: Model) -> Workload:
    """The workload, with its gangs made elastic if the arguments say so."""
    if args.elastic is None:
        return workload
    from policies.registry import parse_params
    from traces.elastic_rule import ElasticRule, make_elastic

    rule = ElasticRule(**parse_params(ElasticRule, args.elastic, "--elastic"))
    return make_elastic(workload, rule, model.profile)


def _name(args: argparse.Namespace) -> str:
    parts = [Path(args.trace).name.split(".")[0], args.policy, args.placement, f"s{args.seed}"]
    text = "-".join(p for p in parts if p)
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in text)[:120]


def _demo(args: argparse.Namespace) -> int:
    from simulator.demo import demo

    runs = demo(Path(args.out), seed=args.seed, say=print)
    report = Path(args.out) / "report.html"
    code: int = args.tandem(["report", *map(str, runs), "--out", str(report), "--quiet"])
    print(f"\nevery difference, with intervals: tandem compare {' '.join(map(str, runs))}")
    print(f"report: {report}")
    return code or _train(args)


def _train(args: argparse.Namespace) -> int:
    """The second act: real jobs on this machine, simulated too, and how far apart that is."""
    import shutil
    from importlib.util import find_spec

    from simulator.demo import TRAINING

    if args.simulate_only:
        return 0
    if find_spec("torch") is None:
        print("no training jobs are executed here: they need the extra `train`")
        return 0
    folder = Path(args.out) / "validation"
    if (folder / "validation.json").exists():  # an earlier demo's
        shutil.rmtree(folder)
    jobs = Path(args.out) / "training.csv"
    jobs.write_text(TRAINING, encoding="utf-8")
    print("\nsix LONGER jobs, executed on this machine and simulated, both under easyscale:")
    command = ["validate", str(jobs), "--policy", "easyscale", "--quick", "--out", str(folder)]
    code: int = args.tandem(command)
    return code
