"""How many floating-point operations LONGER takes, counted from lengths alone.

Source: LONGER (arXiv 2505.04421), its count per layer of 24 L d^2 + 4 L^2 d before and
24 L K d^2 + 4 L^2 d / K after merging, spelt out for our layers (D = K d, S merged tokens, m
globals, n = m + min(k, S) queries): InnerTrans 24 L d^2 + 4 L K d; cross layer 20 n D^2 +
4 (S + m) D^2 + 4 n (S + m) D; self-causal layers 24 n D^2 + 4 n^2 D each. Input maps and head are
counted beside it. A multiplication with addition is two operations; norms, activations, softmax and
biases are not counted. True lengths are counted, not padded ones.

Attention is counted twice: over the whole mask, as the paper and most others count, and over the
visible pairs only. The published numbers of Table 2 agree with three times the forward count (a
training step) of one cross and one self-causal layer; ``docs/models/longer.md`` has the comparison.
Recomputation adds executed operations, not model operations; neither is a step's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise

from models.config import LongerConfig
from models.longer.sampling import sampled

TRAINING_PER_FORWARD = 3
"""The backward pass takes two matrix products for each one of the forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations of a forward pass, by part.

    ``features``: behaviours and globals to tokens. ``inner``: InnerTrans. ``cross_dense``,
    ``self_dense``: projections and feed-forward networks. ``cross_attention``, ``self_attention``:
    over the whole mask; ``cross_visible``, ``self_visible``: over its visible pairs.
    """

    features: int
    inner: int
    cross_dense: int
    cross_attention: int
    cross_visible: int
    self_dense: int
    self_attention: int
    self_visible: int
    head: int

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: int) -> Flops:
        return Flops(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    @property
    def layers(self) -> int:
        """The cross and the self-causal layers, whole mask: what the paper's formulas count."""
        return self.cross_dense + self.cross_attention + self.self_dense + self.self_attention

    @property
    def forward(self) -> int:
        """All parts, whole mask."""
        return self.features + self.inner + self.layers + self.head

    @property
    def forward_visible(self) -> int:
        """All parts, visible pairs."""
        hidden = self.cross_attention - self.cross_visible
        return self.forward - hidden - (self.self_attention - self.self_visible)

    @property
    def training(self) -> int:
        """A forward and a backward pass, whole mask."""
        return TRAINING_PER_FORWARD * self.forward


NOTHING = Flops(**dict.fromkeys((f.name for f in fields(Flops)), 0))


def sample_flops(
    config: LongerConfig,
    length: int,
    *,
    num_globals: int | None = None,
    whole_last_layer: bool = True,
) -> Flops:
    """Return the operations of one sample with a history of ``length`` events.

    ``num_globals`` replaces the configuration's m in the layers. ``whole_last_layer``: count the
    last self-causal layer for all n rows, as the paper does; False counts what is executed when
    only the globals' rows of it are computed.
    """
    length = min(length, config.max_length)
    m = config.num_globals if num_globals is None else num_globals
    width, f = config.width, config.ffn_factor
    merged = -(-length // config.merge)
    chosen = min(config.queries, merged)
    n, keys = chosen + m, merged + m
    ffn = 4 * f * width**2
    self_dense = self_pairs = self_seen = 0
    for layer in range(config.self_layers):
        pruned = layer == config.self_layers - 1 and not whole_last_layer
        rows = m if pruned else n
        self_dense += rows * (4 * width**2 + ffn) + n * 4 * width**2
        self_pairs += rows * n
        self_seen += _causal_pairs(rows, n)
    return Flops(
        features=_features(config, length),
        inner=config.inner_layers * _inner(config, length),
        cross_dense=n * (4 * width**2 + ffn) + keys * 4 * width**2,
        cross_attention=4 * width * n * keys,
        cross_visible=4 * width * _cross_pairs(config, merged, m),
        self_dense=self_dense,
        self_attention=4 * width * self_pairs,
        self_visible=4 * width * self_seen,
        head=_head(config),
    )


def batch_flops(
    config: LongerConfig, lengths: Iterable[int], *, whole_last_layer: bool = True
) -> Flops:
    """Return the operations of a batch from its true lengths."""
    total = NOTHING
    for length, count in sorted(Counter(int(n) for n in lengths).items()):
        total += sample_flops(config, length, whole_last_layer=whole_last_layer) * count
    return total


def candidate_flops(config: LongerConfig, length: int) -> int:
    """Return the operations of one candidate against a cached history, all its rows, no head.

    ``num_cross + 1`` rows go through every layer and see the cached keys and themselves.
    """
    rows = config.num_cross + 1
    free = 1 + config.num_cls
    merged = -(-min(length, config.max_length) // config.merge)
    keys = [merged] + [min(config.queries, merged)] * config.self_layers
    dense = rows * config.width**2 * (8 + 4 * config.ffn_factor)
    return sum(dense + 4 * rows * (cached + free + rows) * config.width for cached in keys)


def cache_bytes(config: LongerConfig, length: int, *, bytes_per_number: int) -> int:
    """Return the bytes of keys and values in the cache of a history."""
    free = 1 + config.num_cls
    merged = -(-min(length, config.max_length) // config.merge)
    rows = merged + free + config.self_layers * (min(config.queries, merged) + free)
    return 2 * rows * config.width * bytes_per_number


def mfu(flops: int, *, seconds: float, peak_flops_per_s: float) -> float:
    """Return model FLOPs utilisation: operations over what the device could do in the time."""
    return flops / (seconds * peak_flops_per_s)


def _features(config: LongerConfig, length: int) -> int:
    d, width = config.d, config.width
    event = config.item_dim + config.category_dim + config.action_dim + config.age_dim
    behaviours = 2 * length * (event * d + d * d)
    candidate = 2 * ((config.item_dim + config.category_dim) * width + width**2)
    others = 2 * width * (config.user_dim + config.num_cross * config.cross_dim)
    return behaviours + candidate + others


def _inner(config: LongerConfig, length: int) -> int:
    """One InnerTrans block; an incomplete group has fewer tokens."""
    whole, rest = divmod(length, config.merge)
    pairs = whole * config.merge**2 + rest**2
    return length * (8 + 4 * config.ffn_factor) * config.d**2 + 4 * pairs * config.d


def _head(config: LongerConfig) -> int:
    widths = [(2 + config.num_cls) * config.width, *config.head_hidden, 1]
    return sum(2 * a * b for a, b in pairwise(widths))


def _causal_pairs(queries: int, keys: int) -> int:
    """Visible pairs of a lower-right causal mask."""
    return queries * (2 * keys - queries + 1) // 2


def _cross_pairs(config: LongerConfig, merged: int, m: int) -> int:
    """Visible pairs of the cross layer; queries are not always the newest tokens."""
    seen = int((sampled(merged, config.queries, config.sampling) + 1).sum())
    return seen + _causal_pairs(m, merged + m)
