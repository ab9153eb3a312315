"""What a training step spends its time on: look-ups, forward, backward, and the two updates.

The step is that of ``models.train.step`` with one logical rank, taken apart so that a clock can
stand between its parts; on CUDA the device is waited for at each, so the parts add up to a little
more than a step that is not watched. Leaves out the step's own checks (that everything is finite).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from models.bench.workload import Prepared
from models.device import deterministic
from models.longer.network import loss

PHASES = ("lookup", "forward", "backward", "sparse_update", "dense_update")
_Clock = Callable[[], float]


class _Timed:
    """A look-up that says how long it took."""

    def __init__(self, prepared: Prepared, now: _Clock) -> None:
        self.tables, self.now, self.seconds = prepared.state.tables, now, 0.0

    def __call__(self, table: str, ids: Tensor) -> Tensor:
        began = self.now()
        rows = self.tables(table, ids)
        self.seconds += self.now() - began
        return rows


def phases(
    prepared: Prepared, *, repeats: int = 5, clock: _Clock = time.perf_counter
) -> dict[str, float]:
    """Return the seconds of each of ``PHASES``, the best of ``repeats`` steps after one."""
    state, device = prepared.state, prepared.device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    best = dict.fromkeys(PHASES, float("inf"))
    with deterministic(device, strict=prepared.workload.strict):
        for number in range(repeats + 1):
            lookup = _Timed(prepared, now)
            times = [now()]
            value = loss(state.network(prepared.batch, lookup), prepared.batch.label)
            times.append(now())
            torch.autograd.backward(value)
            times.append(now())
            state.tables.apply(state.step)
            times.append(now())
            state.optimizer.step()
            state.optimizer.zero_grad()
            times.append(now())
            state.step += 1
            taken = [b - a for a, b in pairwise(times)]
            parts = [lookup.seconds, taken[0] - lookup.seconds, *taken[1:]]
            for name, seconds in zip(PHASES, parts, strict=True):
                if number:
                    best[name] = min(best[name], seconds)
    return best
