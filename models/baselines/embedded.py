"""From a batch to tokens and globals with LONGER's own modules: the half that baselines share.

Source: ``models.longer``, whose features, layout and order of globals these are. What a network
then makes of them is its ``judge``.

Shapes: T events, B samples, m globals, d width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.baselines.contract import Baseline
from models.batch import Batch, Lookup
from models.config import LongerConfig
from models.longer.attention import take_rows
from models.longer.check import check_batch, check_vectors
from models.longer.execution import Execution
from models.longer.features import EventFeatures, GlobalTokens
from models.longer.layout import Layout, plan


class Embedded(Baseline):
    """A baseline that judges tokens and globals."""

    def __init__(self, config: LongerConfig, execution: Execution | None) -> None:
        super().__init__()
        self.config = config
        self.execution = Execution() if execution is None else execution
        self.features = EventFeatures(config)
        self.globals = GlobalTokens(config)

    def judge(self, tokens: Tensor, globals_: Tensor, layout: Layout) -> Tensor:
        """Return logits (B,) of tokens (T, d) and globals (B, m, d), in the layout's order."""
        raise NotImplementedError

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """Return the logits (B,) of a batch; see :class:`Baseline`."""
        check_batch(batch, self.config)
        if len(batch) == 0:
            return torch.zeros(0, dtype=self.globals.cls.dtype, device=batch.label.device)
        layout = plan(batch.offsets, self.config, device=batch.item.device)
        tokens, globals_ = self._embed(batch, layout, lookup)
        return take_rows(self.judge(tokens, globals_, layout), layout.places)

    def _embed(self, batch: Batch, layout: Layout, lookup: Lookup) -> tuple[Tensor, Tensor]:
        """Return tokens (T, d) and globals (B, m, d) in the layout's order; each table asked once.

        With nothing merged that is sample after sample, each oldest first.
        """
        events, order, count = layout.events, layout.order, len(layout.events)
        item = self._vectors(
            lookup, "item", torch.cat([batch.item[events], batch.candidate_item[order]])
        )
        category = self._vectors(
            lookup, "category", torch.cat([batch.category[events], batch.candidate_category[order]])
        )
        user = self._vectors(lookup, "user", batch.user[order])
        cross = self._vectors(lookup, "cross", batch.cross[order])
        tokens = self.execution.run(
            "features",
            self.features,
            item[:count],
            category[:count],
            batch.action[events],
            batch.age_s[events],
            layout.position,
        )
        globals_ = self.execution.run(
            "features", self.globals, user, cross, item[count:], category[count:]
        )
        return tokens, globals_

    def _vectors(self, lookup: Lookup, table: str, ids: Tensor) -> Tensor:
        """Return the vectors (..., dim) of ids in the network's precision; ModelError if not."""
        dim = int(getattr(self.config, f"{table}_dim"))
        rows = lookup(table, ids) if ids.numel() else ids.new_zeros((*ids.shape, dim)).float()
        check_vectors(table, rows, (*ids.shape, dim))
        return rows.to(self.globals.cls.dtype)
