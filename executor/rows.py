"""One device's rows of sharded tables within a generation: fetched, summed, agreed on.

A step, beside what ``executor.replica`` does::

    fetch     before the micro-batches: the ids of all local batches, each once, go to the devices
              that own them, and rows come back (all-to-all twice); rows held here are not asked for
    bring     an id's partial sums go to its owner, which adds them up along the tree over ranks
              (``executor.sparse``), and from there to the owner's mirror
    agree     which ids are too many, where a table has a limit for all shards together; then one
              last all-gather: everybody has all that it needs, and every sum is finite

After the last all-gather a device updates the rows that it holds, and nobody else's. So one that
has committed a step knows that all others *could*: a survivor that has not yet can still do so by
itself, and shards never stay behind each other.

A fetched row has the owner's bits, an id's sum is made by the same functions in the same order as
without shards, and the update of a row reads that row only. Eviction by age is decided row by row;
the limit ``max_ids`` by the order (last step, count, id) over all shards: each names the first that
would go of its own, as many as are too many in all, and the first of all of these go.

Leaves out: checksums of rows on their way (TCP has its own), fetching while the step before
computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from executor import sparse
from executor.errors import ExecutorError, GarbageError
from executor.exchange import Exchange
from executor.packing import pack, unpack
from executor.shards import ShardMap, shard_base, shard_of
from models.sparse.evict import Eviction, evicted
from models.sparse.gradients import SparseGradient
from models.sparse.table import EmbeddingTable, Evictor
from models.sparse.tableset import TableSet


@dataclass(frozen=True, slots=True)
class _Fetched:
    """Rows (U, dim) of ids (U,) ascending, on the CPU and on the table's device."""

    ids: Tensor
    rows: Tensor


