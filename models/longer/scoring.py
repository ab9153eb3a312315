"""Candidates scored against cached histories; ``models.longer.kvcache`` says what is cached.

Source: LONGER (arXiv 2505.04421), serving with a key-value cache. A candidate adds
``num_cross + 1`` rows of its own, which see the cache and each other but no other candidate.

Scores equal those of the whole network up to rounding (fp64: 1e-12). Bits may differ, because
matrix products of other shapes may add in another order. The same holds for ``score_many``, which
takes the candidates of several users at once: what belongs to all of them alike (maps of rows,
feed-forward networks) is one product, attention is each user's own.

Shapes: R rows, Q candidates, C = num_cross + 1, S cached keys, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Lookup
from models.longer.attention import Block
from models.longer.check import check_candidates
from models.longer.kvcache import (
    Cache,
    blocks_of,
    check_evaluating,
    check_same_network,
    part_of,
)
from models.longer.network import Longer

CHUNK = 256
"""Candidates scored at once; bounds the memory of the attention scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Candidates for one user: ``item``, ``category`` (Q,), ``cross`` (Q, num_cross), raw ids."""

    item: Tensor
    category: Tensor
    cross: Tensor


@torch.no_grad()
def score(network: Longer, cache: Cache, candidates: Candidates, lookup: Lookup) -> Tensor:
    """Return the logits (Q,) of candidates against a cache; ModelError for bad candidates."""
    return score_many(network, [(cache, candidates)], lookup)[0]


@torch.no_grad()
def score_many(
    network: Longer, asked: Sequence[tuple[Cache, Candidates]], lookup: Lookup
) -> list[Tensor]:
    """Return for each cache the logits of its candidates; as ``score`` for each, up to rounding."""
    check_evaluating(network)
    for cache, candidates in asked:
        check_same_network(network, cache)
        item = candidates.item
        check_candidates(item, candidates.category, candidates.cross, item.numel(), network.config)
    counts = [len(candidates.item) for _, candidates in asked]
    if sum(counts) == 0:
        return [torch.zeros(0, dtype=network.dtype, device=c.item.device) for _, c in asked]
    rows = network.execution.run(
        "features",
        network.globals.bound,
        network.vectors(lookup, "cross", torch.cat([c.cross for _, c in asked])),
        network.vectors(lookup, "item", torch.cat([c.item for _, c in asked])),
        network.vectors(lookup, "category", torch.cat([c.category for _, c in asked])),
    )
    chunks = _chunks([cache for cache, _ in asked], counts)
    logits = [
        _score(network, chunk, part)
        for chunk, part in zip(chunks, torch.split(rows, CHUNK), strict=True)
    ]
    return list(torch.split(torch.cat(logits), counts))


def _chunks(caches: Sequence[Cache], counts: Sequence[int]) -> Iterator[list[tuple[Cache, int]]]:
    """Yield which caches the candidates of each chunk of ``CHUNK`` belong to, and how many."""
    chunk: list[tuple[Cache, int]] = []
    room = CHUNK
    for cache, count in zip(caches, counts, strict=True):
        left = count
        while left:
            taken = min(left, room)
            chunk.append((cache, taken))
            left, room = left - taken, room - taken
            if room == 0:
                yield chunk
                chunk, room = [], CHUNK
    if chunk:
        yield chunk


def _score(network: Longer, chunk: list[tuple[Cache, int]], rows_QCD: Tensor) -> Tensor:  # noqa: N803
    x = rows_QCD
    blocks = blocks_of(network)
    for number, block in enumerate(blocks):
        queries = 1 if block is blocks[-1] else x.shape[1]  # the head reads the candidate's row
        held = [(*cache.layers[number], count) for cache, count in chunk]
        x = network.execution.run(part_of(network, block), _against_caches, x, block, queries, held)
    free = torch.cat([cache.free.expand(count, -1, -1) for cache, count in chunk])
    candidate = network.head.norm(x[:, -1])
    return network.execution.run("head", network.head.judge, candidate, free)


def _against_caches(
    x: Tensor, block: Block, queries: int, held: Sequence[tuple[Tensor, Tensor, int]]
) -> Tensor:
    """Return the last ``queries`` rows (Q, queries, D) of x (Q, C, D) after one block.

    ``held``: keys and values of a cache, and how many of the candidates are its own.
    """
    normed = block.norm(x)
    own_k, own_v = block.keys_values(normed)  # (Q, C, H, E)
    x, normed = x[:, -queries:], normed[:, -queries:]
    q = block.queries(normed)
    q = q / q.shape[-1] ** 0.5
    counts = [count for _, _, count in held]
    outs = [
        _attended(part, own_keys, own_values, k, v)
        for (k, v, _), part, own_keys, own_values in zip(
            held,
            torch.split(q, counts),
            torch.split(own_k, counts),
            torch.split(own_v, counts),
            strict=True,
        )
    ]
    return block.finish(x, torch.cat(outs).flatten(2))


def _attended(q: Tensor, own_k: Tensor, own_v: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what queries (Q, N, H, E) take from one cache (S, H, E) and their own (Q, C, H, E).

    The softmax runs over cached and own keys together; the cache is read, never copied.
    """
    queries, own_keys = q.shape[1], own_k.shape[1]
    cached = torch.einsum("qnhe,she->qhns", q, k.to(q.dtype))
    own = torch.einsum("qnhe,qche->qhnc", q, own_k)
    hidden = torch.ones(queries, own_keys, dtype=torch.bool, device=q.device)
    own = own.masked_fill(hidden.triu(own_keys - queries + 1), float("-inf"))
    scores = torch.cat([cached, own], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    shares = torch.softmax(scores, dim=-1, dtype=wide).to(own_v.dtype)
    of_cache, of_own = torch.split(shares, [k.shape[0], own_keys], dim=-1)
    out = torch.einsum("qhns,she->qnhe", of_cache, v.to(q.dtype))
    return out + torch.einsum("qhnc,qche->qnhe", of_own, own_v)
