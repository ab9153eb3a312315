"""What a plan is worth: EasyScale's Equation 1 (SC'23, section 3.3), with its identity.

GPU type i has N_i GPUs; one logical worker alone runs C_i micro-batches a second there, and each
GPU of the type holds A_i of them. maxP is the job's number of logical workers::

    (a) nEST = sum N_i A_i, at least maxP
    (b) f = max A_i / C_i over the types used: seconds of a global step (f_overload)
    (c) waste = sum N_i (C_i - A_i / f) + (nEST - maxP) / f: micro-batches a second not done
    (d) waste_norm = waste / sum N_i C_i
    (e) perf = sum N_i C_i - waste = maxP / f

The last equality is algebra, so throughput needs no waste: it is maxP over the step time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from traces import UsageError


class Worth(NamedTuple):
    """nEST, f in seconds, waste and perf in micro-batches a second, waste_norm as a share."""

    capacity: int
    overload_s: float
    waste: float
    waste_share: float
    throughput: float


def equation_1(
    seconds: Sequence[float], gpus: Sequence[int], slots: Sequence[int], workers: int
) -> Worth:
    """Return the worth of a plan; the arguments by GPU type: 1 / C_i, N_i, A_i; and maxP.

    Raises :class:`UsageError` if the GPUs do not hold all workers.
    """
    capacity = sum(n * a for n, a in zip(gpus, slots, strict=True))
    if capacity < workers or workers < 1:
        raise UsageError(f"a plan for {workers} logical workers holds {capacity}")
    used = [(s, n, a) for s, n, a in zip(seconds, gpus, slots, strict=True) if n]
    overload_s = max(a * s for s, _, a in used)
    waste = sum(n * (1.0 / s - a / overload_s) for s, n, a in used)
    waste += (capacity - workers) / overload_s
    speed = sum(n / s for s, n, _ in used)
    return Worth(capacity, overload_s, waste, waste / speed, workers / overload_s)
