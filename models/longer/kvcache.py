"""Serving with a cache: one history is encoded once, and many candidates are scored against it.

Source: LONGER (arXiv 2505.04421), serving with a key-value cache. Its complete content follows from
the mask: a row sees only what stands before it, and the cross features and the candidate stand
last, so no row before them depends on a candidate. Kept are the keys and values of these rows: in
the cross layer those of all merged tokens, the user and the CLS tokens; in each self-causal layer
those of the sampled tokens, the user and the CLS tokens; and the last rows of user and CLS for the
head. A candidate adds ``num_cross + 1`` rows of its own, which see the cache and each other but no
other candidate.

Scores equal those of the whole network up to rounding (fp64: 1e-12). Bits may differ, because
matrix products of other shapes may add in another order.

What ``append`` supports: ages and positions of cached events must stay as they were. So groups
and positions must be counted from the oldest event, queries be the recent ones, and the history not
outgrow ``max_length``; ages stay measured from the request for which the history was encoded, and a
later event has age 0. It equals encoding the longer history with those ages. Only the incomplete
group is merged again, and the cross layer runs for new tokens, user and CLS; self-causal layers run
anew over the sampled tokens, whose window has moved. For a request at another time with true ages,
encode anew.

Shapes: R rows, Q candidates, C = num_cross + 1, S cached keys, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models.batch import Lookup
from models.config import LongerConfig
from models.errors import ModelError
from models.longer.attention import Block, Segment, Segments, attend
from models.longer.check import check_candidates, check_events, check_ids
from models.longer.execution import Part
from models.longer.layout import Layout, plan
from models.longer.network import Longer
from models.longer.sampling import Ints, lower_right, standing

CHUNK = 256
"""Candidates scored at once; bounds the memory of the attention scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events of one user, oldest first: columns (L,) as in ``models.batch.Batch``."""

    item: Tensor
    category: Tensor
    action: Tensor
    age_s: Tensor

    def __len__(self) -> int:
        return int(self.item.shape[0])

    def __getitem__(self, rows: slice) -> Events:
        return Events(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def followed_by(self, later: Events) -> Events:
        """Return these events and then the later ones."""
        return Events(
            **{
                f.name: torch.cat([getattr(self, f.name), getattr(later, f.name)])
                for f in fields(self)
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Candidates for one user: ``item``, ``category`` (Q,), ``cross`` (Q, num_cross), raw ids."""

    item: Tensor
    category: Tensor
    cross: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What candidates need of one encoded history.

    ``layers``: keys and values (S, H, E) of each layer. ``free`` (1 + num_cls, D): last normalised
    rows of user and CLS. For ``append``: ``events`` in the history (``max_length`` at most), the
    ``tail`` of events in the incomplete group, and ``sampled`` (k, D), the sampled tokens after the
    cross layer. ``config`` and ``user`` say whose it is.
    """

    config: LongerConfig
    user: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    free: Tensor
    events: int
    tail: Events
    sampled: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that scoring reads: keys, values and the last rows."""
        tensors = [self.free, *(t for pair in self.layers for t in pair)]
        return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def encode(network: Longer, user: Tensor, events: Events, lookup: Lookup) -> Cache:
    """Encode one history for a user, a scalar int64 id. Raises ModelError for bad events.

    The newest ``max_length`` events count. The network must be in evaluation mode, as for scoring.
    """
    config = network.config
    _evaluating(network)
    check_events(events.item, events.category, events.action, events.age_s, config)
    check_ids("user", user, ())
    events = events[max(0, len(events) - config.max_length) :]
    tokens, layout = _merged(network, events, 0, lookup)
    free = _free(network, user, lookup)
    through = _layers(
        network,
        tokens=tokens,
        chosen=network.chosen(tokens, layout),
        free=free,
        stands=standing(len(tokens), len(free), config.queries, config.sampling),
    )
    return Cache(
        config=config,
        user=user,
        layers=through.layers,
        free=through.free,
        events=len(events),
        tail=events[len(events) // config.merge * config.merge :],
        sampled=through.sampled,
    )


@torch.no_grad()
def append(network: Longer, cache: Cache, later: Events, lookup: Lookup) -> Cache:
    """Return the cache of the history with later events. Raises ModelError where unsupported."""
    config = network.config
    _evaluating(network)
    _same_network(network, cache)
    check_events(later.item, later.category, later.action, later.age_s, config)
    _appendable(config, cache.events + len(later))
    if len(later) == 0:
        return cache
    whole = cache.events // config.merge  # complete merged tokens, which stay as they are
    tail = cache.tail.followed_by(later)
    tokens, _ = _merged(network, tail, whole * config.merge, lookup)
    free = _free(network, cache.user, lookup)
    chosen = tokens[-min(config.queries, len(tokens)) :]
    k, v = cache.layers[0]
    incomplete = len(cache.tail) > 0  # then the last sampled token is the group that has changed
    through = _layers(
        network,
        tokens=tokens,
        chosen=chosen,
        free=free,
        stands=lower_right(len(chosen) + len(free), whole + len(tokens) + len(free)),
        kept=(k[:whole], v[:whole]),
        window=cache.sampled[: len(cache.sampled) - incomplete],
    )
    return Cache(
        config=config,
        user=cache.user,
        layers=through.layers,
        free=through.free,
        events=cache.events + len(later),
        tail=tail[len(tail) // config.merge * config.merge :],
        sampled=through.sampled,
    )


@torch.no_grad()
def score(network: Longer, cache: Cache, candidates: Candidates, lookup: Lookup) -> Tensor:
    """Return the logits (Q,) of candidates against a cache; ModelError for bad candidates."""
    _same_network(network, cache)
    _evaluating(network)
    item, category, cross = candidates.item, candidates.category, candidates.cross
    check_candidates(item, category, cross, len(item), network.config)
    if len(item) == 0:
        return torch.zeros(0, dtype=network.dtype, device=item.device)
    rows = network.execution.run(
        "features",
        network.globals.bound,
        network.vectors(lookup, "cross", cross),
        network.vectors(lookup, "item", item),
        network.vectors(lookup, "category", category),
    )
    return torch.cat([_score(network, cache, part) for part in torch.split(rows, CHUNK)])


def _score(network: Longer, cache: Cache, rows_QCD: Tensor) -> Tensor:  # noqa: N803
    x = rows_QCD
    blocks = _blocks(network)
    for block, (k, v) in zip(blocks, cache.layers, strict=True):
        queries = 1 if block is blocks[-1] else x.shape[1]  # the head reads the candidate's row
        part = _part(network, block)
        x = network.execution.run(part, _against_cache, x, block, queries, k, v)
    free = cache.free.expand(len(x), -1, -1)
    candidate = network.head.norm(x[:, -1])
    return network.execution.run("head", network.head.judge, candidate, free)


def _against_cache(x: Tensor, block: Block, queries: int, k: Tensor, v: Tensor) -> Tensor:
    """Return the last ``queries`` rows (Q, queries, D) of x (Q, C, D) after one block.

    The softmax runs over cached and own keys together; the cache is read, never copied.
    """
    normed = block.norm(x)
    own_k, own_v = block.keys_values(normed)  # (Q, C, H, E)
    x, normed = x[:, -queries:], normed[:, -queries:]
    q = block.queries(normed)
    q = q / q.shape[-1] ** 0.5
    cached = torch.einsum("qnhe,she->qhns", q, k.to(q.dtype))
    own = torch.einsum("qnhe,qche->qhnc", q, own_k)
    hidden = torch.ones(queries, own.shape[-1], dtype=torch.bool, device=x.device)
    own = own.masked_fill(hidden.triu(own.shape[-1] - queries + 1), float("-inf"))
    scores = torch.cat([cached, own], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    shares = torch.softmax(scores, dim=-1, dtype=wide).to(own_v.dtype)
    of_cache, of_own = torch.split(shares, [k.shape[0], own.shape[-1]], dim=-1)
    out = torch.einsum("qhns,she->qnhe", of_cache, v.to(q.dtype))
    out = out + torch.einsum("qhnc,qche->qnhe", of_own, own_v)
    return block.finish(x, out.flatten(2))


def _blocks(network: Longer) -> list[Block]:
    """The layers in order, the cross layer first."""
    blocks = [network.cross, *network.layers]
    return [block for block in blocks if isinstance(block, Block)]


def _merged(network: Longer, events: Events, first: int, lookup: Lookup) -> tuple[Tensor, Layout]:
    """Return merged tokens (S, D) of events, the first of which is the ``first`` of its history."""
    layout = plan(
        torch.tensor([0, len(events)]),
        network.config,
        device=events.item.device,
        num_globals=network.head.free,
        first_position=first,
    )
    rows = layout.events
    tokens = network.merged(
        network.vectors(lookup, "item", events.item[rows]),
        network.vectors(lookup, "category", events.category[rows]),
        events.action[rows],
        events.age_s[rows],
        layout,
    )
    return tokens, layout


def _free(network: Longer, user: Tensor, lookup: Lookup) -> Tensor:
    """Return the tokens of user and CLS (1 + num_cls, D)."""
    vectors = network.vectors(lookup, "user", user.view(1))
    return network.execution.run("features", network.globals.free, vectors)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """Keys and values of every layer, sampled tokens after the first, last normalised free rows."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    sampled: Tensor
    free: Tensor


def _layers(
    network: Longer,
    *,
    tokens: Tensor,
    chosen: Tensor,
    free: Tensor,
    stands: Ints,
    kept: tuple[Tensor, Tensor] | None = None,
    window: Tensor | None = None,
) -> _Layers:
    """Take merged tokens and free tokens through all layers.

    ``chosen``: query tokens; with the free ones they ``stands`` at these keys. ``kept``: keys and
    values of merged tokens before ``tokens``; ``window``: sampled tokens before ``chosen`` that are
    through the cross layer already.
    """
    queries, keys = torch.cat([chosen, free]), torch.cat([tokens, free])
    k, v, rows = _through(network, network.cross, queries, keys, stands, kept)
    sampled = rows[: len(chosen)]
    if window is not None:
        sampled = torch.cat([window, sampled])[-network.config.queries :]
        rows = torch.cat([sampled, rows[len(chosen) :]])
    layers = [(k, v)]
    blocks = _blocks(network)
    for block in blocks[1:]:
        queries = rows[-len(free) :] if block is blocks[-1] else rows
        stands = lower_right(len(queries), len(rows))
        k, v, rows = _through(network, block, queries, rows, stands, None)
        layers.append((k, v))
    last = network.head.norm(rows[-len(free) :])
    return _Layers(layers=tuple(layers), sampled=sampled, free=last)


def _through(
    network: Longer,
    block: Block,
    queries: Tensor,
    keys: Tensor,
    stands: Ints,
    kept: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values (kept ones first) and the query rows after one block."""
    with network.execution.precision(_part(network, block), keys.device):
        k, v = block.keys_values(block.norm(keys))
        if kept is not None:
            k, v = torch.cat([kept[0], k]), torch.cat([kept[1], v])
        one = Segments.of([Segment(1, len(queries), len(k), stands)], device=keys.device)
        q = block.queries(block.norm(queries))
        rows = block.finish(queries, attend(q, k, v, one))
    return k, v, rows.to(network.dtype)


def _part(network: Longer, block: Block) -> Part:
    return "cross" if block is network.cross else "self"


def _evaluating(network: Longer) -> None:
    if network.training and network.config.dropout > 0:
        raise ModelError("would drop out", where="network", expected="network.eval() before")


def _same_network(network: Longer, cache: Cache) -> None:
    if cache.config != network.config:
        raise ModelError(
            "was encoded by a network of another configuration",
            where="cache",
            value=cache.config,
            expected=str(network.config),
        )


def _appendable(config: LongerConfig, events: int) -> None:
    """Raise ModelError unless cached rows stay valid when the history grows to ``events``."""
    for name, needed in (("alignment", "oldest"), ("positions", "oldest"), ("sampling", "recent")):
        if getattr(config, name) != needed:
            raise ModelError(
                "cached tokens would change when events are appended",
                where=name,
                value=getattr(config, name),
                expected=f"{needed!r}, or encode anew",
            )
    if events > config.max_length:
        raise ModelError(
            "the history outgrows the network and its groups would shift",
            where="max_length",
            value=events,
            expected=f"{config.max_length} at most, or encode anew",
        )
