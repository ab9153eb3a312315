"""``tandem traces``: look at traces, check, convert, sample, generate and fetch them.

Each handler parses, calls one function of this room, and prints. What the commands do stands with
those functions: :func:`traces.describe.describe`, :func:`traces.check.check`,
:func:`traces.convert.convert`, :func:`traces.synthetic.generate`, :func:`traces.fetch.fetch`,
:func:`traces.sample.sample`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from traces.errors import UsageError

if TYPE_CHECKING:
    from traces.workload import Workload

_EXAMPLES = """examples:
  tandem traces info philly.csv --cluster 64x8:v100
  tandem traces check jobs.csv --column submit_s=timestamp --column num_gpus=gpus
  tandem traces generate philly --days 14 --seed 1 --load 0.9 --cluster 64x8:v100 --out jobs.csv
  tandem traces fetch philly --to data
"""


def add_commands(subparsers: Any) -> None:
    """Register ``traces`` and its sub-commands."""
    parser = subparsers.add_parser(
        "traces",
        help="look at traces, check, convert, sample, generate and fetch them",
        description="Look at traces, check, convert, sample, generate and fetch them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: _help(parser, args))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="traces_command")
    _add_info(commands)
    _add_check(commands)
    _add_convert(commands)
    _add_generate(commands)
    _add_fetch(commands)
    _add_sample(commands)
    _add_formats(commands)


def pairs(texts: list[str], what: str) -> dict[str, str]:
    """Turn ``["a=1", "b=2"]`` into a dictionary; raises :class:`UsageError` for other texts."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{what} {text!r}: expected NAME=VALUE")
        if name in found:
            raise UsageError(f"{what} {text!r}: {name} is given twice")
        found[name] = value
    return found


def _command(commands: Any, name: str, text: str, **more: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", **more
    )
    return parser


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="file or directory of the trace")
    parser.add_argument(
        "--format", default="auto", help="its format ('tandem traces formats'); default: recognise"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format ('tandem traces formats FORMAT'); may be repeated",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="CANONICAL=COLUMN",
        help="where a canonical column stands in a table, such as submit_s=timestamp;"
        " gpu_type==v100 is a constant; may be repeated",
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="ends in .parquet, .csv or .csv.gz"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_cluster(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--cluster", metavar="SPEC|FILE", help=f"{text}, such as 64x8:v100")


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--load",
        type=float,
        metavar="FACTOR",
        help="stretch time until the jobs offer this fraction of the cluster's GPUs",
    )
    _add_cluster(parser, "the cluster that --load means")


def _add_info(commands: Any) -> None:
    parser = _command(commands, "info", "say what a trace holds: sizes, run times, load, repairs")
    _add_trace(parser)
    _add_cluster(parser, "also tell the load offered to this cluster")
    _add_json(parser)
    parser.set_defaults(run=info)


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        "say whether a trace can be trusted",
        epilog="Exit code 1 if some jobs cannot be replayed.",
    )
    _add_trace(parser)
    _add_cluster(parser, "the inventory it is to run on")
    _add_json(parser)
    parser.set_defaults(run=check)


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", "write any trace as a canonical CSV or Parquet table")
    _add_trace(parser)
    _add_out(parser)
    _add_load(parser)
    _add_json(parser)
    parser.set_defaults(run=convert)


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", "draw a synthetic trace")
    parser.add_argument("kind", metavar="KIND", help="philly, openb, gavel or poisson")
    _add_out(parser)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bits; default 0")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--days", type=float, help="length, before any stretching to a load")
    size.add_argument("--jobs", type=int, help="exactly so many jobs")
    _add_load(parser)
    parser.add_argument(
        "--users", type=int, default=0, help="draw so many users, in each virtual cluster"
    )
    parser.add_argument("--vcs", type=int, default=0, help="draw so many virtual clusters")
    parser.add_argument(
        "--estimates",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="give user estimates: run time x exp(SIGMA |z|), z standard normal",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the kind, such as duration=exponential:3600; may be repeated",
    )
    _add_json(parser)
    parser.set_defaults(run=generate)


