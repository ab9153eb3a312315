"""The shape of a LONGER network (arXiv 2505.04421), and the three sizes it is tried at.

Symbols of the paper: ``d`` width of a behaviour token, ``K`` tokens merged into one (width of a
merged token ``D = K d``), ``L`` longest history, ``k`` query tokens sampled from the merged ones,
``m`` global tokens, ``N`` self-causal layers after the cross-causal one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from models.errors import ModelError

Sampling = Literal["recent", "uniform", "learnable", "recent+uniform"]
End = Literal["newest", "oldest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerConfig:
    """One network. What the paper leaves unsaid is settled here, with the reading in ``docs/``.

    ``num_cross``: categorical cross features of user and candidate. ``num_actions``: kinds of
    behaviour (page view, click, ...). ``age_buckets``: logarithmic buckets of the time between an
    event and the request. ``inner_layers``: transformer blocks inside a merge group (InnerTrans; 0:
    plain concatenation). ``num_cls``: learnable global tokens. ``alignment``: the end of a history
    from which merge groups are counted, so that the incomplete group is at the other end;
    ``positions``: the end from which positions are. Widths are in floats. Raises ModelError for
    sizes that make no network.
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
    action_dim: int = 8
    age_dim: int = 8
    user_dim: int = 32
    cross_dim: int = 16
    dropout: float = 0.0
    head_hidden: tuple[int, ...] = (128,)
    alignment: End = "newest"
    positions: End = "newest"

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            _whole(name, getattr(self, name), 1)
        for name in ("self_layers", "inner_layers", "num_cls", "num_cross"):
            _whole(name, getattr(self, name), 0)
        for width in self.head_hidden:
            _whole("head_hidden", width, 1)
        if self.width % self.heads:
            raise ModelError(
                "does not divide the width of a merged token",
                where="heads",
                value=self.heads,
                expected=f"a divisor of merge * d = {self.width}",
            )
        if self.d % self.inner_heads:
            raise ModelError(
                "does not divide the width of a token",
                where="inner_heads",
                value=self.inner_heads,
                expected=f"a divisor of d = {self.d}",
            )
        if not 0 <= self.dropout < 1:
            raise ModelError(
                "is no share", where="dropout", value=self.dropout, expected="0 <= dropout < 1"
            )
        for name, choices in (("sampling", Sampling), ("alignment", End), ("positions", End)):
            if getattr(self, name) not in get_args(choices):
                raise ModelError(
                    "is unknown",
                    where=name,
                    value=getattr(self, name),
                    expected="one of " + ", ".join(get_args(choices)),
                )

    @property
    def width(self) -> int:
        """Width of a merged token, D = K d."""
        return self.merge * self.d

    @property
    def num_globals(self) -> int:
        """Global tokens, m: user, CLS, crosses, and the candidate last of all."""
        return 1 + self.num_cls + self.num_cross + 1


_AT_LEAST_ONE = (
    *("d", "merge", "max_length", "queries", "heads", "inner_heads", "ffn_factor", "num_actions"),
    *("age_buckets", "item_dim", "category_dim", "action_dim", "age_dim", "user_dim", "cross_dim"),
)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(
            "is no size", where=name, value=value, expected=f"a whole number of {least} or more"
        )


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
