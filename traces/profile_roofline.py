"""Profiles from data sheets: a roofline estimate where nothing was measured.

One micro-batch of B samples does ``B x flops_per_sample`` floating-point operations and moves
``fixed_bytes + B x bytes_per_sample`` bytes, so it takes at least the longer of operations over the
device's attainable peak and bytes over its attainable bandwidth (Williams, Waterman and Patterson,
CACM 2009). The attainable shares of the published peaks are parameters, because no model reaches
the peaks. FLOPs are of forward and backward together.

Left out: kernels too small to fill a device, and overlap of the two limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from traces.errors import DataError, UsageError, did_you_mean
from traces.profile import ModelProfile, Profile, ReduceCost


def _positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise UsageError(f"roofline: {what}: {name} is {value}; expected a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Peak FLOP/s and memory bandwidth of a GPU type, as its data sheet says."""

    flops: float
    bytes_per_s: float
    memory_mib: float

    def __post_init__(self) -> None:
        _positive("device", flops=self.flops, bytes_per_s=self.bytes_per_s, memory=self.memory_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one micro-batch of a model asks of a device, and what its training keeps there.

    ``fixed_bytes``: moved whatever the batch size (weights, gradients). ``parameters``: dense ones,
    4 bytes of gradient each.
    """

    flops_per_sample: float
    bytes_per_sample: float
    fixed_bytes: float = 0.0
    parameters: int = 0

    def __post_init__(self) -> None:
        _positive("model", flops_per_sample=self.flops_per_sample)
        for name in ("bytes_per_sample", "fixed_bytes", "parameters"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise UsageError(f"roofline: model: {name} is {value}; expected 0 or more")


DEVICES: dict[str, Device] = {
    "k80": Device(flops=4.37e12, bytes_per_s=240e9, memory_mib=12_288),
    "p100": Device(flops=9.3e12, bytes_per_s=732e9, memory_mib=16_384),
    "v100": Device(flops=15.7e12, bytes_per_s=900e9, memory_mib=32_768),
    "t4": Device(flops=8.1e12, bytes_per_s=320e9, memory_mib=16_384),
    "a10": Device(flops=31.2e12, bytes_per_s=600e9, memory_mib=24_576),
    "a100": Device(flops=19.5e12, bytes_per_s=2039e9, memory_mib=81_920),
    "h100": Device(flops=67.0e12, bytes_per_s=3350e9, memory_mib=81_920),
}
"""NVIDIA's data sheets: FP32 outside tensor cores; K80 is one of its two GPUs, P100 the PCIe card
of 16 GB, V100, A100 and H100 the SXM modules."""


def roofline(
    models: Mapping[str, Load],
    batch_sizes: Sequence[int],
    gpu_types: Sequence[str] = tuple(DEVICES),
    *,
    devices: Mapping[str, Device] = DEVICES,
    flops_share: float = 0.5,
    bytes_share: float = 0.7,
    reduce: ReduceCost | None = None,
) -> Profile:
    """Return the analytic profile of some models.

    ``flops_share``, ``bytes_share``: attainable parts of the peaks. Raises :class:`UsageError` for
    a GPU type without a data sheet and for shares outside (0, 1].
    """
    for name, share in (("flops_share", flops_share), ("bytes_share", bytes_share)):
        if not 0.0 < share <= 1.0:
            raise UsageError(f"roofline: {name} is {share}; expected more than 0, at most 1")
    for gpu_type in gpu_types:
        if gpu_type not in devices:
            near = did_you_mean(gpu_type, devices)
            raise UsageError(f"roofline: no data sheet of GPU type {gpu_type!r}; {near}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise DataError("roofline: batch sizes", value=list(batch_sizes), expected="1 or more")
    return Profile(
        models={
            name: ModelProfile(
                microbatch_s={
                    batch: {
                        t: seconds(load, devices[t], batch, flops_share, bytes_share)
                        for t in gpu_types
                    }
                    for batch in batch_sizes
                },
                gradient_bytes=4.0 * load.parameters,
            )
            for name, load in models.items()
        },
        origin="analytic",
        reduce=reduce or ReduceCost(),
        source="roofline",
        notes=(f"attainable: {flops_share:g} of peak FLOP/s, {bytes_share:g} of peak bandwidth",),
    )


def seconds(
    load: Load, device: Device, batch: int, flops_share: float, bytes_share: float
) -> float:
    """Return the longer of the two limits of one micro-batch."""
    return max(
        batch * load.flops_per_sample / (flops_share * device.flops),
        (load.fixed_bytes + batch * load.bytes_per_sample) / (bytes_share * device.bytes_per_s),
    )
