"""``tandem policies`` and ``tandem explain``; and how an online service is named in a command."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from traces.errors import UsageError

if TYPE_CHECKING:
    from policies.catalog import Entry
    from policies.check import CheckReport
    from policies.intra.check import IntraReport
    from policies.services import Service


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    listing = subparsers.add_parser(
        "policies",
        help="list policies and placements, or check one",
        description="List policies, placements and intra-job policies with their parameters,"
        " defaults, and what each name leaves open; or hold a policy to the contract"
        " ('tandem policies check NAME', 'tandem policies check FILE.py:Class').",
    )
    listing.add_argument(
        "name",
        nargs="?",
        metavar="NAME|check",
        help="one policy, placement or intra-job policy, parameters after a colon; or 'check'",
    )
    listing.add_argument(
        "subject", nargs="?", metavar="POLICY", help="with 'check': the policy to check"
    )
    listing.add_argument(
        "--placement", default="count", help="with 'check': under this placement (default: count)"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_policies)

    explain = subparsers.add_parser(
        "explain",
        help="say why a job of a run waits, at any moment",
        description="Say why a job of a run waits (or runs, or is done) at a moment of the run."
        " The view is rebuilt from the run directory and the run's own policy is asked.",
    )
    explain.add_argument("run_dir", metavar="RUN", help="run directory")
    explain.add_argument("job", metavar="JOB", help="job id")
    explain.add_argument(
        "--at",
        type=float,
        metavar="T",
        help="the moment, in seconds of the run (default: the job's submission)",
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_explain)


def _policies(args: argparse.Namespace) -> int:
    if args.name == "check":
        return _check(args)
    if args.subject is not None:
        raise UsageError(
            f"'tandem policies {args.name} {args.subject}': one name at a time,"
            " or 'tandem policies check POLICY'"
        )
    from policies.catalog import catalog, entry_of

    entries = catalog() if args.name is None else [entry_of(args.name)]
    if args.json:
        from dataclasses import asdict

        print(json.dumps([asdict(entry) for entry in entries], indent=2))
    elif args.name is None:
        _print_list(entries)
    else:
        _print_entry(entries[0])
    return 0


def _print_list(entries: list[Entry]) -> None:
    width = max(len(entry.name) for entry in entries)
    kind = None
    for entry in entries:
        if entry.kind != kind:
            kind = entry.kind
            print(f"{'' if kind == 'policy' else chr(10)}{kind}:")
        print(f"  {entry.name:<{width}}  {entry.summary}")
        for parameter in entry.parameters:
            print(f"  {'':<{width}}    {parameter.name}={parameter.default}")
    print("\n'tandem policies NAME' says what a name leaves open and how it is settled.")


def _print_entry(entry: Entry) -> None:
    print(f"{entry.name} ({entry.kind})\n\n{textwrap.indent(entry.text, '  ')}\n")
    if entry.parameters:
        print("parameters (default):")
        for parameter in entry.parameters:
            print(f"  {parameter.name} = {parameter.default}  [{parameter.type}]")
        print()
    print("what the name leaves open:")
    for sentence in entry.says or ("nothing",):
        print(textwrap.fill(sentence, 96, initial_indent="  - ", subsequent_indent="    "))


def _check(args: argparse.Namespace) -> int:
    if args.subject is None:
        raise UsageError("'tandem policies check' needs a policy: a name, or FILE.py:Class")
    from policies.check import check_policy
    from policies.intra.check import check_intra
    from policies.registry import INTRAS

    report: CheckReport | IntraReport
    if args.subject.partition(":")[0] in INTRAS:
        report = check_intra(args.subject)
    else:
        report = check_policy(args.subject, args.placement)
    if args.json:
        from dataclasses import asdict

        print(json.dumps(asdict(report), indent=2))
    else:
        print(report)
    return 0 if report else 1


def _explain(args: argparse.Namespace) -> int:
    from policies.replay import explain_at
    from traces import RunLog

    run = RunLog.open(args.run_dir)
    at_s, reason = explain_at(run, args.job, args.at)
    if args.json:
        answer = {
            "job_id": args.job,
            "at_s": at_s,
            "code": reason.code,
            "text": reason.text,
            "facts": dict(reason.facts),
        }
        print(json.dumps(answer, indent=2, default=str))
    else:
        print(f"{args.job} at {at_s:.12g} s: {reason.code}: {reason.text}")
    return 0


def add_serving_arguments(
    parser: argparse.ArgumentParser, *, scale_in_s: float = 30.0, refill_s: float = 300.0
) -> None:
    """Arguments that say which online service shares the cluster, and on which terms."""
    parser.add_argument(
        "--serving",
        metavar="DEMAND",
        help="an online service on the same cluster: a trace of service instances,"
        " FILE[:scale=X,from_s=S], or diurnal:low=GPUS,high=GPUS[,period_s=S,peak_s=S,step_s=S]",
    )
    parser.add_argument(
        "--scale-in",
        type=float,
        default=scale_in_s,
        metavar="S",
        help="jobs leave a device at the latest so long after they are told to"
        " (default: %(default)g)",
    )
    parser.add_argument(
        "--refill",
        type=float,
        default=refill_s,
        metavar="S",
        help="training gets a device back so long after the service gave it up"
        " (default: %(default)g)",
    )
    parser.add_argument(
        "--serving-type",
        metavar="TYPE",
        help="GPU type that the service needs (default: the one with most GPUs)",
    )


def service_of(
    args: argparse.Namespace, gpus_by_type: Callable[[], Mapping[str, int]]
) -> Service | None:
    """Return the service that these arguments name, on a cluster with so many GPUs; None for none.

    Raises :class:`UsageError` for arguments that do not fit each other.
    """
    from policies.services import Service, demand_of

    if args.serving is None:
        if args.serving_type is not None:
            raise UsageError("--serving-type: needs --serving, the demand")
        return None
    counts = gpus_by_type()
    return Service(
        demand=demand_of(args.serving),
        gpu_type=args.serving_type or max(counts, key=lambda t: counts[t]),
        give_way_s=args.scale_in,
        linger_s=args.refill,
        text=args.serving,
    )
