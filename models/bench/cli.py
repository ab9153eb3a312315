"""``tandem bench model``: what a training step of one network costs on one device.

One function call: ``models.bench.measure.costs``. The tables of ``docs/models/execution.md`` come
from ``benchmarks/model.py``, which is made of the same parts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from models.baselines.registry import BASELINES
from models.config import PRESETS
from models.errors import ModelError

if TYPE_CHECKING:
    from models.bench.measure import Cost
    from models.bench.peaks import Peak
    from models.bench.profile import Profile
    from models.bench.workload import Workload

PARTS = ("features", "inner", "cross", "self", "head")


def add_bench(subparsers: Any) -> None:
    """Register ``bench model``."""
    group = subparsers.add_parser("bench", help="measure the workload on this machine")
    commands = group.add_subparsers(metavar="WHAT", dest="what")
    model = commands.add_parser(
        "model",
        help="samples/s, memory, MFU and bandwidth of a training step",
        description="Time whole training steps (look-ups, forward, backward, both updates) on drawn"
        " samples, in wall time; give the memory a step needs beyond its state, and shares of what"
        " the device can do.",
    )
    model.add_argument("--preset", choices=list(PRESETS), default="paper", help="(paper)")
    model.add_argument(
        "--network", choices=["longer", *BASELINES], default="longer", help="(longer)"
    )
    model.add_argument(
        "--against", choices=["longer", *BASELINES], help="another network, taking turns with it"
    )
    for name, says in (
        ("length", "L, events of a history"),
        ("merge", "K, events merged into one token"),
        ("queries", "k, merged tokens sampled as queries"),
    ):
        model.add_argument(f"--{name}", type=int, metavar="N", help=f"{says} (the preset's)")
    model.add_argument("--batch", type=int, default=16, metavar="N", help="samples a step (16)")
    model.add_argument(
        "--min-length", type=int, metavar="N", help="histories of this to the longest length"
    )
    for name, does in (("half", "compute in bfloat16"), ("recompute", "forget activations")):
        model.add_argument(
            f"--{name}",
            action="append",
            default=[],
            choices=[*PARTS, "all"],
            help=f"a part of the network to {does}; may be repeated",
        )
    model.add_argument(
        "--fast", action="store_true", help="without torch's deterministic algorithms"
    )
    model.add_argument("--device", default="cpu", help="torch's name of it (cpu)")
    model.add_argument("--threads", type=int, metavar="N", help="of the CPU (torch's choice)")
    model.add_argument("--repeats", type=int, default=5, metavar="N", help="timed steps (5)")
    model.add_argument("--seed", type=int, default=0, metavar="N", help="of everything (0)")
    model.add_argument(
        "--profile", type=int, default=0, metavar="N", help="and the N dearest kernels (0)"
    )
    model.add_argument("--json", action="store_true", help="as JSON")
    model.set_defaults(run=_model)


def _model(args: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise ModelError("measuring needs torch", expected="pip install 'tandem-lab[train]'")
    # The profiler's library reads it when torch is imported, and says on stderr when it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from models.bench.measure import costs
    from models.bench.peaks import device_name, measured, published
    from models.bench.profile import profiled
    from models.bench.workload import Prepared
    from models.device import threads, usable_device

    if args.repeats < 1:
        raise ModelError("no step to time", where="repeats", value=args.repeats, expected="1 up")
    device = torch.device(usable_device(args.device))
    names = [args.network] + ([args.against] if args.against not in (None, args.network) else [])
    workloads = {name: _workload(args, name) for name in names}
    with threads(args.threads):
        found = costs(workloads, device, repeats=args.repeats, clock=time.perf_counter)
        peaks = {"measured": measured(device)}
        name = device_name(device)
        known = published(name)
        if known is not None:
            peaks["published"] = known
        prepared = Prepared(workloads[args.network], device) if args.profile else None
        profile = None if prepared is None else profiled(prepared.step, device)
    values = {name: _values(cost, peaks) for name, cost in found.items()}
    if args.json:
        shown: dict[str, Any] = {"device": name, "costs": values}
        if profile is not None:
            shown["profile"] = _lines(profile, args.profile)
        print(json.dumps(shown))
        return 0
    print(f"{name}, {torch.__version__}, a step of {args.batch} samples")
    _print_table(values)
    if profile is not None:
        print(f"\n{profile.busy_ms:.1f} ms of work in a step of {profile.step_ms:.1f} ms")
        for line in _lines(profile, args.profile):
            print(f"{line['share']:6.1%} {line['ms']:9.3f} ms  {line['name']}")
    return 0


def _workload(args: argparse.Namespace, network: str) -> Workload:
    from models.bench.workload import Workload
    from models.longer.execution import PARTS as ALL
    from models.longer.execution import Execution

    changes = {"max_length": args.length, "merge": args.merge, "queries": args.queries}
    model = replace(
        PRESETS[args.preset], **{name: n for name, n in changes.items() if n is not None}
    )
    workload = Workload(
        network=network,
        model=model,
        execution=Execution(
            half=ALL if "all" in args.half else frozenset(args.half),
            recompute=ALL if "all" in args.recompute else frozenset(args.recompute),
        ),
        batch=args.batch,
        min_length=args.min_length,
        strict=not args.fast,
        seed=args.seed,
    )
    workload.config(), workload.data()  # what is wrong is said before anything is measured
    return workload


def _values(cost: Cost, peaks: dict[str, Peak]) -> dict[str, Any]:
    return {
        "samples_per_s": cost.samples_per_s,
        "events_per_s": cost.events / cost.median_s,
        "step_ms": 1e3 * cost.median_s,
        "step_mib": cost.peak_bytes / 2**20,
        "state_mib": cost.state_bytes / 2**20,
        "gflops_per_step": cost.flops / 1e9,
        "gflops_per_s": cost.flops_per_s / 1e9,
        "traffic_mib": cost.traffic / 2**20,
        "gib_per_s": cost.bytes_per_s / 2**30,
        **{f"mfu_of_{which}": cost.mfu(peak) for which, peak in peaks.items()},
        **{f"bandwidth_of_{which}": cost.bandwidth_share(peak) for which, peak in peaks.items()},
    }


def _print_table(values: dict[str, dict[str, Any]]) -> None:
    first = next(iter(values.values()))
    print(f"{'':24}" + "".join(f"{name:>14}" for name in values))
    for row in first:
        cells = [found[row] for found in values.values()]
        shares = "_of_" in row
        text = [f"{cell:>14.1%}" if shares else f"{cell:>14,.4g}" for cell in cells]
        print(f"{row:24}" + "".join(text))


def _lines(profile: Profile, count: int) -> list[dict[str, Any]]:
    return [
        {"name": line.name, "ms": line.ms, "calls": line.calls, "share": line.share}
        for line in profile.lines[:count]
    ]
