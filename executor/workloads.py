"""Small tasks by name, for ``tandem verify-bits``, tests, benchmarks and the first profile.

``mlp`` draws on everything that a logical worker's context has to keep: dropout from torch's
generator, noise from NumPy's and Python's, batch normalisation whose statistics depend on the rank,
data from a generator whose state is the place, AdamW. ``dense`` is a plain stack of layers of a
given size, for timing. ``longer`` is a tiny LONGER with its sparse tables, eviction and curriculum,
``rows`` (``executor.rowtask``) little more than tables.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from executor.context import borrowed_generators, seed_generators
from executor.errors import ExecutorError
from executor.longertask import LongerTask
from executor.moduletask import ModuleTask
from executor.rowtask import rows_task
from executor.task import TaskSpec
from models.config import TINY
from models.sparse.evict import Eviction
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig
from models.train.curriculum import Curriculum
from models.train.step import DenseOptimizer
from traces.errors import did_you_mean

WORKLOADS = ("mlp", "dense", "longer", "rows")


def workload(name: str, num_workers: int, *, seed: int = 0, **settings: Any) -> TaskSpec:
    """Return the spec of a named task. Raises ExecutorError for an unknown name."""
    if name not in WORKLOADS:
        raise ExecutorError(f"unknown workload {name!r}; {did_you_mean(name, WORKLOADS)}")
    return TaskSpec(
        factory=f"{rows_task.__module__ if name == 'rows' else __name__}:{name}_task",
        settings={"num_workers": num_workers, "seed": seed, **settings},
    )


class DrawnSource:
    """Batches (x, y) drawn from a generator of the rank's own, whose state is the place."""

    def __init__(self, seed: int, batch: int, width: int) -> None:
        self._seed, self._batch, self._width = seed, batch, width

    def first(self, rank: int) -> Any:
        """Return the state of a new PCG64."""
        state = np.random.PCG64([self._seed, rank]).state
        return [state["state"]["state"], state["state"]["inc"]]

    def fetch(self, rank: int, place: Any) -> tuple[tuple[Tensor, Tensor], Any]:
        """Return (x (B, width), y (B, 1)) float32, and the state after them."""
        bits = np.random.PCG64()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": place[0], "inc": place[1]},
            "has_uint32": 0,
            "uinteger": 0,
        }
        x = np.random.Generator(bits).standard_normal((self._batch, self._width))
        x_BW = torch.from_numpy(x.astype(np.float32))  # noqa: N806
        state = bits.state["state"]
        return (x_BW, x_BW[:, :3].prod(dim=1, keepdim=True).sin()), [state["state"], state["inc"]]


class Mlp(nn.Module):
    """Two hidden layers with batch normalisation and dropout."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, 1)."""
        x = self.dropout(torch.relu(self.norm(self.first(x))))
        out: Tensor = self.last(self.dropout(torch.nn.functional.gelu(self.second(x))))
        return out


def noisy_loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error of inputs with noise from NumPy and a factor from Python."""
    x, y = (part.to(_device(module)) for part in batch)
    noise = torch.from_numpy(np.random.standard_normal(x.shape).astype(np.float32))  # noqa: NPY002
    out = module(x * (1 + 0.1 * random.random()) + 0.1 * noise.to(x.device))
    return torch.nn.functional.mse_loss(out, y)


def plain_loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error."""
    out = module(batch[0].to(_device(module)))
    return torch.nn.functional.mse_loss(out, batch[1].to(out.device))


def mlp_task(
    *,
    num_workers: int,
    seed: int,
    device: torch.device,
    hidden: int = 24,
    batch: int = 8,
    lr: float = 1e-2,
) -> ModuleTask:
    """Return the task ``mlp``."""
    module = _seeded(seed, lambda: Mlp(8, hidden)).to(device)
    return ModuleTask(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01),
        source=DrawnSource(seed, batch, 8),
        loss=noisy_loss,
        num_workers=num_workers,
        seed=seed,
        device=device,
        schedule=lambda step: min(1.0, (step + 1) / 5),
    )


def dense_task(
    *,
    num_workers: int,
    seed: int,
    device: torch.device,
    width: int = 256,
    layers: int = 4,
    batch: int = 32,
) -> ModuleTask:
    """Return the task ``dense``."""

    def make() -> nn.Module:
        stack: list[nn.Module] = []
        for _ in range(layers):
            stack += [nn.Linear(width, width), nn.GELU()]
        return nn.Sequential(*stack, nn.Linear(width, 1))

    module = _seeded(seed, make).to(device)
    return ModuleTask(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=1e-3),
        source=DrawnSource(seed, batch, width),
        loss=plain_loss,
        num_workers=num_workers,
        seed=seed,
        device=device,
        generators=("torch", "device"),
    )


def longer_task(
    *, num_workers: int, seed: int, device: torch.device, global_batch: int = 16
) -> LongerTask:
    """Return the task ``longer``."""
    from models.data.generator import Generator, GeneratorConfig  # noqa: PLC0415  it needs SciPy

    model = replace(TINY, d=4, max_length=12, queries=2, head_hidden=(8,), dropout=0.1)
    config = TrainConfig(
        model=model,
        global_batch=max(global_batch, num_workers),
        ranks=num_workers,
        train_samples=1000,
        dense=DenseOptimizer(lr=3e-3, weight_decay=0.01, warmup_steps=4, decay_steps=40),
        sparse=RowAdam(lr=3e-3),
        admit_after=2,
        eviction=Eviction(every_steps=7, idle_steps=5, keep_count=40),
        curriculum=Curriculum(stages=((0, 3), (10, 8), (20, None))),
    )
    data = Generator(
        GeneratorConfig(length=12, categories=4, items_per_category=8, min_length=0, num_users=20),
        seed=seed,
    )
    return LongerTask(config, data, seed=seed, device=device)


def _seeded(seed: int, make: Any) -> Any:
    """Make something with torch's generator seeded, and leave that as it was."""
    with borrowed_generators(("torch",)):
        seed_generators(seed, ("torch",), None)
        return make()


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
