"""What a device can do at best: published numbers where there are some, and measured ones.

MFU is a share of a peak, so which peak must be said. Published: NVIDIA's data sheets, dense (no
sparsity), for matrix products in bfloat16 with float32 accumulation and in plain float32 (not
TF32), and memory bandwidth. Measured, here and now: a large square matrix product and a large copy,
best of a few; on a CPU there is nothing else, and on a shared machine it is what is left of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Operations per second by precision, and bytes per second."""

    half_flops_per_s: float
    full_flops_per_s: float
    bytes_per_s: float


PUBLISHED: dict[str, Peak] = {
    # Data sheets: H100 and H200 (SXM), A100 (SXM, 40 and 80 GB), L40S, L4, A10.
    "H200": Peak(half_flops_per_s=989e12, full_flops_per_s=67e12, bytes_per_s=4.8e12),
    "H100 80GB HBM3": Peak(half_flops_per_s=989e12, full_flops_per_s=67e12, bytes_per_s=3.35e12),
    "H100 PCIe": Peak(half_flops_per_s=756e12, full_flops_per_s=51e12, bytes_per_s=2.0e12),
    "A100-SXM4-80GB": Peak(half_flops_per_s=312e12, full_flops_per_s=19.5e12, bytes_per_s=2.039e12),
    "A100-SXM4-40GB": Peak(half_flops_per_s=312e12, full_flops_per_s=19.5e12, bytes_per_s=1.555e12),
    "L40S": Peak(half_flops_per_s=362e12, full_flops_per_s=91.6e12, bytes_per_s=0.864e12),
    "L4": Peak(half_flops_per_s=121e12, full_flops_per_s=30.3e12, bytes_per_s=0.3e12),
    "A10": Peak(half_flops_per_s=125e12, full_flops_per_s=31.2e12, bytes_per_s=0.6e12),
}


def device_name(device: torch.device) -> str:
    """Return the model of a CUDA device, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def published(name: str) -> Peak | None:
    """Return the published peak of a device by the name it gives itself, or None."""
    words = set(name.split())
    for model, peak in PUBLISHED.items():
        if set(model.split()) <= words:
            return peak
    return None


def measured(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """Measure a device's peak: products of square matrices, and a copy, best of five."""
    cuda = device.type == "cuda"
    size, copied = (8192, 2**28) if cuda else (1024, 2**24)

    def seconds(call: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(6):  # the first one warms up, and is never the best
            _wait(device)
            began = clock()
            call()
            _wait(device)
            best = min(best, clock() - began)
        return best

    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        square = torch.ones(size, size, device=device, dtype=dtype)
        out = torch.empty_like(square)
        rates.append(2 * size**3 / seconds(lambda a=square, o=out: torch.mm(a, a, out=o)))  # type: ignore[misc]
    source = torch.ones(copied, device=device)
    target = torch.empty_like(source)
    return Peak(
        half_flops_per_s=rates[0],
        full_flops_per_s=rates[1],
        bytes_per_s=2 * 4 * copied / seconds(lambda: target.copy_(source)),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
