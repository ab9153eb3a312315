"""Where every row of a jagged batch stands, from its lengths alone.

Nothing is padded: a tensor of rows holds the tokens of all samples one after another. What a
padded implementation does with masks is done here once per batch, on the host, with indices:

- Samples are put in order of their number of merged tokens S, so that samples of equal S are
  neighbours and attention over them is one dense call on a view, without a gather.
- Events are put in order of the size of their merge group, full groups first, for the same reason:
  at most K calls serve all groups of a batch. At most one group of a history is incomplete.
- A history longer than ``max_length`` keeps its newest events.

Merge groups and positions are counted from the end that the configuration names (``alignment``,
``positions``). With ``"newest"`` the newest event is position 0 and the last of a complete group,
whatever the length of the history, so equal recent behaviour looks equal in histories of any
length; the incomplete group is the oldest. With ``"oldest"`` appending an event touches only the
newest group, so that cached groups stay valid (``kvcache.append``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.config import LongerConfig
from models.longer.attention import Segment, Segments
from models.longer.sampling import Ints, lower_right, sampled, standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows of one batch of ``B`` samples with ``S_total`` merged tokens from ``T`` events.

    Index tensors are int64 on the batch's device. ``order`` (B,): which sample stands at each
    place; ``places`` (B,): its inverse. ``events`` (T,): row of the batch's event columns of each
    event row here; ``position`` (T,): its position; ``slot`` (T,): its place among the
    ``S_total * K`` slots of merged tokens. ``keys``: rows of [merged tokens; globals] (S_total + B
    m) in the order of the cross layer's keys, sample by sample; ``queries``: rows of [sampled
    tokens; globals] likewise; ``chosen``: rows of the merged tokens that are sampled (of the
    learnable tokens if these are the queries). ``heads`` (B m,): rows of the globals among the
    queries. Segments: ``inner`` inside merge groups, ``cross``, ``self_``, and ``last`` from the
    globals alone.
    """

    order: Tensor
    places: Tensor
    events: Tensor
    position: Tensor
    slot: Tensor
    merged: int
    keys: Tensor
    queries: Tensor
    chosen: Tensor
    heads: Tensor
    inner: Segments
    cross: Segments
    self_: Segments
    last: Segments


def merged_tokens(length: int, config: LongerConfig) -> int:
    """Return S, the merged tokens of a history of ``length`` events."""
    return -(-min(length, config.max_length) // config.merge)


def plan(
    offsets: Tensor,
    config: LongerConfig,
    *,
    device: torch.device,
    num_globals: int | None = None,
    first_position: int = 0,
) -> Layout:
    """Return the layout of histories ``offsets`` (B+1,), with ``num_globals`` globals each.

    ``first_position`` is what a position counts from, where events continue a history. Reads the
    offsets on the host, which waits for the device they are on.
    """
    m = config.num_globals if num_globals is None else num_globals
    bounds = offsets.to("cpu", torch.int64).numpy()
    lengths = np.minimum(np.diff(bounds), config.max_length)
    tokens = -(-lengths // config.merge)
    order = np.argsort(tokens, kind="stable")
    lengths, tokens, ends = lengths[order], tokens[order], bounds[1:][order]
    sizes, counts = np.unique(tokens, return_counts=True)
    equal = [(int(count), int(size)) for count, size in zip(counts, sizes, strict=True)]

    def on_device(values: Ints) -> Tensor:
        return torch.from_numpy(values).to(device)

    events, position, slot, inner = _events(lengths, ends, tokens, config)
    keys, queries, chosen, heads = _rows(equal, m, config)
    return Layout(
        order=on_device(order),
        places=on_device(np.argsort(order, kind="stable")),
        events=on_device(events),
        position=on_device(position + first_position),
        slot=on_device(slot),
        merged=int(tokens.sum()),
        keys=on_device(keys),
        queries=on_device(queries),
        chosen=on_device(chosen),
        heads=on_device(heads),
        inner=Segments.of([Segment(c, size, size, None) for c, size in inner], device=device),
        cross=Segments.of(
            [
                Segment(c, min(config.queries, s) + m, s + m, stands)
                for c, s in equal
                for stands in [standing(s, m, config.queries, config.sampling)]
            ],
            device=device,
        ),
        self_=_causal([(c, n, n) for c, n in _query_counts(equal, m, config)], device),
        last=_causal([(c, m, n) for c, n in _query_counts(equal, m, config)], device),
    )


def _query_counts(
    equal: list[tuple[int, int]], num_globals: int, config: LongerConfig
) -> list[tuple[int, int]]:
    return [(count, min(config.queries, size) + num_globals) for count, size in equal]


def _causal(shapes: list[tuple[int, int, int]], device: torch.device) -> Segments:
    return Segments.of(
        [Segment(count, n, keys, lower_right(n, keys)) for count, n, keys in shapes], device=device
    )


def _ranges(lengths: Ints) -> tuple[Ints, Ints]:
    """Return, for items laid end to end, each item's owner and its index there."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) - starts[owner]


def _events(
    lengths: Ints, ends: Ints, tokens: Ints, config: LongerConfig
) -> tuple[Ints, Ints, Ints, list[tuple[int, int]]]:
    """Return event rows, positions, slots, and (count, size) of the groups, full ones first."""
    merge = config.merge
    owner, index = _ranges(lengths)
    event = (ends - lengths)[owner] + index
    missing = (tokens * merge - lengths)[owner]
    from_newest = config.alignment == "newest"
    within = index + missing if from_newest else index
    incomplete = (0 if from_newest else tokens[owner] - 1) == within // merge
    size = np.where(incomplete, merge - missing, merge)
    base = (np.cumsum(tokens) - tokens)[owner] * merge
    position = lengths[owner] - 1 - index if config.positions == "newest" else index
    by_size = np.argsort(-size, kind="stable")
    sizes, counts = np.unique(size, return_counts=True)
    groups = [(int(c // s), int(s)) for s, c in zip(sizes[::-1], counts[::-1], strict=True)]
    return event[by_size], position[by_size], (base + within)[by_size], groups


def _rows(
    equal: list[tuple[int, int]], m: int, config: LongerConfig
) -> tuple[Ints, Ints, Ints, Ints]:
    """Return rows of keys, of queries, of the chosen tokens, and of the globals among queries."""
    all_tokens = sum(count * size for count, size in equal)
    all_chosen = sum(count * min(config.queries, size) for count, size in equal)
    keys, queries, chosen, heads = ([np.zeros(0, dtype=np.int64)] for _ in range(4))
    token = taken = sample = row = 0
    for count, size in equal:
        k = min(config.queries, size)
        each = np.arange(count)[:, None]
        globals_at = (sample + each) * m + np.arange(m)
        tokens_at = token + each * size
        keys.append(np.hstack([tokens_at + np.arange(size), all_tokens + globals_at]).ravel())
        queries.append(
            np.hstack([taken + each * k + np.arange(k), all_chosen + globals_at]).ravel()
        )
        if config.sampling == "learnable":
            chosen.append(np.tile(np.arange(k), count))
        else:
            chosen.append((tokens_at + sampled(size, k, config.sampling)).ravel())
        heads.append((row + each * (k + m) + k + np.arange(m)).ravel())
        token, taken, sample, row = (
            token + count * size,
            taken + count * k,
            sample + count,
            row + count * (k + m),
        )
    return (
        np.concatenate(keys),
        np.concatenate(queries),
        np.concatenate(chosen),
        np.concatenate(heads),
    )
