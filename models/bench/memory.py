"""How much memory a call needs at its worst, beyond what was there before it.

On CUDA the allocator is asked. On a CPU, torch's profiler reports every allocation and release of
its CPU allocator in order, and the highest running sum is the answer: exact to the byte, the same
on every run, and free of what else the process holds, which the resident set is not. NumPy's
arrays (the layout of a batch, some kilobytes) are not in it.

The profiler's library may say on stderr that it starts and stops; a program that wants quiet sets
``KINETO_LOG_LEVEL=99`` before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile


def peak_bytes(call: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes held at once during ``call`` on ``device``, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as found:
        call()
    assert found.kineto_results is not None
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