def _add_fetch(commands: Any) -> None:
    parser = _command(
        commands,
        "fetch",
        "download a public trace from its publisher; without NAME list them",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="which trace")
    parser.add_argument("--to", default=".", metavar="DIR", help="where to; default: here")
    parser.add_argument("--force", action="store_true", help="download again what is there")
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="give up a connection after so many silent seconds; default 30",
    )
    _add_json(parser)
    parser.set_defaults(run=fetch)


def _add_sample(commands: Any) -> None:
    parser = _command(commands, "sample", "write part of a trace as a canonical table")
    _add_trace(parser)
    _add_out(parser)
    parser.add_argument(
        "--by", default="job", metavar="WAY", help="job, user, vc, time-window or head"
    )
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--fraction", type=float, help="of the jobs, users, clusters or the span")
    size.add_argument("--jobs", type=int, help="so many jobs (user and vc: at least)")
    size.add_argument("--length", type=float, metavar="S", help="so many seconds")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same jobs; default 0")
    _add_json(parser)
    parser.set_defaults(run=sample)


def _add_formats(commands: Any) -> None:
    parser = _command(commands, "formats", "list the known formats, or the options of one")
    parser.add_argument("name", metavar="FORMAT", nargs="?", help="whose options to list")
    _add_json(parser)
    parser.set_defaults(run=formats)


def info(args: argparse.Namespace) -> int:
    """``tandem traces info``: :func:`traces.describe.describe`."""
    from traces.describe import describe, describe_text
    from traces.loading import load_cluster

    cluster = load_cluster(args.cluster) if args.cluster else None
    facts = describe(_load(args), cluster)
    print(json.dumps(facts, indent=1) if args.json else describe_text(facts))
    return 0


def check(args: argparse.Namespace) -> int:
    """``tandem traces check``: :func:`traces.check.check`; 1 if some jobs cannot be replayed."""
    from traces.check import check as check_trace
    from traces.loading import load_cluster

    cluster = load_cluster(args.cluster) if args.cluster else None
    report = check_trace(_load(args), cluster)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.text())
    return 0 if report.ok else 1


def convert(args: argparse.Namespace) -> int:
    """``tandem traces convert``: :func:`traces.convert.convert`."""
    from traces.convert import convert as convert_trace
    from traces.loading import load_cluster

    workload = convert_trace(
        args.trace,
        args.out,
        format=args.format,
        options=pairs(args.set, "--set"),
        columns=pairs(args.column, "--column"),
        load_factor=args.load,
        cluster=load_cluster(args.cluster) if args.cluster else None,
        force=args.force,
    )
    return _wrote(workload, args)


def generate(args: argparse.Namespace) -> int:
    """``tandem traces generate``: :func:`traces.synthetic.generate`, then write."""
    from traces.convert import check_target, write
    from traces.loading import load_cluster
    from traces.synthetic import generate as draw

    check_target(args.out, force=args.force)
    options: dict[str, Any] = dict(pairs(args.set, "--set"))
    known = ("seed", "days", "jobs", "load", "cluster", "users", "vcs", "estimates")
    for name in options:
        if name in known:
            raise UsageError(f"--set {name}=...: say --{name}")
    workload = draw(
        args.kind,
        seed=args.seed,
        days=args.days,
        jobs=args.jobs,
        load=args.load,
        cluster=load_cluster(args.cluster) if args.cluster else None,
        users=args.users,
        vcs=args.vcs,
        estimates=args.estimates,
        **options,
    )
    write(workload, args.out, force=args.force)
    return _wrote(workload, args)


