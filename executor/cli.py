"""The executor's commands: ``tandem devices``.

Each handler parses, calls one function of this room, and prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from traces.errors import DataError

if TYPE_CHECKING:
    from executor.devices import DeviceLane
    from executor.machine import Machine

_DEVICES = """examples:
  tandem devices
  tandem devices cpu-avx512x2,cpu-default:slowdown=2
  tandem devices cuda:0x2:sm=50% --json
  tandem devices cpu-avx512,cpu-default --compare D2
"""


def add_commands(subparsers: Any) -> None:
    """Register this room's commands."""
    _add_devices(subparsers)


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
