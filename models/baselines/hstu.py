"""HSTU-style layers: pointwise attention without softmax, gated, causal, over the whole history.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations" (ICML 2024), eqs. 1-3, for rows X:

    U, V, Q, K = split(SiLU(f1(norm(X))));  A = SiLU(Q K^T + rab) / n;  Y = X + f2(norm(A V) * U)

Read here as: Q K^T scaled by the root of a head's width; n the number of keys a query sees, so that
a sample does not depend on its batch (the norm after it forgets a row's scale anyway); rab a
learnable bias per head and distance in rows. Tokens and globals, the mask and the head are those of
LONGER without merging.

Leaves out: the time part of rab (ages are in every token), the interleaving of items and actions as
tokens of their own (an action is part of its event's token), stochastic length, next-action and
multi-task losses, and the fused kernel: the scores of all pairs are kept for the backward pass, so
memory grows with the square of the length (recompute the part "self", or take fewer samples).

Shapes: R rows, b samples of equal length, N queries, S keys, H heads, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.baselines.contract import draw_parameters, unmerged
from models.baselines.embedded import Embedded
from models.config import LongerConfig
from models.longer.attention import LayerNorm, Segment, Segments, take_rows
from models.longer.execution import Execution
from models.longer.flops import Flops, sample_flops
from models.longer.layout import Layout
from models.longer.network import Head

BLOCK = 256
"""Queries whose scores are computed at once."""


class HstuBlock(nn.Module):
    """One layer of width d, for queries that are the last of the keys. No feed-forward network."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        d = config.d
        self.heads = config.heads
        self.norm = LayerNorm(d)
        self.gate_query = nn.Linear(d, 2 * d)
        self.key_value = nn.Linear(d, 2 * d)
        self.bias = nn.Embedding(config.max_length + config.num_globals, config.heads)
        self.out_norm = LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query_rows: Tensor, key_rows: Tensor, segments: Segments) -> Tensor:
        """Return the query rows (R_q, d) after attending to the key rows (R_k, d)."""
        normed_keys = self.norm(key_rows)
        normed = normed_keys if query_rows is key_rows else self.norm(query_rows)
        gate, q = F.silu(self.gate_query(normed)).chunk(2, dim=1)
        k, v = F.silu(self.key_value(normed_keys)).chunk(2, dim=1)
        mixed = self.out_norm(self._attend(q, k, v, segments))
        rows: Tensor = query_rows + self.dropout(self.out(mixed * gate))
        return rows

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        """Return A V (R_q, d) of queries (R_q, d), keys and values (R_k, d)."""
        query_rows = [part.samples * part.queries for part in segments.parts]
        key_rows = [part.samples * part.keys for part in segments.parts]
        mixed = [
            self._pointwise(q_part, k_part, v_part, part, mask)
            for part, mask, q_part, k_part, v_part in zip(
                segments.parts,
                segments.masks,
                torch.split(q, query_rows),
                torch.split(k, key_rows),
                torch.split(v, key_rows),
                strict=True,
            )
        ]
        return torch.cat(mixed)

    def _pointwise(
        self, q: Tensor, k: Tensor, v: Tensor, part: Segment, mask: Tensor | None
    ) -> Tensor:
        """Return A V (b N, d) of samples of equal length, some queries at a time."""
        shape = (part.samples, -1, self.heads, q.shape[1] // self.heads)
        q, k, v = (rows.view(shape).transpose(1, 2) for rows in (q, k, v))  # (b, H, N or S, E)
        q = q / math.sqrt(q.shape[-1])
        mixed = []
        for first, last, seen in blocks(part.queries, part.keys):
            # Queries are the last of the keys, so this is where they stand.
            stands = torch.arange(seen - (last - first), seen, device=q.device).unsqueeze(1)
            distance = (stands - torch.arange(seen, device=q.device)).clamp(min=0)
            scores = q[:, :, first:last] @ k[:, :, :seen].transpose(2, 3)  # (b, H, n, s)
            weights = F.silu(scores + self.bias(distance).permute(2, 0, 1))
            if mask is not None:
                weights = weights.masked_fill_(~mask[first:last, :seen], 0)
            mixed.append(weights.to(v.dtype) @ v[:, :, :seen] / (stands + 1))
        return torch.cat(mixed, dim=2).transpose(1, 2).flatten(0, 1).flatten(1)


def blocks(queries: int, keys: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, last, seen): queries ``first`` to ``last - 1`` see among the ``seen`` oldest.

    Most of what a causal mask hides is so never computed.
    """
    for first in range(0, queries, BLOCK):
        last = min(first + BLOCK, queries)
        yield first, last, keys - queries + last


class Hstu(Embedded):
    """``1 + self_layers`` HSTU layers over [history; globals], judged as LONGER is."""

    def __init__(
        self, config: LongerConfig, *, execution: Execution | None = None, seed: int = 0
    ) -> None:
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            super().__init__(unmerged(config), execution)
            self.layers = nn.ModuleList(
                HstuBlock(self.config) for _ in range(1 + self.config.self_layers)
            )
            self.head = Head(self.config)
        draw_parameters(self, seed)

    def judge(self, tokens: Tensor, globals_: Tensor, layout: Layout) -> Tensor:
        """Return logits (B,) of the globals after all layers."""
        return self.execution.run("head", self.head, self._trunk(tokens, globals_, layout))

    def _trunk(self, tokens: Tensor, globals_: Tensor, layout: Layout) -> Tensor:
        """Return the globals (B, m, d) after all layers; the last runs for their rows alone."""
        rows = take_rows(torch.cat([tokens, globals_.flatten(0, 1)]), layout.keys)
        *early, last = self.layers
        for layer in early:
            rows = self.execution.run("self", layer, rows, rows, layout.self_)
        if self.execution.whole_last_layer:
            rows = self.execution.run("self", last, rows, rows, layout.self_)
            return take_rows(rows, layout.heads).view_as(globals_)
        heads = take_rows(rows, layout.heads)
        return self.execution.run("self", last, heads, rows, layout.last).view_as(globals_)

    def sample_flops(self, length: int, *, executed: bool = False) -> Flops:
        """Return the operations of one sample, per layer 10 n d^2 + 4 n^2 d over n rows.

        All layers are in ``self_*``. ``executed``: the hidden pairs that are never computed do not
        count, nor do the rows of a pruned last layer, if this network's switches prune it.
        """
        plain = sample_flops(self.config, length)
        d, m = self.config.d, self.config.num_globals
        n = min(length, self.config.max_length) + m
        pruned = executed and not self.execution.whole_last_layer
        layers = [n] * self.config.self_layers + [m if pruned else n]  # queries of each
        if executed:
            pairs = sum((b - a) * seen for rows in layers for a, b, seen in blocks(rows, n))
        else:
            pairs = sum(rows * n for rows in layers)
        return Flops(
            features=plain.features,
            inner=0,
            cross_dense=0,
            cross_attention=0,
            cross_visible=0,
            self_dense=sum(6 * rows * d * d + 4 * n * d * d for rows in layers),
            self_attention=4 * d * pairs,
            self_visible=sum(4 * d * (rows * (2 * n - rows + 1) // 2) for rows in layers),
            head=plain.head,
        )
