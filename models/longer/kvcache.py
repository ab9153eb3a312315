"""Serving with a cache: one history is encoded once, for many candidates to be scored against.

Source: LONGER (arXiv 2505.04421), serving with a key-value cache. Its complete content follows from
the mask: a row sees only what stands before it, and the cross features and the candidate stand
last, so no row before them depends on a candidate. Kept are the keys and values of these rows: in
the cross layer those of all merged tokens, the user and the CLS tokens; in each self-causal layer
those of the sampled tokens, the user and the CLS tokens; and the last rows of user and CLS for the
head. ``models.longer.scoring`` scores candidates against it. ``encode_many`` takes several users at
once, jagged, and gives what ``encode`` gives for each, up to rounding.

What ``append`` supports: ages and positions of cached events must stay as they were. So groups
and positions must be counted from the oldest event, queries be the recent ones, and the history not
outgrow ``max_length``; ages stay measured from the request for which the history was encoded, and a
later event has age 0. It equals encoding the longer history with those ages. Only the incomplete
group is merged again, and the cross layer runs for new tokens, user and CLS; self-causal layers run
anew over the sampled tokens, whose window has moved. For a request at another time with true ages,
encode anew.

Shapes: B users, R rows, S cached keys, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from models.batch import Lookup
from models.config import LongerConfig
from models.errors import ModelError
from models.longer.attention import Block, Segment, Segments, attend, take_rows
from models.longer.check import check_events, check_ids
from models.longer.execution import Part
from models.longer.layout import Layout, plan
from models.longer.network import Longer
from models.longer.sampling import Ints, lower_right


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
        return _bytes([self.free, *(t for pair in self.layers for t in pair)])

    @property
    def held_nbytes(self) -> int:
        """Bytes that keeping the cache takes: what scoring reads, and what ``append`` needs."""
        columns = [getattr(self.tail, f.name) for f in fields(Events)]
        return self.nbytes + _bytes([self.user, self.sampled, *columns])


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def encode(network: Longer, user: Tensor, events: Events, lookup: Lookup) -> Cache:
    """Encode one history for a user, a scalar int64 id. Raises ModelError for bad events.

    The newest ``max_length`` events count. The network must be in evaluation mode, as for scoring.
    """
    check_ids("user", user, ())
    return encode_many(network, user.view(1), [events], lookup)[0]


@torch.no_grad()
def encode_many(
    network: Longer, users: Tensor, histories: Sequence[Events], lookup: Lookup
) -> list[Cache]:
    """Encode the histories of ``users`` (B,) at once; as ``encode`` for each, up to rounding."""
    config = network.config
    check_evaluating(network)
    check_ids("user", users, (len(histories),))
    for events in histories:
        check_events(events.item, events.category, events.action, events.age_s, config)
    if not histories:
        return []
    histories = [events[max(0, len(events) - config.max_length) :] for events in histories]
    tokens, layout = _merged(network, histories, 0, lookup)
    free = _free(network, users[layout.order], lookup)
    layers, sampled, last = _all_layers(network, tokens, free, layout)
    places = layout.places.tolist()
    return [
        Cache(
            config=config,
            user=users[number],
            layers=tuple((keys[place], values[place]) for keys, values in layers),
            free=last[place],
            events=len(events),
            tail=_tail(events, config),
            sampled=sampled[place],
        )
        for number, (place, events) in enumerate(zip(places, histories, strict=True))
    ]


@torch.no_grad()
def append(network: Longer, cache: Cache, later: Events, lookup: Lookup) -> Cache:
    """Return the cache of the history with later events. Raises ModelError where unsupported."""
    config = network.config
    check_evaluating(network)
    check_same_network(network, cache)
    check_events(later.item, later.category, later.action, later.age_s, config)
    check_appendable(config, cache.events + len(later))
    if len(later) == 0:
        return cache
    whole = cache.events // config.merge  # complete merged tokens, which stay as they are
    tail = cache.tail.followed_by(later)
    tokens, _ = _merged(network, [tail], whole * config.merge, lookup)
    free = _free(network, cache.user.view(1), lookup)[0]
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
        tail=_tail(tail, config),
        sampled=through.sampled,
    )


def blocks_of(network: Longer) -> list[Block]:
    """Return the layers in order, the cross layer first."""
    blocks = [network.cross, *network.layers]
    return [block for block in blocks if isinstance(block, Block)]


def _merged(
    network: Longer, histories: Sequence[Events], first: int, lookup: Lookup
) -> tuple[Tensor, Layout]:
    """Return merged tokens (S_total, D) and their layout, with the free globals alone.

    The first event of each history here is the ``first`` of the whole one.
    """
    device = histories[0].item.device
    layout = plan(
        torch.tensor([0, *(len(events) for events in histories)]).cumsum(0),
        network.config,
        device=device,
        num_globals=network.head.free,
        first_position=first,
    )
    rows = layout.events
    item, category, action, age_s = (
        torch.cat([getattr(events, f.name) for events in histories])[rows] for f in fields(Events)
    )
    tokens = network.merged(
        network.vectors(lookup, "item", item),
        network.vectors(lookup, "category", category),
        action,
        age_s,
        layout,
    )
    return tokens, layout


def _free(network: Longer, users: Tensor, lookup: Lookup) -> Tensor:
    """Return the tokens of users and CLS (B, 1 + num_cls, D)."""
    vectors = network.vectors(lookup, "user", users)
    return network.execution.run("features", network.globals.free, vectors)


def _tail(events: Events, config: LongerConfig) -> Events:
    """Return the events of the incomplete group, copied, so that the others can be forgotten."""
    rows = slice(len(events) // config.merge * config.merge, None)
    return Events(**{f.name: getattr(events, f.name)[rows].clone() for f in fields(Events)})


_Parts = list[Tensor]


def _all_layers(
    network: Longer, tokens: Tensor, free: Tensor, layout: Layout
) -> tuple[list[tuple[_Parts, _Parts]], _Parts, _Parts]:
    """Take whole histories through all layers; lists are by user, in the layout's order.

    Returns keys and values of each layer, the sampled tokens after the first, and the last
    normalised rows of user and CLS. What is returned is copied: one user's part can be kept while
    the others are forgotten.
    """
    users, m, width = free.shape
    flat = free.reshape(users * m, width)
    keys = take_rows(torch.cat([tokens, flat]), layout.keys)
    rows = take_rows(torch.cat([network.chosen(tokens, layout), flat]), layout.queries)
    k, v, rows = _through(network, network.cross, rows, keys, layout.cross, None)
    key_rows = _per_user(layout.cross, "keys")
    query_rows = _per_user(layout.cross, "queries")
    layers = [(_split(k, key_rows), _split(v, key_rows))]
    sampled = [part[:-m].clone() for part in torch.split(rows, query_rows)]
    blocks = blocks_of(network)
    for block in blocks[1:]:
        final = block is blocks[-1]  # the head reads the free rows alone
        queries = take_rows(rows, layout.heads) if final else rows
        segments = layout.last if final else layout.self_
        k, v, rows = _through(network, block, queries, rows, segments, None)
        layers.append((_split(k, query_rows), _split(v, query_rows)))
    heads = rows if len(blocks) > 1 else take_rows(rows, layout.heads)
    return layers, sampled, _split(network.head.norm(heads), [m] * users)


def _per_user(segments: Segments, rows: Literal["queries", "keys"]) -> list[int]:
    return [getattr(part, rows) for part in segments.parts for _ in range(part.samples)]


def _split(rows: Tensor, counts: list[int]) -> _Parts:
    return [part.clone() for part in torch.split(rows, counts)]


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
    kept: tuple[Tensor, Tensor],
    window: Tensor,
) -> _Layers:
    """Take the last merged tokens and the free tokens of a history through all layers.

    ``chosen``: query tokens; with the free ones they ``stands`` at these keys. ``kept``: keys and
    values of merged tokens before ``tokens``; ``window``: sampled tokens before ``chosen`` that are
    through the cross layer already.
    """
    queries, keys = torch.cat([chosen, free]), torch.cat([tokens, free])
    one = _one_user(len(queries), len(kept[0]) + len(keys), stands, free.device)
    k, v, rows = _through(network, network.cross, queries, keys, one, kept)
    sampled = torch.cat([window, rows[: len(chosen)]])[-network.config.queries :]
    rows = torch.cat([sampled, rows[len(chosen) :]])
    layers = [(k, v)]
    blocks = blocks_of(network)
    for block in blocks[1:]:
        queries = rows[-len(free) :] if block is blocks[-1] else rows
        stands = lower_right(len(queries), len(rows))
        one = _one_user(len(queries), len(rows), stands, free.device)
        k, v, rows = _through(network, block, queries, rows, one, None)
        layers.append((k, v))
    last = network.head.norm(rows[-len(free) :])
    return _Layers(layers=tuple(layers), sampled=sampled.clone(), free=last)


def _one_user(queries: int, keys: int, stands: Ints, device: torch.device) -> Segments:
    return Segments.of([Segment(1, queries, keys, stands)], device=device)


def _through(
    network: Longer,
    block: Block,
    queries: Tensor,
    keys: Tensor,
    segments: Segments,
    kept: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values (kept ones first) and the query rows after one block."""
    with network.execution.precision(part_of(network, block), keys.device):
        k, v = block.keys_values(block.norm(keys))
        if kept is not None:
            k, v = torch.cat([kept[0], k]), torch.cat([kept[1], v])
        q = block.queries(block.norm(queries))
        rows = block.finish(queries, attend(q, k, v, segments))
    return k, v, rows.to(network.dtype)


def part_of(network: Longer, block: Block) -> Part:
    """Return the part of the network that a layer is."""
    return "cross" if block is network.cross else "self"


def check_evaluating(network: Longer) -> None:
    """Raise ModelError if the network would drop out."""
    if network.training and network.config.dropout > 0:
        raise ModelError("would drop out", where="network", expected="network.eval() before")


def check_same_network(network: Longer, cache: Cache) -> None:
    """Raise ModelError for a cache of another configuration."""
    if cache.config != network.config:
        raise ModelError(
            "was encoded by a network of another configuration",
            where="cache",
            value=cache.config,
            expected=str(network.config),
        )


def check_appendable(config: LongerConfig, events: int) -> None:
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
