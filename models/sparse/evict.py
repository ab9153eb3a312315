"""Which ids a table forgets: a pure function of (last step, count, id) at fixed steps.

Wall time, memory in use and the order of insertion play no part, so every process that has applied
the same steps forgets the same ids. An id that comes back starts anew: count 0, the initial value
of its hash, fresh optimizer state. Leaves out: scores by norm or by a feature, which other systems
offer (TorchRec's KV-ZCH), because the two here bound age and size, which is what a run needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ModelError
from models.sparse.tiers import latest


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """When ids go.

    After every step that is a multiple of ``every_steps``: ids whose last step is more than
    ``idle_steps`` ago and that were seen fewer than ``keep_count`` times (None: however often) go;
    then, while more than ``max_ids`` are left, those with the earliest last step, of these the ones
    seen least often, of these the larger ids. None switches a rule off.
    """

    every_steps: int
    idle_steps: int | None = None
    keep_count: int | None = None
    max_ids: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("every_steps", 1),
            ("idle_steps", 0),
            ("keep_count", 0),
            ("max_ids", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ModelError(
                    "bad setting",
                    where=f"Eviction.{name}",
                    value=value,
                    expected=f"{least} or more",
                )

    def due(self, step: int) -> bool:
        """Whether ids go after this step."""
        return step % self.every_steps == 0


def evicted(rule: Eviction, step: int, last_step: Tensor, count: Tensor, ids: Tensor) -> Tensor:
    """Mark, (n,) bool, the ids that go after ``step``; columns (n,) int64 in any order. Pure."""
    gone = torch.zeros(len(ids), dtype=torch.bool)
    if rule.idle_steps is not None:
        gone = step - last_step > rule.idle_steps
        if rule.keep_count is not None:
            gone &= count < rule.keep_count
    left = (~gone).nonzero().squeeze(1)
    if rule.max_ids is None or len(left) <= rule.max_ids:
        return gone
    # Rank steps and counts together, then let ``latest`` break what is still tied by id.
    by_count = left[torch.argsort(count[left], stable=True)]
    order = by_count[torch.argsort(last_step[by_count], stable=True)]
    changes = (last_step[order[1:]] != last_step[order[:-1]]) | (
        count[order[1:]] != count[order[:-1]]
    )
    rank = torch.zeros(len(order), dtype=torch.int64)
    rank[1:] = torch.cumsum(changes, 0)
    gone[order[~latest(rank, ids[order], rule.max_ids)]] = True
    return gone
