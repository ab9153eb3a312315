"""The fingerprint of a machine: what a measurement on it depends on, with a hash of it.

A profile carries it, so that numbers of one machine are not taken for another's. In it: the CPU's
model and kernels, the number of cores, memory in whole GiB (a kernel update moves some MiB), the
GPUs by model, torch's version and NVIDIA's driver. Not in it: the machine's name, its free memory,
what else runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from executor.machine import Machine


def fingerprint(machine: Machine) -> dict[str, Any]:
    """Return the fingerprint as JSON values; ``sha256`` (16 digits) is of all the others."""
    values: dict[str, Any] = {
        "cpu": machine.cpu_model,
        "capabilities": list(machine.capabilities),
        "cores": len(machine.cores),
        "memory_gib": round(machine.memory_mib / 1024),
        "gpus": [
            {
                "model": gpu.model,
                "memory_gib": round(gpu.memory_mib / 1024),
                "multiprocessors": gpu.multiprocessors,
            }
            for gpu in machine.gpus
        ],
        "torch": machine.torch_version,
        "driver": machine.driver,
    }
    return values | {"sha256": _hash(values)}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs between two fingerprints; none if they are equal."""
    names = list(first) + [name for name in second if name not in first]
    return [n for n in names if n != "sha256" and first.get(n) != second.get(n)]


def _hash(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
