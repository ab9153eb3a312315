"""Where the time of a step goes, by kernel (on CUDA) or operator (on a CPU).

torch's profiler, over a few steps after a warm-up; its own cost is in the operators' numbers, so
these are shares, not speeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kernel or operator: its own milliseconds in a step, calls in a step, share of all."""

    name: str
    ms: float
    calls: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """``lines``, the dearest first, of ``busy_ms`` in a step that took ``step_ms`` by the wall."""

    step_ms: float
    busy_ms: float
    lines: tuple[Line, ...]


def profiled(call: Callable[[], None], device: torch.device, *, steps: int = 3) -> Profile:
    """Profile ``steps`` calls. On CUDA ``busy_ms`` is the kernels' time, without the gaps."""
    cuda = device.type == "cuda"
    wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    call()
    began = time.perf_counter()
    for _ in range(steps):
        call()
    seconds = time.perf_counter() - began
    with profile(activities=wanted, acc_events=True) as found:
        for _ in range(steps):
            call()
    rows = []
    for event in found.key_averages():
        on_device = str(event.device_type).endswith("CUDA")
        # Ranges that a program names are shown on the device's timeline too, around its kernels.
        if on_device != cuda or (cuda and getattr(event, "is_user_annotation", False)):
            continue
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if own > 0:
            rows.append((float(own), event.key, event.count))
    total = sum(own for own, _, _ in rows)
    return Profile(
        step_ms=1e3 * seconds / steps,
        busy_ms=total / 1e3 / steps,
        lines=tuple(
            Line(name=name, ms=own / 1e3 / steps, calls=count / steps, share=own / total)
            for own, name, count in sorted(rows, reverse=True)
        ),
    )
