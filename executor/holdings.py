"""What a device holds of sharded tables: its rows, from generation to generation.

A device whose job changes its devices has the old holding and the new one until the first step on
the new devices begins (``executor.reshard``). One of them is live: its tables are the task's.
"""

from __future__ import annotations

from torch import Tensor

from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.reshard import Holding, columns_of, filled, part_of, reshuffled
from executor.rows import Rows
from executor.shards import Held, Reshuffle, ShardMap
from executor.task import Task
from models.sparse.table import EmbeddingTable


class Holdings:
    """The rows of one device, by the name of the holding; ``rows``: what a step does with them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._held: dict[int, Holding] = {}
        self._live: int | None = None
        self.rows: Rows | None = None

    def hold(self, shards: ShardMap, exchange: Exchange, holding: int | None, number: int) -> None:
        """Make the rows of a holding the ones of the task.

        None: our tables are whole; those of our shards become holding ``number``.
        """
        tables = self._task.tables
        if holding is None:
            numbers = shards.held(exchange.index)
            held = Held(holding=number, size=shards.size, numbers=numbers)
            whole = {} if tables is None else tables.tables
            parts = part_of(whole, self._task.seed, shards.size, numbers)
            self._held, holding = {number: Holding(held=held, tables=parts)}, number
        if holding not in self._held:
            raise ExecutorError("no such rows here", value=holding, expected="a reshuffle first")
        self._live = holding
        if tables is not None:
            tables.tables.update(self._held[holding].tables)
            self.rows = Rows(tables, self._task.seed, shards, exchange, exchange.index)

    def release(self) -> None:
        """Leave the generation; the rows stay."""
        if self.rows is not None:
            self.rows.close()
            self.rows = None

    def keep_live(self) -> None:
        """Forget what was held before: all devices of the generation are configured."""
        self._held = {n: h for n, h in self._held.items() if n == self._live}

    def clear(self) -> None:
        """Forget everything: the task takes its state from another replica."""
        self._held, self._live = {}, None
        if self._task.tables is not None:
            self._task.tables.reader = None

    def held(self) -> tuple[Held, ...]:
        """Return the holdings that are here."""
        return tuple(h.held for h in self._held.values())

    def state_without_rows(self) -> dict[str, Tensor]:
        """Return the task's state, with tables that are empty."""
        tables = self._task.tables
        if tables is None:
            return self._task.state()
        full = dict(tables.tables)
        tables.tables.update({name: table.like() for name, table in full.items()})
        try:
            return self._task.state()
        finally:
            tables.tables.update(full)

    def whole_state(self, shards: ShardMap | None, exchange: Exchange | None) -> dict[str, Tensor]:
        """Return all shared state. With shards: all devices at once; rows only on device 0."""
        if shards is None or self._live is None:
            return self._task.state()
        if exchange is None:
            raise ExecutorError("the device belongs to no generation", expected="configure first")
        plan = Reshuffle(
            held=tuple(shards.held(device) for device in range(shards.size)),
            size_before=shards.size,
            wanted=tuple((0,) if device == 0 else () for device in range(shards.size)),
            size_after=1,
        )
        return self.gathered(exchange, plan, self._live)

    def gathered(self, exchange: Exchange, plan: Reshuffle, holding: int) -> dict[str, Tensor]:
        """Return all shared state where ``plan`` wants rows, without tables elsewhere."""
        states = reshuffled(exchange, self._tables_of(holding), self._task.seed, plan)
        found = self.state_without_rows()
        if not plan.wanted[exchange.index]:
            return {name: value for name, value in found.items() if not name.startswith("table/")}
        return found | {f"table/{name}": value for name, value in columns_of(states).items()}

    def reshuffle(self, exchange: Exchange, plan: Reshuffle, holding: int, into: int) -> int:
        """Make holding ``into`` of ``holding`` with the others of a party; return bytes sent."""
        here, tables = self._held.get(holding), self._tables_of(holding)
        before = exchange.sent_bytes
        states = reshuffled(exchange, tables, self._task.seed, plan)
        numbers = plan.wanted[exchange.index]
        self._held = {} if here is None else {holding: here}
        if numbers:
            held = Held(holding=into, size=plan.size_after, numbers=numbers)
            self._held[into] = Holding(held=held, tables=filled(tables, states))
        return exchange.sent_bytes - before

    def _tables_of(self, holding: int) -> dict[str, EmbeddingTable]:
        """The tables of a holding, empty ones if it is not here."""
        if holding in self._held:
            return dict(self._held[holding].tables)
        tables = self._task.tables
        return {} if tables is None else {n: t.like() for n, t in tables.tables.items()}
