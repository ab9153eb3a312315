"""The executor's commands: ``tandem devices``, ``tandem profile`` and ``tandem verify-bits``.

Each handler parses, calls one function of this room, and prints.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from traces.errors import DataError, UsageError

if TYPE_CHECKING:
    from executor.devices import DeviceLane
    from executor.machine import Machine
    from executor.profiler import Profiled
    from executor.verify import Outcome, Verdict

_DEVICES = """examples:
  tandem devices
  tandem devices cpu-avx512x2,cpu-default:slowdown=2
  tandem devices cuda:0x2:sm=50% --json
  tandem devices cpu-avx512,cpu-default --compare D2
"""


_PROFILE = """examples:
  tandem profile --model tiny --batch 16 --batch 64 --out profile.json
  tandem profile --lanes cpu-avx512,cpu-default:slowdown=2 --model dense:width=512 --batch 8 \\
      --quick --out p.json

A model is dense[:width=N][:layers=N], mlp, longer (the engine's small tasks), or LONGER at a
preset: tiny, paper, long [:length=N]. Batches are samples of one logical worker.
"""


_VERIFY = """examples:
  tandem verify-bits --task mlp --workers 6 --schedules 20 --lanes cpux2
  tandem verify-bits --task longer --lanes cpu-avx512,cpu-default --level D2
  tandem verify-bits --task longer --shards mirrored --lanes cpux4
  tandem verify-bits --factory package.module:make_task --settings '{"num_workers": 4, "seed": 1}'

Exit code 0: all bits are equal; 1: some differ, and the first step and tensor are named.
"""


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    _add_devices(subparsers)
    _add_profile(subparsers)
    _add_verify(subparsers)
    from executor.cli_execute import add_execute
    from executor.cli_validate import add_validate

    add_execute(subparsers)
    add_validate(subparsers)


def _add_devices(subparsers: Any) -> None:
    devices = subparsers.add_parser(
        "devices",
        help="find this machine's devices, and name the lanes that jobs can run on",
        description="Find this machine's devices, and name the lanes that jobs can run on.",
        epilog=_DEVICES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    devices.add_argument(
        "lanes",
        nargs="?",
        default="auto",
        metavar="LANES",
        help="PLACE[xCOUNT][:key=value...],...: a place is auto, cpu, cpu-default, cpu-avx2,"
        " cpu-avx512 or cuda:N; keys are slowdown, sm, threads, memory (auto)",
    )
    devices.add_argument(
        "--compare",
        choices=["D1", "D2"],
        metavar="LEVEL",
        help="run a battery of operators on each type, at D1 or D2, and say where bits differ",
    )
    devices.add_argument("--json", action="store_true", help="print as JSON")
    devices.set_defaults(run=_devices)


def _add_profile(subparsers: Any) -> None:
    profile = subparsers.add_parser(
        "profile",
        help="measure models on this machine's lanes, for policies and the simulator",
        description="Measure models on this machine's lanes: micro-batches, switches, updates,"
        " reduction, start, rescale, checkpoint, memory; predict steps that were held out; write a"
        " profile.",
        epilog=_PROFILE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profile.add_argument("--out", required=True, metavar="FILE", help="the profile, JSON")
    profile.add_argument(
        "--model", action="append", required=True, metavar="MODEL", help="may be repeated"
    )
    profile.add_argument(
        "--batch", action="append", type=int, required=True, metavar="N", help="may be repeated"
    )
    profile.add_argument(
        "--lanes", default="auto", metavar="LANES", help="as in 'tandem devices' (auto)"
    )
    profile.add_argument(
        "--level",
        choices=["D1", "D2"],
        help="determinism level (D1 if all lanes run the same kernels, else D2)",
    )
    profile.add_argument("--quick", action="store_true", help="a third of the rounds, and shorter")
    profile.add_argument("--json", action="store_true", help="print the held-out maps as JSON")
    profile.set_defaults(run=_profile)


def _add_verify(subparsers: Any) -> None:
    verify = subparsers.add_parser(
        "verify-bits",
        help="train under random rescales, moves, resumes and kills, and compare every bit",
        description="Train undisturbed on one device, then under random schedules of rescales,"
        " moves of single workers, resumes from checkpoints and kills, and compare digests of all"
        " state after every step.",
        epilog=_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument(
        "--task", default="mlp", metavar="NAME", help="mlp, dense, longer, rows (mlp)"
    )
    verify.add_argument("--factory", metavar="MODULE:FUNCTION", help="a task of your own instead")
    verify.add_argument("--settings", default="{}", metavar="JSON", help="keywords of the task")
    verify.add_argument("--workers", type=int, default=4, metavar="N", help="logical workers (4)")
    verify.add_argument("--steps", type=int, default=10, metavar="N", help="steps of each run (10)")
    verify.add_argument("--schedules", type=int, default=10, metavar="N", help="(10)")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="of the schedules (0)")
    verify.add_argument(
        "--kind",
        action="append",
        choices=["rescale", "migrate", "resume", "kill"],
        help="only such disturbances; may be repeated (all)",
    )
    verify.add_argument(
        "--lanes", default="auto", metavar="LANES", help="as in 'tandem devices' (auto)"
    )
    verify.add_argument(
        "--level", choices=["D0", "D1", "D2"], default="D1", help="determinism level (D1)"
    )
    verify.add_argument(
        "--shards",
        choices=["mirrored", "single"],
        help="shard the sparse tables, each row on two devices or on one; the undisturbed run has"
        " whole ones (whole)",
    )
    verify.add_argument(
        "--reduction",
        choices=["tree", "ring"],
        default="tree",
        help="the order in which dense gradients are summed: along the tree over logical workers,"
        " or as stock DistributedDataParallel on gloo does (tree)",
    )
    verify.add_argument("--json", action="store_true", help="print as JSON")
    verify.set_defaults(run=_verify)


def need_torch() -> None:
    """Raise :class:`DataError` where torch is not installed."""
    if find_spec("torch") is None:
        raise DataError("the executor needs torch", expected="pip install 'tandem-lab[train]'")


def _devices(args: argparse.Namespace) -> int:
    need_torch()
    from executor.devices import parse_lanes
    from executor.fingerprint import fingerprint
    from executor.machine import probe

    machine = probe()
    lanes = parse_lanes(args.lanes, machine)
    apart = None if args.compare is None else _compared(lanes, args.compare)
    if args.json:
        values: dict[str, Any] = {
            "machine": fingerprint(machine),
            "lanes": [lane.to_json() for lane in lanes],
        }
        print(json.dumps(values if apart is None else values | {"compared": apart}))
        return 0
    _say_machine(machine, fingerprint(machine))
    _say_lanes(lanes, machine)
    if apart is not None:
        _say_compared(apart)
    return 0


def _profile(args: argparse.Namespace) -> int:
    need_torch()
    from executor.devices import parse_lanes
    from executor.levels import Level
    from executor.machine import probe
    from executor.profiler import QUICK, as_json, profile

    machine = probe()
    found = profile(
        args.model,
        args.batch,
        parse_lanes(args.lanes, machine),
        machine,
        level=None if args.level is None else Level(args.level),
        effort=QUICK if args.quick else None,
        say=_say_progress,
    )
    found.profile.save(args.out)
    if args.json:
        print(json.dumps(as_json(found) | {"out": args.out}))
    else:
        _say_profile(found, args.out)
    return 0


def _verify(args: argparse.Namespace) -> int:
    need_torch()
    from executor.devices import parse_lanes
    from executor.levels import Level
    from executor.machine import probe
    from executor.shards import Sharding
    from executor.task import TaskSpec
    from executor.verify import KINDS, Battery, verify
    from executor.workloads import workload

    settings = _json_object(args.settings)
    if args.factory is not None:
        task = TaskSpec(factory=args.factory, settings=settings)
    else:
        task = workload(args.task, args.workers, **settings)
    battery = Battery(
        task=task,
        num_workers=args.workers,
        lanes=parse_lanes(args.lanes, probe()),
        steps=args.steps,
        schedules=args.schedules,
        seed=args.seed,
        kinds=tuple(args.kind or KINDS),
        level=Level(args.level),
        sharding=None if args.shards is None else Sharding(mirrored=args.shards == "mirrored"),
        reduction=args.reduction,
    )
    verdict = verify(battery, on_outcome=None if args.json else _say_outcome)
    if args.json:
        print(json.dumps(_verdict_as_json(verdict)))
    else:
        compared = sum(outcome.compared for outcome in verdict.outcomes)
        number = len(verdict.outcomes)
        equal = number - len(verdict.differing)
        print(f"{equal} of {number} schedules equal, {compared:,} digests compared", end="; ")
        print(f"at the end {verdict.digest}")
    return 1 if verdict.differing else 0


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--settings is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"--settings is {text!r}; expected a JSON object of keywords")
    return value


def _say_outcome(outcome: Outcome) -> None:
    if outcome.difference is None:
        said = "equal"
    else:
        step, tensor = outcome.difference
        said = f"DIFFERS first at step {step} in {tensor}"
    print(f"schedule {outcome.number}: {said} ({'; '.join(outcome.acts)})")


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "digest": verdict.digest,
        "differing": len(verdict.differing),
        "schedules": [
            {
                "acts": list(outcome.acts),
                "difference": outcome.difference,
                "compared": outcome.compared,
                "rescale_s": list(outcome.rescale_s),
                "recovery_s": list(outcome.recovery_s),
            }
            for outcome in verdict.outcomes
        ],
    }


def _say_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def _say_profile(found: Profiled, out: str) -> None:
    print(f"{'model':<24}{'batch':>6}  {'type':<20}{'micro-batch':>14}{'95 %':>22}{'memory':>12}")
    for name, model in found.profile.models.items():
        for batch, row in model.microbatch_s.items():
            for gpu_type, seconds in row.items():
                low, high = model.interval_s[batch][gpu_type]
                memory = model.memory_mib[batch][gpu_type]
                between = f"{1e3 * low:,.3f} to {1e3 * high:,.3f}"
                print(f"{name:<24}{batch:>6}  {gpu_type:<20}{1e3 * seconds:>11,.3f} ms", end="")
                print(f"{between:>22}{memory:>8,.0f} MiB")
    print()
    for name, model in found.profile.models.items():
        for gpu_type, seconds in model.switch_s.items():
            update = 1e3 * model.update_s[gpu_type]
            print(f"{name} on {gpu_type}: switch {1e3 * seconds:.3f} ms, update {update:.3f} ms")
        parts = [("start", model.start_s), ("rescale", model.rescale_s)]
        parts.append(("checkpoint", model.checkpoint_s))
        said = ", ".join(f"{what} {1e3 * s:.1f} ms" for what, s in parts if s is not None)
        print(f"{name}: {said}")
    for devices, cost in found.profile.reduce.by_devices.items():
        rate = (
            "" if math.isinf(cost.bytes_per_s) else f" + bytes / {cost.bytes_per_s / 1e6:,.0f} MB/s"
        )
        print(f"reduction over {devices}: {1e3 * cost.latency_s:.3f} ms{rate}")
    _say_held_out(found, out)


def _say_held_out(found: Profiled, out: str) -> None:
    print()
    for one in found.held_out:
        layout = " ".join(f"{gpu_type}:{n}" for gpu_type, n in one.layout)
        print(f"held out: {one.model} on {layout}: {1e3 * one.measured_s:.2f} ms", end=", ")
        print(f"predicted {1e3 * one.predicted_s:.2f} ms ({one.error:+.1%})")
    error = found.profile.prediction_error
    assert error is not None
    print(f"mean error {error.mean_share:.1%}", end=" ")
    print(f"over {error.cases} worker maps, {error.max_share:.1%} at most")
    print("; ".join(found.profile.notes[:1] + found.profile.notes[2:3]))
    print(f"profile: {out}")


def _compared(lanes: Sequence[DeviceLane], level: str) -> Mapping[str, Any]:
    from executor.comparing import compare
    from executor.levels import Level

    found = compare(lanes, Level(level))
    first = next(iter(found.digests.values()))
    return {
        "level": level,
        "types": list(found.digests),
        "checks": len(first),
        "differing": found.differing,
    }


def _say_machine(machine: Machine, values: Mapping[str, Any]) -> None:
    kernels = ", ".join(machine.capabilities) or "one set"
    print(f"{machine.cpu_model}: {len(machine.cores)} cores, {machine.memory_mib:,} MiB")
    print(f"CPU kernels of torch {machine.torch_version}: {kernels}")
    for gpu in machine.gpus:
        print(f"cuda:{gpu.index}: {gpu.model}, {gpu.memory_mib:,} MiB", end=", ")
        print(f"{gpu.multiprocessors} multiprocessors")
    if not machine.gpus:
        print("no CUDA device")
    print(f"fingerprint {values['sha256']}")


def _say_lanes(lanes: Sequence[DeviceLane], machine: Machine) -> None:
    print()
    print(f"{'lane':<16}{'type':<24}{'cores':<10}{'memory':>12}  stated")
    for lane in lanes:
        cores = ",".join(map(str, lane.cpus)) or "any"
        memory = "?" if lane.memory_mib is None else f"{lane.memory_mib:,} MiB"
        print(f"{lane.name:<16}{lane.gpu_type:<24}{cores:<10}{memory:>12}  {_stated(lane)}")
    used = [core for lane in lanes for core in lane.cpus]
    if len(used) > len(set(used)):
        print(f"lanes share cores: {len(used)} are wanted and {len(machine.cores)} are there")


def _stated(lane: DeviceLane) -> str:
    parts = []
    if lane.slowdown != 1:
        parts.append(f"slowed {lane.slowdown:g} times")
    if lane.sm_fraction < 1:
        parts.append(f"{100 * lane.sm_fraction:g}% of the multiprocessors")
    return ", ".join(parts) or "-"


def _say_compared(apart: Mapping[str, Any]) -> None:
    print()
    types = " and ".join(apart["types"])
    if not apart["differing"]:
        print(f"at {apart['level']}, {types} agree in all {apart['checks']} checks")
        return
    print(f"at {apart['level']}, {types} differ in {len(apart['differing'])} of", end=" ")
    print(f"{apart['checks']} checks: {', '.join(apart['differing'])}")
