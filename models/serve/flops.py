"""How many floating-point operations serving takes: a history once, then each candidate.

Counted as ``models.longer.flops`` counts, from what ``models.longer.kvcache`` and
``models.longer.scoring`` execute: of the last layer only the rows that are read, of a layer the
keys and values of all its rows. Attention is counted over the whole mask.
(``models.longer.flops.candidate_flops`` takes every layer for all rows of a candidate and leaves
out features and head; the table on the page of the network has that.)
"""

from __future__ import annotations

from itertools import pairwise

from models.config import LongerConfig
from models.longer.flops import sample_flops


def encode_flops(config: LongerConfig, length: int) -> int:
    """Return the operations of encoding one history of ``length`` events."""
    length = min(length, config.max_length)
    free = 1 + config.num_cls
    layers = sample_flops(config, length, num_globals=free, whole_last_layer=False)
    event = config.item_dim + config.category_dim + config.action_dim + config.age_dim
    tokens = 2 * length * (event * config.d + config.d**2)
    return tokens + 2 * config.user_dim * config.width + layers.inner + layers.layers


def score_flops(config: LongerConfig, length: int) -> int:
    """Return the operations of scoring one candidate against a history of ``length`` events."""
    rows, free, width = config.num_cross + 1, 1 + config.num_cls, config.width
    merged = -(-min(length, config.max_length) // config.merge)
    cached = [merged] + [min(config.queries, merged)] * config.self_layers
    total = 2 * width * (config.item_dim + config.category_dim + width)
    total += 2 * width * config.num_cross * config.cross_dim
    for layer, tokens in enumerate(cached):
        queries = 1 if layer == config.self_layers else rows
        total += rows * 4 * width**2 + queries * (4 + 4 * config.ffn_factor) * width**2
        total += 4 * queries * (tokens + free + rows) * width
    widths = [(1 + free) * width, *config.head_hidden, 1]
    return total + sum(2 * a * b for a, b in pairwise(widths))


def speedup(config: LongerConfig, length: int, candidates: int) -> float:
    """Return by how much the cache reduces the operations of a request with so many candidates.

    Against the whole network for each candidate, its last layer for the rows that are read.
    """
    whole = sample_flops(config, length, whole_last_layer=False).forward
    cached = encode_flops(config, length) + candidates * score_flops(config, length)
    return candidates * whole / cached
