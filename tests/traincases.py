"""A small run on the generator, for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from models.config import TINY
from models.data.generator import Generator, GeneratorConfig
from models.sparse.evict import Eviction
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig
from models.train.curriculum import Curriculum
from models.train.state import dense_state
from models.train.step import DenseOptimizer, State

MODEL = replace(TINY, d=4, max_length=12, queries=2, head_hidden=(8,), dropout=0.1)
CONFIG = TrainConfig(
    model=MODEL,
    global_batch=12,
    ranks=3,
    train_samples=100,
    dense=DenseOptimizer(lr=3e-3, weight_decay=0.01, warmup_steps=4, decay_steps=40),
    sparse=RowAdam(lr=3e-3),
    admit_after=2,
    eviction=Eviction(every_steps=7, idle_steps=5, keep_count=40),
    curriculum=Curriculum(stages=((0, 3), (10, 8), (20, None))),
)
DATA = Generator(
    GeneratorConfig(length=12, categories=4, items_per_category=8, min_length=0, num_users=20),
    seed=5,
)


def everything(state: State) -> dict[str, Tensor]:
    """All numbers of a state, copied: dense, optimizer, tables, step."""
    found = {name: value.clone() for name, value in dense_state(state).items()}
    for name, table in state.tables.tables.items():
        saved = table.state()
        for column in ("ids", "count", "last_step", "admitted", "records"):
            found[f"{name}/{column}"] = getattr(saved, column).clone()
    return found | {"steps": torch.tensor([state.step, state.tables.step])}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose bits differ."""
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or not _same_bits(a[name], b[name])
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


@contextmanager
def strictly() -> Iterator[None]:
    """One thread and torch's deterministic algorithms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