class Rows:
    """The rows of one device of a generation: those of ``shards`` that it holds."""

    def __init__(
        self, tables: TableSet, seed: int, shards: ShardMap, exchange: Exchange, index: int
    ) -> None:
        self.tables = tables
        self._shards = shards
        self._exchange = exchange
        self._index = index
        self._names = sorted(tables.tables)
        self._bases = {name: shard_base(seed, name) for name in self._names}
        self._devices = torch.tensor(shards.devices)
        self._held = shards.held(index)
        self._fetched: dict[str, _Fetched] = {}
        self._too_many: dict[str, Tensor] = {}
        self._own: dict[str, SparseGradient] = {}
        self.held_sums: dict[str, SparseGradient] = {}
        tables.reader = self._read
        for name, table in tables.tables.items():
            table.evictor = self._evictor(name) if _limit(table) is not None else None

    def shard(self, name: str, ids: Tensor) -> Tensor:
        """Return the shard of ids of a table."""
        return shard_of(self._bases[name], ids, self._shards.size)

    def owner(self, name: str, ids: Tensor) -> Tensor:
        """Return the device that owns each of ids of a table."""
        return self._devices[self.shard(name, ids)]

    # Before the micro-batches.

    def fetch(self, asked: Sequence[Mapping[str, Tensor]]) -> None:
        """Have the rows of all these ids here until the next fetch. All devices at once."""
        size, index = self._exchange.size, self._index
        wanted, at = {}, {}
        for name in self._names:
            ids = torch.cat([part[name].reshape(-1) for part in asked if name in part] or [_NONE])
            wanted[name] = torch.unique(ids.cpu())
            shard = self.shard(name, wanted[name])
            device = self._devices[shard]
            for number in self._held:
                device = device.masked_fill(shard == number, index)
            at[name] = [(device == d).nonzero().squeeze(1) for d in range(size)]
        rows = {
            name: torch.empty((len(ids), self._table(name).dim)) for name, ids in wanted.items()
        }
        for name, ids in wanted.items():
            here = at[name][index]
            rows[name][here] = self._table(name).values(ids[here]).cpu()
        if size > 1:
            for other, parts in enumerate(self._ask(wanted, at)):
                for name, part in parts.items():
                    rows[name][at[name][other]] = part
        self._fetched = {
            name: _Fetched(ids, rows[name].to(self._table(name).device))
            for name, ids in wanted.items()
        }

    def _ask(
        self, wanted: Mapping[str, Tensor], at: Mapping[str, Sequence[Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Send ids to their owners; return what each device has for us, by table."""
        size, index, names = self._exchange.size, self._index, self._names
        others = [d != index for d in range(size)]
        mine = torch.tensor([[len(at[n][d]) * others[d] for n in names] for d in range(size)])
        counts = torch.empty(size * mine.numel(), dtype=torch.int64)
        self._exchange.all_gather(counts, mine.reshape(-1)).wait()
        counts = counts.view(size, size, len(names))  # asker, asked, table
        asked_of_us = counts[:, index]
        sending = torch.cat(
            [wanted[n][at[n][d]] if others[d] else _NONE for d in range(size) for n in names]
        )
        receiving = torch.empty(int(asked_of_us.sum()), dtype=torch.int64)
        self._exchange.all_to_all(
            receiving, sending, asked_of_us.sum(1).tolist(), mine.sum(1).tolist()
        ).wait()
        dims = torch.tensor([self._table(n).dim for n in names])
        answers = []
        parts = iter(torch.split(receiving, asked_of_us.reshape(-1).tolist()))
        for _ in range(size):
            answers += [self._answer(n, next(parts)) for n in names]
        floats = torch.empty(int((mine * dims).sum()))
        self._exchange.all_to_all(
            floats,
            torch.cat(answers),
            (mine * dims).sum(1).tolist(),
            (asked_of_us * dims).sum(1).tolist(),
        ).wait()
        pieces = iter(torch.split(floats, (mine * dims).reshape(-1).tolist()))
        return [
            {
                n: piece.view(-1, int(dim))
                for n, dim in zip(names, dims, strict=True)
                if len(piece := next(pieces)) or others[d]
            }
            for d in range(size)
        ]

    def _answer(self, name: str, ids: Tensor) -> Tensor:
        if not len(ids):
            return torch.empty(0)
        return self._table(name).values(ids).cpu().reshape(-1)

    def _read(self, table: EmbeddingTable, ids: Tensor) -> Tensor:
        """What a look-up of the step gets: a fetched row for each of ids (U,) ascending."""
        fetched = self._fetched.get(table.name)
        known = _NONE if fetched is None else fetched.ids
        asked = ids.cpu()
        place = torch.searchsorted(known, asked)
        missing = place >= len(known)
        missing[~missing] = known[place[~missing]] != asked[~missing]
        if fetched is None or bool(missing.any()):
            raise ExecutorError(
                "a row was looked up that was not fetched",
                where=f"table {table.name!r}, id {int(asked[missing][0]) if len(asked) else ''}",
                expected="Task.ids to name every id that a micro-step looks up",
            )
        return fetched.rows.index_select(0, place.to(fetched.rows.device))

    def forget(self) -> None:
        """The micro-batches are done: give the memory of fetched rows back."""
        self._fetched = {}

    def close(self) -> None:
        """Leave the generation: what is left of the tables here is no table to look up in."""
        self.forget()
        self.tables.reader = _nobody

    # After them.

    def bring(self, parts: Sequence[sparse.Sparse], step: int) -> None:
        """Have ``held_sums`` here, from the partial sums of the rows that are owned here.

        Raises GarbageError if what an owner sent is damaged.
        """
        own = self._own = sparse.summed(parts)
        self.held_sums = own
        if self._shards.mirror(self._index) is not None:
            self.held_sums = sparse.put_together([own, self._mirrored(own)])
        self._find_too_many(own, step)

    def _mirrored(self, own: sparse.Sparse) -> dict[str, SparseGradient]:
        """Give our sums to our mirror, and take those of the device that we mirror."""
        payloads = [b""] * self._exchange.size
        mirror = self._shards.mirror(self._index)
        assert mirror is not None
        payloads[mirror] = pack(None, sparse.columns(own))
        for device, data in enumerate(swapped(self._exchange, payloads)):
            if data:
                try:
                    return sparse.gradients(unpack(data, "sums of rows")[1])
                except ExecutorError as error:
                    raise GarbageError(
                        "what a device sent is damaged", culprits=(device,), where=str(error)
                    ) from None
        return {}

    def agree(self, step: int) -> None:
        """The last word before the update: when this returns, all devices have what they need.

        Raises RefusedError on all of them if a sum is not finite on one.
        """
        odd = [
            f"table {name!r}, id {int(g.ids[at])}"
            for name, g in self._own.items()
            if (at := _first_not_finite(g.grads)) is not None
        ]
        verdicts = torch.empty(self._exchange.size, dtype=torch.int64)
        self._exchange.all_gather(verdicts, torch.tensor([len(odd)])).wait()
        if bool(verdicts.any()):
            device = int(verdicts.nonzero()[0])
            raise RefusedError(
                "gradient is not finite",
                where=f"step {step}, {odd[0] if odd else f'device {device}'}",
                expected="finite numbers; no table was changed",
            )

    # Eviction by number, over all shards.

    def _find_too_many(self, own: sparse.Sparse, step: int) -> None:
        """Agree on which ids go after this step because there are too many."""
        self._too_many = {}
        due = [n for n in self._names if _due(self._table(n), step)]
        if not due:
            return
        left = {name: self._left(name, own.get(name), step) for name in due}
        counts = torch.empty(self._exchange.size * len(due), dtype=torch.int64)
        mine = torch.tensor([left[name].shape[1] for name in due])
        self._exchange.all_gather(counts, mine).wait()
        totals = counts.view(-1, len(due)).sum(0).tolist()
        too_many = {
            name: total - int(_limit(self._table(name)) or 0)
            for name, total in zip(due, totals, strict=True)
        }
        too_many = {name: over for name, over in too_many.items() if over > 0}
        if not too_many:
            return
        rows = torch.full((3, sum(too_many.values())), -1, dtype=torch.int64)
        start = 0
        for name, over in too_many.items():
            first = _in_order(left[name])[:, :over]
            rows[:, start : start + first.shape[1]] = first
            start += over
        gathered = torch.empty(self._exchange.size * rows.numel(), dtype=torch.int64)
        self._exchange.all_gather(gathered, rows.reshape(-1)).wait()
        together = gathered.view(-1, 3, rows.shape[1]).transpose(0, 1)
        by_table = torch.split(together, list(too_many.values()), dim=2)
        for (name, over), named in zip(too_many.items(), by_table, strict=True):
            candidates = named.reshape(3, -1)
            candidates = candidates[:, candidates[0] >= 0]
            self._too_many[name] = _in_order(candidates)[2, :over]

    def _left(self, name: str, own: SparseGradient | None, step: int) -> Tensor:
        """Return (last step, count, id) (3, n) of owned ids after this step and the rule of age."""
        table = self._table(name)
        ids, count, last_step = table.entries()
        ours = self.shard(name, ids) == self._held[0]
        ids, count, last_step = ids[ours], count[ours].clone(), last_step[ours].clone()
        if own is not None:
            touched, sightings = own.ids.cpu(), own.sightings.cpu()
            order = torch.argsort(ids)
            place = torch.searchsorted(ids[order], touched)
            new = place >= len(ids)
            new[~new] = ids[order[place[~new]]] != touched[~new]
            at = order[place[~new]]
            count[at] += sightings[~new]
            last_step[at] = step
            ids = torch.cat((ids, touched[new]))
            count = torch.cat((count, sightings[new]))
            last_step = torch.cat((last_step, torch.full_like(touched[new], step)))
        stays = ~evicted(_by_age(table), step, last_step, count, ids)
        return torch.stack((last_step, count, ids))[:, stays]

    def _evictor(self, name: str) -> Evictor:
        def gone(step: int, last_step: Tensor, count: Tensor, ids: Tensor) -> Tensor:
            by_age = evicted(_by_age(self._table(name)), step, last_step, count, ids)
            named = self._too_many.get(name)
            return by_age if named is None else by_age | torch.isin(ids, named)

        return gone

    def _table(self, name: str) -> EmbeddingTable:
        return self.tables.tables[name]


_NONE = torch.empty(0, dtype=torch.int64)


class RefusedError(ExecutorError):
    """All devices refuse an update alike; nothing was changed."""


def swapped(exchange: Exchange, payloads: Sequence[bytes]) -> list[bytes]:
    """Give each device its bytes, and return what each gave us; sizes are told first."""
    size = exchange.size
    if size == 1:
        return list(payloads)
    sizes = torch.empty(size * size, dtype=torch.int64)
    sizes_in = [len(p) for p in payloads]
    exchange.all_gather(sizes, torch.tensor(sizes_in)).wait()
    sizes_out = sizes.view(size, size)[:, exchange.index].tolist()
    sending = torch.frombuffer(bytearray(b"".join(payloads)) or bytearray(1), dtype=torch.uint8)
    receiving = torch.empty(max(sum(sizes_out), 1), dtype=torch.uint8)
    exchange.all_to_all(
        receiving[: sum(sizes_out)], sending[: sum(sizes_in)], sizes_out, sizes_in
    ).wait()
    return [part.numpy().tobytes() for part in torch.split(receiving[: sum(sizes_out)], sizes_out)]


def _nobody(table: EmbeddingTable, ids: Tensor) -> Tensor:
    raise ExecutorError(
        "only some rows are here",
        where=f"table {table.name!r}",
        expected="look-ups inside a step of a generation",
    )


def _limit(table: EmbeddingTable) -> int | None:
    return None if table.eviction is None else table.eviction.max_ids


def _due(table: EmbeddingTable, step: int) -> bool:
    rule = table.eviction
    return rule is not None and rule.max_ids is not None and rule.due(step)


def _by_age(table: EmbeddingTable) -> Eviction:
    assert table.eviction is not None
    return replace(table.eviction, max_ids=None)


def _in_order(columns: Tensor) -> Tensor:
    """(last step, count, id) (3, n) in the order in which ids go: the larger id first at a tie."""
    order = torch.argsort(columns[2], descending=True)
    for column in (1, 0):
        order = order[torch.argsort(columns[column][order], stable=True)]
    return columns[:, order]


def _first_not_finite(grads: Tensor) -> int | None:
    if not grads.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(grads))).all()):
        return None
    return int((~torch.isfinite(grads).all(dim=1)).nonzero()[0])
