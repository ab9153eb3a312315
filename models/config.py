"""The shape of a LONGER network (arXiv 2505.04421), and the three sizes it is tried at.

Symbols of the paper: ``d`` width of a behaviour token, ``K`` tokens merged into one (width of a
merged token ``D = K d``), ``L`` longest history, ``k`` query tokens sampled from the merged ones,
``m`` global tokens, ``N`` self-causal layers after the cross-causal one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Sampling = Literal["recent", "uniform", "learnable", "recent+uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerConfig:
    """One network. What the paper leaves unsaid is settled here, with the reading in ``docs/``.

    ``num_cross``: categorical cross features of user and candidate. ``num_actions``: kinds of
    behaviour (page view, click, ...). ``age_buckets``: logarithmic buckets of the time between an
    event and the request. ``inner_layers``: transformer blocks inside a merge group (InnerTrans; 0:
    plain concatenation). ``num_cls``: learnable global tokens. Widths are in floats.
    """

    d: int = 32
    merge: int = 8
    max_length: int = 2000
    queries: int = 100
    sampling: Sampling = "recent"
    self_layers: int = 1
    inner_layers: int = 1
    heads: int = 4
    inner_heads: int = 1
    ffn_factor: int = 4
    num_cls: int = 1
    num_cross: int = 2
    num_actions: int = 8
    age_buckets: int = 32
    item_dim: int = 32
    category_dim: int = 16
    user_dim: int = 32
    cross_dim: int = 16
    dropout: float = 0.0
    head_hidden: tuple[int, ...] = (128,)

    @property
    def width(self) -> int:
        """Width of a merged token, D = K d."""
        return self.merge * self.d

    @property
    def num_globals(self) -> int:
        """Global tokens, m: user, CLS, crosses, and the candidate last of all."""
        return 1 + self.num_cls + self.num_cross + 1


TINY = LongerConfig(
    d=8,
    merge=4,
    max_length=64,
    queries=8,
    heads=2,
    item_dim=8,
    category_dim=8,
    user_dim=8,
    cross_dim=8,
    head_hidden=(32,),
)
PAPER = LongerConfig()
LONG = replace(PAPER, max_length=10_000)
PRESETS = {"tiny": TINY, "paper": PAPER, "long": LONG}
