"""``tandem report``, ``metrics``, ``compare``, ``co-location``, ``timeline``: one call each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.compare import Comparison


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    report = subparsers.add_parser(
        "report",
        help="write one HTML file that shows a run, or several side by side",
        description="Write one self-contained HTML file: metrics, figures, what was run. RUN is"
        " what 'tandem run' or 'tandem train' leaves; all of one kind.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    report.add_argument(
        "--out",
        metavar="FILE",
        help="HTML file (default: RUN/report.html, for several runs ./report.html)",
    )
    report.add_argument("--quiet", action="store_true", help="do not say where it is")
    report.set_defaults(run=_report)

    metrics = subparsers.add_parser("metrics", help="print the metrics of a run")
    metrics.add_argument("runs", nargs=1, metavar="RUN", help="run directory")
    metrics.add_argument("--json", action="store_true", help="as JSON, under the glossary's names")
    metrics.set_defaults(run=_metrics)

    compare = subparsers.add_parser(
        "compare",
        help="metrics of several runs against the first, with bootstrap intervals",
        description="Compare runs with the first. Runs that differ only in their seed are one"
        " group and give intervals over seeds; otherwise intervals are over jobs.",
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directory; two or more")
    compare.add_argument("--json", action="store_true", help="as JSON")
    compare.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="of intervals (default: 0.95)"
    )
    compare.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)"
    )
    compare.set_defaults(run=_compare)

    fidelity = subparsers.add_parser(
        "fidelity",
        help="write the page that compares simulated with measured runs",
        description="Write one HTML file from the folder that `tandem validate` leaves.",
    )
    fidelity.add_argument("runs", nargs=1, metavar="DIR", help="folder of a validation")
    fidelity.add_argument("--out", metavar="FILE", help="HTML file (default: DIR/fidelity.html)")
    fidelity.add_argument("--json", action="store_true", help="print the numbers as JSON")
    fidelity.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    fidelity.set_defaults(run=_fidelity)

    shared = subparsers.add_parser(
        "co-location",
        help="runs that an online service shares, side by side, with a figure",
        description="Compare runs of 'tandem run --serving' with the first: utilisation, what the"
        " service waited for, how soon jobs left.",
    )
    shared.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    shared.add_argument("--figure", metavar="FILE", help="draw serving and training (.png, .svg)")
    shared.add_argument("--json", action="store_true", help="as JSON")
    shared.set_defaults(run=_shared)

    timeline = subparsers.add_parser(
        "timeline",
        help="write a timeline that Perfetto opens",
        description="Write trace-event JSON for ui.perfetto.dev: a process per node, a thread per"
        " GPU, a slice per allocation.",
    )
    timeline.add_argument("runs", nargs=1, metavar="RUN", help="run directory")
    timeline.add_argument(
        "--out", metavar="FILE", help="default: RUN/timeline.json.gz; .gz is compressed"
    )
    timeline.add_argument(
        "--from", dest="start_s", type=float, metavar="S", help="begin at this second"
    )
    timeline.add_argument("--to", dest="end_s", type=float, metavar="S", help="end at this second")
    timeline.set_defaults(run=_timeline)


def _report(args: argparse.Namespace) -> int:
    from reports.training import is_training

    paths = [Path(path) for path in args.runs]
    where = paths[0] if len(paths) == 1 else Path()
    out = Path(args.out) if args.out else where / "report.html"
    trained = [is_training(path) for path in paths]
    if all(trained):
        from reports.training import open_training
        from reports.trainingpage import write_training_report

        write_training_report(open_training(paths), out)
    elif any(trained):
        from traces.errors import UsageError

        other = paths[trained.index(False)]
        raise UsageError(f"{other}: is no run of training, as {paths[trained.index(True)]} is")
    else:
        from reports.html import write_report
        from traces.runlog import RunLog

        write_report([RunLog.open(path) for path in args.runs], out)
    if not args.quiet:
        print(out)
    return 0


def _metrics(args: argparse.Namespace) -> int:
    from reports.metrics import metrics
    from traces.runlog import RunLog

    run = RunLog.open(args.runs[0])
    found = metrics(run)
    if args.json:
        _print_json(found)
        return 0
    from reports.definitions import definition, title
    from reports.quantities import duration, number

    if run.partial:
        print("partial run: these numbers are of the part that was logged")
    lines = [
        (title(n), number(v), definition(n).unit, duration(v) if definition(n).unit == "s" else "")
        for n, v in found.items()
    ]
    _print_columns(lines, left=(0, 2, 3))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from reports.compare import compare
    from traces.errors import UsageError
    from traces.runlog import RunLog

    if not 0 < args.confidence < 1:
        raise UsageError(f"--confidence {args.confidence}: expected a number between 0 and 1")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: expected 0 or more")
    runs = [RunLog.open(path) for path in args.runs]
    found = compare(runs, confidence=args.confidence, seed=args.seed)
    if args.json:
        _print_json(found.as_dict())
    else:
        _print_comparison(found)
    return 0


def _shared(args: argparse.Namespace) -> int:
    from reports.colocation import PUBLISHED, side_by_side, table, write_figure
    from traces.runlog import RunLog

    rows = side_by_side([RunLog.open(path) for path in args.runs])
    if args.figure is not None:
        write_figure(rows, Path(args.figure))
    if args.json:
        _print_json([row.as_dict() for row in rows])
        return 0
    _print_columns(table(rows), left=(0,))
    print(f"\n{PUBLISHED}")
    if args.figure is not None:
        print(f"figure: {args.figure}")
    return 0


def _print_comparison(found: Comparison) -> None:
    from reports.definitions import definition, title
    from reports.quantities import number, percent, signed

    for i, label in enumerate(found.labels[1:], start=1):
        lines = [
            (
                "metric", "unit", found.labels[0], label, "difference", "%",
                f"{100 * found.confidence:g} % interval",
            )
        ]  # fmt: skip
        for name, row in found.rows.items():
            base, other = row[0], row[i]
            if base.value is None and other.value is None:
                continue
            interval = " to ".join(map(signed, other.interval or ()))
            lines.append(
                (
                    title(name),
                    definition(name).unit,
                    number(base.value),
                    number(other.value),
                    signed(other.difference),
                    percent(other.relative),
                    interval,
                )
            )
        print(("\n" if i > 1 else "") + f"{label} against {found.labels[0]}")
        print(f"interval: {found.methods[i]}\n")
        _print_columns(lines, left=(0, 1))


def _fidelity(args: argparse.Namespace) -> int:
    from reports.fidelity import open_validation
    from reports.fidelitypage import percent, write_fidelity

    folder = Path(args.runs[0])
    found = open_validation(folder)
    out = write_fidelity(found, Path(args.out) if args.out else folder / "fidelity.html")
    if args.json:
        _print_json([one.as_dict() for one in found])
        return 0
    errors_of = ("JCT error", "95th percentile", "makespan error", "decided alike")
    lines: list[tuple[str, ...]] = [("policy", *errors_of, "at its pace", "bits")]
    for one in found:
        bits = sum(pair.same_bits for pair in one.pairs), sum(p.other_bits for p in one.pairs)
        errors = [percent(v) for v in (one.mean_error, one.p95_error, one.makespan_error)]
        said = [text + (f" ({note})" if note else "") for text, note in errors]
        said.append(f"{one.decided_alike} of {len(one.pairs)}")
        said.append("" if one.at_pace is None else percent(one.at_pace.mean_error)[0])
        lines.append((one.policy, *said, f"{bits[0]} equal, {bits[1]} other"))
    if args.markdown:
        print(
            "\n".join(
                "| " + " | ".join(line) + " |"
                for line in (lines[0], ("---",) * len(lines[0]), *lines[1:])
            )
        )
        return 0
    _print_columns(lines, left=(0,))
    print(out)
    return 0


def _timeline(args: argparse.Namespace) -> int:
    from reports.timeline import write_timeline
    from traces.runlog import RunLog

    run = RunLog.open(args.runs[0])
    out = Path(args.out) if args.out else run.path / "timeline.json.gz"
    count = write_timeline(run, out, start_s=args.start_s, end_s=args.end_s)
    print(f"{out} ({count:,} events; open it at https://ui.perfetto.dev)")
    return 0


def _print_columns(lines: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, allow_nan=False))