def fetch(args: argparse.Namespace) -> int:
    """``tandem traces fetch``: :func:`traces.fetch.fetch`, with a bar on a terminal."""
    from traces.download_bar import download_bar
    from traces.fetch import fetch as download_all
    from traces.publishers import PUBLICATIONS, find_publication

    if args.name is None:
        if args.json:
            print(json.dumps({n: _publication(n) for n in PUBLICATIONS}, indent=1))
        else:
            print(_table([(n, p.title, p.licence) for n, p in PUBLICATIONS.items()]))
        return 0
    with download_bar() as progress:
        got = download_all(
            args.name, args.to, force=args.force, progress=progress, timeout_s=args.timeout
        )
    if args.json:
        files = [
            {"path": str(f.path), "bytes": f.size, "sha256": f.sha256, "verdict": f.verdict}
            for f in got
        ]
        print(json.dumps({**_publication(args.name), "files": files}, indent=1))
        return 0
    for file in got:
        already = "was there, " if file.was_there else ""
        print(f"{file.path}: {already}{file.size:,} bytes, sha256 {file.sha256[:12]}..., ", end="")
        print(file.verdict)
    publication = find_publication(args.name)
    print(f"licence: {publication.licence}")
    if publication.note:
        print(f"next: {publication.note}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """``tandem traces sample``: :func:`traces.sample.sample`, then write."""
    from traces.convert import check_target, write
    from traces.sample import sample as take

    check_target(args.out, force=args.force)
    part = take(
        _load(args),
        by=args.by,
        fraction=args.fraction,
        jobs=args.jobs,
        length_s=args.length,
        seed=args.seed,
    )
    write(part, args.out, force=args.force)
    return _wrote(part, args)


def formats(args: argparse.Namespace) -> int:
    """``tandem traces formats``: the registry, or one format's options."""
    from traces.formats import FORMATS, find_format
    from traces.synthetic import KINDS

    if args.name is None:
        if args.json:
            print(json.dumps({n: {"title": f.title, "page": f.page} for n, f in FORMATS.items()}))
            return 0
        print(_table([(n, f.title, f.page) for n, f in FORMATS.items()]))
        print("\ngenerators: " + ", ".join(KINDS))
        return 0
    declared = find_format(args.name).load().OPTIONS
    if args.json:
        print(
            json.dumps(
                [{"name": o.name, "default": o.default, "meaning": o.meaning} for o in declared]
            )
        )
    elif declared:
        print(_table([(f"{o.name}={o.default}", o.meaning) for o in declared]))
    else:
        print(f"format {args.name} has no options")
    return 0


def _help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    del args
    print(parser.format_help(), end="", file=sys.stderr)
    return UsageError.exit_code


def _load(args: argparse.Namespace) -> Workload:
    from traces.loading import load

    columns = pairs(args.column, "--column")
    return load(args.trace, args.format, options=pairs(args.set, "--set"), columns=columns)


def _wrote(workload: Workload, args: argparse.Namespace) -> int:
    from traces.describe import describe
    from traces.loading import load_cluster

    cluster = getattr(args, "cluster", None)
    facts = describe(workload, load_cluster(cluster) if cluster else None)
    if args.json:
        print(json.dumps({"out": args.out, **facts}, indent=1))
        return 0
    demand = facts["mean_demand_gpus"]
    tail = "" if demand is None else f", mean demand {demand:,.1f} GPUs"
    if facts["offered_load"] is not None:
        tail += f" ({facts['offered_load']:.3f} of {facts['cluster_gpus']:,})"
    print(f"{args.out}: {facts['jobs']:,} jobs over {facts['span_s'] / 86_400:.2f} days{tail}")
    for repair in facts["repairs"]:
        print(f"repaired: {repair['rows']:,} rows: {repair['rule']}")
    for note in facts["notes"]:
        print(f"note: {note}")
    return 0


def _publication(name: str) -> dict[str, Any]:
    from traces.publishers import PUBLICATIONS

    publication = PUBLICATIONS[name]
    return {
        "title": publication.title,
        "licence": publication.licence,
        "note": publication.note,
        "urls": [f.url for f in publication.files],
    }


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
