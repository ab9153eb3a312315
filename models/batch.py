"""A batch of samples: jagged histories, one candidate each.

Nothing is padded. Events of sample ``b`` are ``offsets[b]:offsets[b + 1]`` of the event columns,
in chronological order, oldest first (the reading of the mask in ``docs/models/longer.md``). Ids
are raw 64-bit ids of embedding tables; what is embedded by the network itself (actions, ages) is
not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``B`` samples with ``T`` events together.

    ``offsets`` (B+1,) int64, from 0 to T. Events: ``item``, ``category`` (T,) int64 raw ids,
    ``action`` (T,) int64 in 0..num_actions-1, ``age_s`` (T,) float64 seconds before the request,
    0 or more. Samples: ``candidate_item``, ``candidate_category``, ``user`` (B,) int64 raw ids,
    ``cross`` (B, num_cross) int64 raw ids, ``label`` (B,) float32, 0 or 1.
    """

    offsets: Tensor
    item: Tensor
    category: Tensor
    action: Tensor
    age_s: Tensor
    candidate_item: Tensor
    candidate_category: Tensor
    user: Tensor
    cross: Tensor
    label: Tensor

    def __len__(self) -> int:
        return int(self.label.shape[0])

    @property
    def lengths(self) -> Tensor:
        """Events per sample, (B,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class Lookup(Protocol):
    """Embedding tables as the network sees them: table name and raw ids to vectors.

    Tables: ``item``, ``category``, ``user``, ``cross``. ``ids`` (...,) int64; returns
    (..., dim of the table) float32, part of the autograd graph while training.
    """

    def __call__(self, table: str, ids: Tensor) -> Tensor:
        """Return the vectors of ``ids``."""
        ...
