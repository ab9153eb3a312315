"""Token merge: K neighbouring tokens of width d become one of width D = K d.

Source: LONGER (arXiv 2505.04421): concatenation, and InnerTrans, transformer blocks inside each
group before it. Depth and heads of InnerTrans are unsaid; here both are parameters. Inside a group
attention is bidirectional: no candidate is there, and a group becomes one token anyway.

A history whose length is no multiple of K has one incomplete group (at which end, the layout's
alignment says). InnerTrans attends to the tokens that exist; the empty slots of the concatenation
are zeros. No work is done on them before the merge.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.config import LongerConfig
from models.longer.attention import Block
from models.longer.layout import Layout


class TokenMerge(nn.Module):
    """Tokens (T, d), in the layout's order, to merged tokens (S_total, D)."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        self.width = config.width
        self.merge = config.merge
        self.blocks = nn.ModuleList(
            Block(
                config.d,
                heads=config.inner_heads,
                ffn_factor=config.ffn_factor,
                dropout=config.dropout,
            )
            for _ in range(config.inner_layers)
        )

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Mix inside the groups, then concatenate each group, its oldest token first."""
        for block in self.blocks:
            tokens = block(tokens, tokens, layout.inner)
        slots = tokens.new_zeros(layout.merged * self.merge, tokens.shape[1])
        return slots.index_copy(0, layout.slot, tokens).view(layout.merged, self.width)
