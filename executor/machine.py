"""What this machine has: CPU and its kernels, cores, memory, CUDA devices, versions.

CUDA and torch are asked in a child process, so that nobody who only wants to know loads torch, and
so that each CPU capability is seen at work: torch decides once per process, at the first kernel, so
the child forks and every fork asks under another ``ATEN_CPU_CAPABILITY``. A capability counts as
there when torch says it uses it.

Leaves out: NUMA, clocks, and what else runs on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.devices import CAPABILITIES, DeviceLane
from traces.errors import DataError

PROBE_TIMEOUT_S = 120.0
_PROBE = """
import json, os, torch
found = {"torch": torch.__version__, "capabilities": [], "gpus": []}
for capability in CAPABILITIES:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["ATEN_CPU_CAPABILITY"] = capability
        os.write(write, torch.backends.cpu.get_cpu_capability().encode())
        os._exit(0)
    os.close(write)
    if os.read(read, 64).decode().lower() == capability:
        found["capabilities"].append(capability)
    os.waitpid(child, 0)
for index in range(torch.cuda.device_count()):
    gpu = torch.cuda.get_device_properties(index)
    found["gpus"].append(
        {
            "index": index,
            "model": gpu.name,
            "memory_mib": gpu.total_memory >> 20,
            "multiprocessors": gpu.multi_processor_count,
        }
    )
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device; ``model`` as the driver names it."""

    index: int
    model: str
    memory_mib: int
    multiprocessors: int

    @property
    def gpu_type(self) -> str:
        """Short name of the model, as traces and profiles write it: ``h100``, ``v100``, ``t4``."""
        words = re.split(r"[\s_-]+", self.model.lower())
        for before, word in zip(["", *words], words, strict=False):
            if any(character.isdigit() for character in word):
                return f"{before}-{word}" if before in {"rtx", "gtx"} else word
        return "-".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine. ``capabilities``: those of :data:`CAPABILITIES` that torch can run, lowest first
    (none on other than x86). ``cores``: the ones this process may use. ``driver`` is NVIDIA's."""

    cpu_model: str
    capabilities: tuple[str, ...]
    cores: tuple[int, ...]
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()
    torch_version: str
    driver: str | None = None


def probe() -> Machine:
    """Look at this machine; takes about two seconds. Raises :class:`DataError` without torch."""
    found = _ask_torch()
    return Machine(
        cpu_model=_cpu_model(),
        capabilities=tuple(found["capabilities"]),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        memory_mib=_memory_mib(),
        gpus=tuple(Gpu(**gpu) for gpu in found["gpus"]),
        torch_version=found["torch"],
        driver=_driver(),
    )


def check_lane(lane: DeviceLane, machine: Machine) -> None:
    """Raise :class:`DataError` if the machine does not have the lane, or no longer."""
    index = lane.cuda_index
    where = f"lane {lane.name}"
    if index is not None and index not in {gpu.index for gpu in machine.gpus}:
        raise DataError(f"{where}: {lane.device} has gone; this machine shows {len(machine.gpus)}")
    if lane.capability is not None and lane.capability not in machine.capabilities:
        have = ", ".join(machine.capabilities) or "none"
        raise DataError(f"{where}: this CPU does not run {lane.capability}; it runs {have}")
    lost = sorted(set(lane.cpus) - set(machine.cores))
    if lost:
        raise DataError(f"{where}: cores {lost} have gone; this process may use {machine.cores}")


def _ask_torch() -> dict[str, Any]:
    code = f"CAPABILITIES = {CAPABILITIES!r}\n{_PROBE}"
    environ = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    try:
        done = subprocess.run(  # noqa: S603  our own code, in our own interpreter
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env=environ,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"torch did not answer within {PROBE_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise DataError(
            f"torch cannot be asked: {last}", expected="pip install 'tandem-lab[train]'"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        facts = dict(
            re.findall(r"^(vendor_id|cpu family|model|model name|stepping)\s*: (.*)$", text, re.M)
        )
        if "model name" in facts:
            # Virtual machines hide the name behind a general one; the numbers tell CPUs apart.
            numbers = "/".join(facts.get(k, "?") for k in ("cpu family", "model", "stepping"))
            return f"{facts['model name'].strip()} ({numbers})"
    return platform.processor() or platform.machine()


def _memory_mib() -> int:
    """The machine's memory, or the control group's limit if that is less."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        amounts.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(amounts) >> 20


def _driver() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    return None
