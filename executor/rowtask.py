"""A task that is almost nothing but its tables: for tests and measurements of sharded rows.

A sample is a user and some items, drawn by a power law over so many raw 64-bit ids; its logit is a
linear map of the mean of the items' vectors times the user's. Labels are bits of a hash. The
machinery (tables, optimizers, state) is that of ``executor.longertask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from executor.longertask import LongerTask
from models.batch import Batch, Lookup
from models.config import TINY
from models.data.collate import Ints
from models.sparse.evict import Eviction
from models.sparse.initial import mix
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig
from models.train.step import DenseOptimizer

_SAMPLES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRows:
    """Samples by number: ``items`` of each, from ``ids`` ids by a power law."""

    ids: int
    items: int
    seed: int

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return the samples of these numbers; ``visible`` is not looked at."""
        count = len(indices)
        first = np.random.PCG64([self.seed, int(indices[0]), count])
        draw = np.random.Generator(first).random((count, self.items + 1))
        number = torch.from_numpy((self.ids**draw - 1).astype(np.int64))
        raw = mix(number.clamp(0, self.ids - 1) + 1)
        none = torch.empty(0, dtype=torch.int64)
        return Batch(
            offsets=torch.arange(0, count * self.items + 1, self.items),
            item=raw[:, 1:].reshape(-1),
            category=none,
            action=none,
            age_s=none.double(),
            candidate_item=none,
            candidate_category=none,
            user=raw[:, 0],
            cross=none.view(0, 1),
            label=(raw[:, 0] & 1).float(),
        )


class Pooled(nn.Module):
    """The network: means of items times users, to a logit."""

    def __init__(self, dim: int, items: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            self.last = nn.Linear(dim, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.last.parameters():
                parameter.uniform_(-1, 1, generator=generator)
        self._items = items

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """Return logits (B,)."""
        items = lookup("item", batch.item).view(len(batch), self._items, -1)
        logits: Tensor = self.last(items.mean(1) * lookup("user", batch.user))[:, 0]
        return logits


def rows_task(
    *,
    num_workers: int,
    seed: int,
    device: torch.device,
    ids: int = 300,
    dim: int = 4,
    items: int = 6,
    batch: int = 4,
    admit_after: int = 2,
    max_ids: int | None = None,
) -> LongerTask:
    """Return the task ``rows``: ``batch`` samples a logical worker; ``max_ids`` of each table."""
    eviction = Eviction(every_steps=3, idle_steps=5, keep_count=40, max_ids=max_ids)
    config = TrainConfig(
        model=replace(TINY, item_dim=dim, user_dim=dim),
        global_batch=batch * num_workers,
        ranks=num_workers,
        train_samples=_SAMPLES,
        dense=DenseOptimizer(lr=1e-2),
        sparse=RowAdam(lr=1e-2),
        admit_after=admit_after,
        eviction=eviction,
    )
    data = DrawnRows(ids=ids, items=items, seed=seed)
    network = Pooled(dim, items, seed)
    return LongerTask(config, data, seed=seed, device=device, network=network)
