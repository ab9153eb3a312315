"""Rows on their way between devices: from one holding to another, or together for a file.

A *holding* is the rows of a device that belong together with those of the others. A change of
devices makes a new one beside the old; the old one is given up when all devices of the next
generation begin their first step, since until then a device that dies may leave only the old one
whole. Rows go from the first device that has their shard to each that shall have it and has not;
all others stay where they are (``executor.shards.Reshuffle``).

State that is wanted whole, for a checkpoint or for digests, is such a move too: to one shard, on
one device. It is put together in that device's host memory.

Leaves out: moving large shards in pieces. While rows move, a device holds its old ones and its new
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.packing import pack, unpack
from executor.rows import swapped
from executor.shards import Held, Reshuffle, shard_base, shard_of
from models.sparse.table import EmbeddingTable, TableState

COLUMNS = ("ids", "count", "last_step", "admitted", "records")

States = Mapping[str, TableState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The tables of a device, with the rows of the shards that ``held`` names."""

    held: Held
    tables: Mapping[str, EmbeddingTable]


def reshuffled(
    exchange: Exchange,
    tables: Mapping[str, EmbeddingTable],
    seed: int,
    plan: Reshuffle,
) -> dict[str, TableState]:
    """Move rows as ``plan`` says; return those that we shall have, ids ascending.

    ``tables``: with the rows that we have. Nothing of them changes. Raises PeerLostError, or
    ExecutorError for what arrives damaged.
    """
    me = exchange.index
    payloads = [b""] * exchange.size
    parts: dict[str, list[TableState]] = {name: [] for name in sorted(tables)}
    outgoing: list[dict[str, Tensor]] = [{} for _ in range(exchange.size)]
    for name, table in sorted(tables.items()):
        base = shard_base(seed, name)
        ids, _, _ = table.entries()
        before = shard_of(base, ids, plan.size_before)
        after = shard_of(base, ids, plan.size_after)
        parts[name].append(table.state(plan.kept(me, after)))
        for to in range(exchange.size):
            if to != me and bool((chosen := plan.sent(me, to, before, after)).any()):
                outgoing[to] |= columns_of({name: table.state(chosen)})
    payloads = [pack(None, arrays) if arrays else b"" for arrays in outgoing]
    for device, data in enumerate(swapped(exchange, payloads)):
        if data and device != me:
            _, arrays = unpack(data, f"rows from device {device}")
            for name, state in states_of(arrays).items():
                parts[name].append(state)
    return {name: _merged(held) for name, held in parts.items()}


def _merged(parts: list[TableState]) -> TableState:
    """Put rows of different ids together, ids ascending."""
    if len(parts) == 1:
        return parts[0]
    ids, order = torch.sort(torch.cat([p.ids for p in parts]))
    admitted = torch.cat([p.admitted for p in parts])
    record = torch.cumsum(admitted, 0) - 1
    return TableState(
        ids=ids,
        count=torch.cat([p.count for p in parts])[order],
        last_step=torch.cat([p.last_step for p in parts])[order],
        admitted=admitted[order],
        records=torch.cat([p.records for p in parts])[record[order[admitted[order]]]],
    )


def filled(like: Mapping[str, EmbeddingTable], states: States) -> dict[str, EmbeddingTable]:
    """Return new tables of the same settings with these rows."""
    made = {}
    for name, table in like.items():
        made[name] = table.like()
        made[name].restore(states[name])
    return made


def part_of(
    tables: Mapping[str, EmbeddingTable], seed: int, size: int, numbers: tuple[int, ...]
) -> dict[str, EmbeddingTable]:
    """Return new tables with the rows of some shards of whole ones."""
    plan = Reshuffle(held=((0,),), size_before=1, wanted=(numbers,), size_after=size)
    states = {}
    for name, table in tables.items():
        after = shard_of(shard_base(seed, name), table.entries()[0], size)
        states[name] = table.state(plan.kept(0, after))
    return filled(tables, states)


def columns_of(states: States) -> dict[str, Tensor]:
    """Return the columns by ``table/column``."""
    return {
        f"{name}/{column}": getattr(state, column)
        for name, state in states.items()
        for column in COLUMNS
    }


def states_of(arrays: Mapping[str, Tensor]) -> dict[str, TableState]:
    """Read what ``columns_of`` made. Raises ExecutorError if a column is missing."""
    names = sorted({name.rpartition("/")[0] for name in arrays})
    with suppress(KeyError):
        return {n: TableState(**{c: arrays[f"{n}/{c}"] for c in COLUMNS}) for n in names}
    raise ExecutorError("a column of a table is missing", value=sorted(arrays))
