"""One device of a job: its ranks' micro-batches in turn, the exchange, the update, the commit.

A step on every device::

    for each local rank:  context in, micro-batch, context out, gradient to the fold
                          (the last rank's backward starts the exchange bucket by bucket)
    header     all-gather: flags, a checksum of the replica, losses by rank, sizes of what follows
    payload    all-to-all: contexts after this step to the device that keeps a copy of them, partial
               sums of sparse rows to the device that sums their id
    buckets    chunks folded along the tree, all-gather
    sparse     sums of all rows, all-gather (sharded tables: ``executor.rows`` instead)
    apply      the update; with it the step is *committed* here

Parameters change only in ``apply``; a step that breaks before leaves the last committed state and
contexts. A device commits only after everybody has everybody's partial sums and copies of
contexts, so whoever survives a death holds the contexts of every rank for some step at which a
survivor's replica is: the contexts of the last committed step and those of the step in flight are
both kept until the next commit. With sharded tables a device commits only after everybody has all
that the update needs, and what was to be applied is kept until the next step, so whoever survives
a death can still do (``forward``) the step that another survivor has done.

Leaves out: who decides what is done after a break (``executor.job``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from executor import sparse
from executor.context import Context, borrowed_generators, captured, enter, first_context
from executor.data import Fetcher
from executor.errors import ExecutorError, GarbageError
from executor.exchange import Exchange
from executor.faults import Probe
from executor.hashing import checksum
from executor.packing import pack, unpack
from executor.reduce import DenseReducer, Order
from executor.reshard import Holding, columns_of, filled, part_of, reshuffled
from executor.rows import RefusedError, Rows
from executor.shards import Held, Reshuffle, ShardMap
from executor.task import Task
from executor.tree import Block, Fold
from models.sparse.gradients import SparseGradient
from models.sparse.table import EmbeddingTable
from models.train.step import Gradients

STOP = 1  # header flag: pause after this step
_FIXED = 2  # header words before the sizes: flags, checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which ranks each device of a generation holds, in rank order, and which device this is.

    ``shards``: who owns which rows of the tables; None: every device has all.
    """

    blocks: tuple[range, ...]
    index: int
    shards: ShardMap | None = None

    @property
    def own(self) -> range:
        """The ranks of this device."""
        return self.blocks[self.index]

    @property
    def copied(self) -> range:
        """The ranks whose contexts this device keeps a copy of: those of the device before it."""
        return self.blocks[self.index - 1] if len(self.blocks) > 1 else range(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A committed step: its number (counted from 1), mean loss, losses by rank, bytes sent."""

    step: int
    loss: float
    losses: tuple[float, ...]
    stop: bool
    sent_bytes: int


@dataclass(slots=True)
class _Drafts:
    """What a device has of one step: contexts of its ranks, packed copies of its neighbour's."""

    own: dict[int, Context] = field(default_factory=dict)
    copies: dict[int, bytes] = field(default_factory=dict)


class Replica:
    """A job's state on one device, and the contexts it holds.

    ``audit_every``: every so many steps the replicas compare a checksum of all parameters; 0 never.
    ``overlap``: exchange during the last backward. ``slowdown``: every micro-batch is made to last
    this many times as long, for lanes that state it. ``on_host``: partial sums wait on the host.
    ``own_process``: nobody else draws from this process's generators.
    """

    def __init__(
        self,
        task: Task,
        order: Order,
        *,
        probe: Probe | None = None,
        audit_every: int = 0,
        overlap: bool = True,
        fetch_ahead: int = 0,
        slowdown: float = 1.0,
        on_host: bool = False,
        own_process: bool = False,
    ) -> None:
        self.task = task
        self.order = order
        self.probe = Probe() if probe is None else probe
        self.whole = True
        self.last: StepReport | None = None
        self._phase = ("idle", time.monotonic())
        self._audit_every = audit_every
        self._overlap = overlap
        self._slowdown = slowdown
        self._on_host = on_host
        self._own_process = own_process
        self._entered: Context | None = None  # whose states the generators have
        self._fetcher = Fetcher(task.source, fetch_ahead)
        self._held: dict[int, _Drafts] = {}
        self._layout = Layout(blocks=(range(task.num_workers),), index=0)
        self._exchange: Exchange | None = None
        self._reducer: DenseReducer | None = None
        # Of sharded tables: rows by the name of the holding, and what was to be applied last.
        self._holdings: dict[int, Holding] = {}
        self._live: int | None = None
        self._rows: Rows | None = None
        self._prepared: Gradients | None = None

    @property
    def step(self) -> int:
        """Steps committed here."""
        return self.task.step

    @property
    def phase(self) -> str:
        """What is being done: ``turn`` and ``exchange`` are waits for others."""
        return self._phase[0]

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = (phase, time.monotonic())

    @property
    def phase_since_s(self) -> float:
        """When the phase began, on the monotonic clock."""
        return self._phase[1]

    @property
    def index(self) -> int:
        """Which device of the generation this is."""
        return self._layout.index

    @property
    def is_first(self) -> bool:
        """Whether this is device 0, which tells of steps and writes checkpoints."""
        return self._layout.index == 0

    @property
    def ranks(self) -> range:
        """The ranks of this device."""
        return self._layout.own

    def first_contexts(self, ranks: Iterable[int]) -> dict[int, Context]:
        """Return contexts as they are before the first step."""
        task = self.task
        return {
            rank: first_context(
                rank,
                task.seed,
                generators=task.generators,
                buffers=task.buffers(),
                place=task.source.first(rank),
                device=task.device,
            )
            for rank in ranks
        }

    def configure(
        self,
        layout: Layout,
        exchange: Exchange,
        contexts: Mapping[int, bytes | Context],
        *,
        holding: int | None = None,
        number: int = 0,
    ) -> None:
        """Begin a generation: hold these ranks, with these contexts of the step that is committed.

        ``contexts`` has those of our ranks and of the ranks we keep copies of. With shards:
        ``holding`` names the rows that are ours now; None: our tables are whole, and those of our
        shards are kept, as holding ``number``. Raises ExecutorError if a context or the holding is
        missing, damaged or of another step.
        """
        drafts = _Drafts()
        for rank in layout.own:
            if rank not in contexts:
                raise ExecutorError("a context is missing", where=f"rank {rank}")
            found = contexts[rank]
            context = found if isinstance(found, Context) else Context.from_bytes(found)
            if (context.rank, context.step) != (rank, self.step):
                raise ExecutorError(
                    "a context of another step",
                    where=f"rank {rank}",
                    value=(context.rank, context.step),
                    expected=f"rank {rank} after step {self.step}",
                )
            drafts.own[rank] = context
        for rank in layout.copied:
            if rank in contexts:
                found = contexts[rank]
                drafts.copies[rank] = found.to_bytes() if isinstance(found, Context) else found
        self.release()
        self._layout, self._exchange = layout, exchange
        self._held = {self.step: drafts}
        self._reducer = DenseReducer(
            self.task.parameters(),
            self.order,
            layout.blocks,
            exchange,
            scale=self.task.scale,
            device=self._home_of_sums(exchange),
        )
        self._fetcher.follow({rank: c.place for rank, c in drafts.own.items()})
        if layout.shards is not None:
            self._hold(layout.shards, exchange, holding, number)

    def _hold(self, shards: ShardMap, exchange: Exchange, holding: int | None, number: int) -> None:
        """Make the rows of a holding the ones of the task."""
        tables = self.task.tables
        self._prepared = None
        if holding is None:
            numbers = shards.held(exchange.index)
            held = Held(holding=number, size=shards.size, numbers=numbers)
            whole = {} if tables is None else tables.tables
            parts = part_of(whole, self.task.seed, shards.size, numbers)
            self._holdings, holding = {number: Holding(held=held, tables=parts)}, number
        if holding not in self._holdings:
            raise ExecutorError("no such rows here", value=holding, expected="a reshuffle first")
        self._live = holding
        if tables is not None:
            tables.tables.update(self._holdings[holding].tables)
            self._rows = Rows(tables, self.task.seed, shards, exchange, exchange.index)

    def _home_of_sums(self, exchange: Exchange) -> torch.device:
        """Where partial sums wait: where they are exchanged, or with the task if they are not."""
        own = self.task.device
        if exchange.size > 1:
            return own if exchange.device.type == own.type else exchange.device
        return torch.device("cpu") if self._on_host else own

    def release(self) -> None:
        """Leave the generation: close the exchange; state and contexts stay."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        if self._reducer is not None:
            self._reducer.close()
            self._reducer = None
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def close(self) -> None:
        """Leave the generation and end the threads that fetch data."""
        self.release()
        self._fetcher.close()

    def held_contexts(self) -> dict[int, dict[int, bytes]]:
        """Return all contexts held here as bytes, by step and rank."""
        return {
            step: {rank: c.to_bytes() for rank, c in drafts.own.items()} | drafts.copies
            for step, drafts in self._held.items()
        }

    def own_contexts(self) -> list[Context]:
        """Return the contexts of our ranks after the last committed step, in rank order."""
        return [c for _, c in sorted(self._held[self.step].own.items())]

    def do_step(self, *, stop: bool = False, gather_contexts: bool = False) -> StepReport:
        """Do one step with the other devices, and commit it.

        ``stop``: ask everybody to pause after it; the report says whether anybody did.
        ``gather_contexts``: device 0 gets the contexts of all ranks (all devices must agree).

        Raises PeerLostError when another device is gone, GarbageError when one sent what cannot be
        right, and what the task raises; the state is then that of the last commit, unless ``whole``
        says otherwise.
        """
        exchange, reducer = self._exchange, self._reducer
        if exchange is None or reducer is None:
            raise ExecutorError("the device belongs to no generation", expected="configure first")
        sent_before = exchange.sent_bytes
        self._prepared = None
        # All devices of the generation are configured: what was held before is not needed any more.
        self._holdings = {n: h for n, h in self._holdings.items() if n == self._live}
        drafts = self._held[self.step + 1] = _Drafts()
        reducer.begin()
        losses, partials = self._micro_steps(reducer, drafts)
        self.phase = "exchange"
        flags = STOP if stop else 0
        damage = self.probe("exchange", self.step, self._layout.own) == "damage"
        payloads = self._payloads(drafts, partials, gather_contexts, damage)
        headers = self._headers(exchange, reducer, flags, losses, payloads)
        received = self._swap(exchange, payloads, headers)
        self.probe("fold", self.step, self._layout.own)
        sums = self._unpack(received, drafts) if exchange.size > 1 else [partials]
        self._look_for_garbage(headers)
        dense = reducer.finish()
        by_rank = self._losses(headers)
        loss = self._tree_of(by_rank)
        if self._rows is None:
            total = Gradients(loss=loss, dense=dense, sparse=self._sparse_total(exchange, sums))
        else:
            total = self._agreed(self._rows, Gradients(loss=loss, dense=dense, sparse={}), sums)
        self._apply(total)
        self._commit()
        stopping = any(int(row[0]) & STOP for row in headers)
        self.last = StepReport(
            step=self.step,
            loss=float(loss) * self.task.scale,  # means are averaged, shares summed, as gradients
            losses=tuple(by_rank),
            stop=stopping,
            sent_bytes=exchange.sent_bytes - sent_before,
        )
        return self.last

    def _agreed(
        self, rows: Rows, total: Gradients, sums: Sequence[Mapping[str, SparseGradient]]
    ) -> Gradients:
        """Return the gradient with the rows held here; from then on we can do the step alone."""
        rows.bring(sums, self.step)
        self._prepared = total = replace(total, sparse=rows.held_sums)
        try:
            rows.agree(self.step)
        except RefusedError:
            self.phase = "apply"
            raise
        return total

    def forward(self, step: int) -> None:
        """Do the step that others have committed and we have not, from what we have of it.

        Raises ExecutorError if that is not there; then the step was committed nowhere.
        """
        if self.step + 1 == step and self._prepared is not None:
            self._apply(self._prepared)
            self._commit()
        if self.step != step:
            raise ExecutorError(
                "the step cannot be done again from what is here",
                value=self.step,
                expected=f"step {step}",
            )

    def _micro_steps(
        self, reducer: DenseReducer, drafts: _Drafts
    ) -> tuple[list[float], dict[str, SparseGradient]]:
        """Run the micro-batches of our ranks one after another."""
        task, own, step = self.task, self._layout.own, self.step
        before = self._held[step].own
        losses, parts = [], []
        exchanging = len(self._layout.blocks) > 1
        batches: dict[int, tuple[Any, Any]] = {}
        if self._rows is not None:
            self.phase = "exchange"
            batches = {rank: self._fetcher.next(rank, before[rank].place) for rank in own}
            self._rows.fetch([task.ids(batch) for batch, _ in batches.values()])
        self.phase = "turn"
        owned = self._own_process
        with borrowed_generators(task.generators, task.device, owned=owned):
            self.phase = "compute"
            for rank in own:
                spoil = self.probe("micro-step", step, range(rank, rank + 1)) == "nan"
                context = before[rank]
                if rank in batches:
                    batch, place = batches.pop(rank)
                else:
                    batch, place = self._fetcher.next(rank, context.place)
                if not owned or self._entered is not context:
                    enter(context, task.buffers(), task.device)
                self._entered = None
                if rank == own[-1] and self._overlap and exchanging and not spoil:
                    reducer.arm(rank)
                began = time.perf_counter()
                part = task.micro_step(rank, batch)
                if self._slowdown > 1:
                    time.sleep((time.perf_counter() - began) * (self._slowdown - 1))
                after = captured(context, place, task.buffers(), task.device)
                drafts.own[rank] = self._entered = after
                self.probe("backward", step, range(rank, rank + 1))
                if spoil:
                    part = _spoilt(part)
                reducer.push(rank, part.dense)
                losses.append(float(part.loss))
                parts.append(part.sparse)
        if self._rows is not None:
            self._rows.forget()
        if task.tables is None:
            return losses, {}
        return losses, sparse.partial_sums(parts, own, task.num_workers)

    def _payloads(
        self,
        drafts: _Drafts,
        partials: Mapping[str, SparseGradient],
        gather_contexts: bool,
        damage: bool,
    ) -> list[bytes]:
        """What goes to each other device: context copies and sparse rows that it sums."""
        size = len(self._layout.blocks)
        if size == 1:
            return [b""]
        summer = None if self._rows is None else self._rows.owner
        rows = sparse.split(partials, size, summer) if partials else [{} for _ in range(size)]
        copier = (self._layout.index + 1) % size
        wanted = {copier, 0} if gather_contexts else {copier}
        packed = {rank: c.to_bytes() for rank, c in drafts.own.items()} if wanted else {}
        payloads = []
        for device in range(size):
            arrays = dict(rows[device])
            if device in wanted and device != self._layout.index:
                for rank, data in packed.items():
                    arrays[f"context {rank}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            payloads.append(pack(None, arrays) if arrays else b"")
        if damage:
            payloads[copier] = payloads[copier][:-1] + bytes([payloads[copier][-1] ^ 1])
        return payloads

    def _headers(
        self,
        exchange: Exchange,
        reducer: DenseReducer,
        flags: int,
        losses: Sequence[float],
        payloads: Sequence[bytes],
    ) -> Tensor:
        """Tell everybody our flags, checksum, sizes and losses; return everybody's."""
        reducer.launch_rest()
        blocks = self._layout.blocks
        size = len(blocks)
        if size == 1:
            alone = [flags, 0, 0]
            told = torch.tensor(losses, dtype=torch.float64).view(torch.int64)
            return torch.cat((torch.tensor(alone), told)).view(1, -1)
        header = torch.zeros(_FIXED + size + max(map(len, blocks)), dtype=torch.int64)
        header[0] = flags
        if self._audit_every and self.step % self._audit_every == 0:
            header[1] = checksum(self.task.parameters())
        header[_FIXED : _FIXED + size] = torch.tensor([len(p) for p in payloads])
        values = torch.tensor(losses, dtype=torch.float64).view(torch.int64)
        header[_FIXED + size : _FIXED + size + len(losses)] = values
        gathered = torch.empty(size * len(header), dtype=torch.int64)
        exchange.all_gather(gathered, header).wait()
        return gathered.view(size, -1)

    def _swap(self, exchange: Exchange, payloads: Sequence[bytes], headers: Tensor) -> list[bytes]:
        """Give each device its payload and return what each gave us."""
        if len(payloads) == 1:
            return list(payloads)
        sizes_in = [len(p) for p in payloads]
        sizes_out = [int(row[_FIXED + self._layout.index]) for row in headers]
        sending = torch.frombuffer(bytearray(b"".join(payloads)) or bytearray(1), dtype=torch.uint8)
        receiving = torch.empty(max(sum(sizes_out), 1), dtype=torch.uint8)
        exchange.all_to_all(
            receiving[: sum(sizes_out)], sending[: sum(sizes_in)], sizes_out, sizes_in
        ).wait()
        parts = torch.split(receiving[: sum(sizes_out)], sizes_out)
        return [part.numpy().tobytes() for part in parts]

    def _unpack(
        self, received: Sequence[bytes], drafts: _Drafts
    ) -> list[dict[str, SparseGradient]]:
        """Keep the context copies; return the sparse partial sums by device."""
        parts = []
        for device, data in enumerate(received):
            if not data:
                continue
            try:
                _, arrays = unpack(data)
            except ExecutorError as error:
                raise GarbageError(
                    "what a device sent is damaged",
                    culprits=(device,),
                    where=f"device {device}, step {self.step}: {error}",
                ) from None
            for name in [name for name in arrays if name.startswith("context ")]:
                drafts.copies[int(name.split()[1])] = arrays.pop(name).numpy().tobytes()
            if arrays:
                parts.append(sparse.gradients(arrays))
        return parts

    def _look_for_garbage(self, headers: Tensor) -> None:
        sums = headers[:, 1].tolist()
        if len(set(sums)) > 1:
            most = max(sums, key=sums.count)
            # Without a majority nobody can say who is wrong.
            sure = 2 * sums.count(most) > len(sums)
            odd = tuple(i for i, s in enumerate(sums) if s != most) if sure else ()
            raise GarbageError(
                "replicas differ",
                culprits=odd,
                where=f"step {self.step}, device {odd or 'unknown'}",
            )

    def _sparse_total(
        self, exchange: Exchange, parts: Sequence[Mapping[str, SparseGradient]]
    ) -> dict[str, SparseGradient]:
        """Sum the rows that are ours to sum, and get everybody's sums."""
        if self.task.tables is None:
            return {}
        own = pack(None, sparse.columns(sparse.summed(parts)))
        size = exchange.size
        lengths = torch.empty(size, dtype=torch.int64)
        exchange.all_gather(lengths, torch.tensor([len(own)])).wait()
        longest = int(lengths.max())
        sending = torch.zeros(longest, dtype=torch.uint8)
        sending[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        gathered = torch.empty(size * longest, dtype=torch.uint8)
        exchange.all_gather(gathered, sending).wait()
        everybody = []
        for row, length in zip(gathered.view(size, -1), lengths.tolist(), strict=True):
            _, arrays = unpack(row[:length].numpy().tobytes(), "sums of sparse rows")
            everybody.append(sparse.gradients(arrays))
        return sparse.put_together(everybody)

    def _losses(self, headers: Tensor) -> list[float]:
        first = _FIXED + len(self._layout.blocks)
        losses: list[float] = []
        for block, row in zip(self._layout.blocks, headers, strict=True):
            losses += row[first : first + len(block)].view(torch.float64).tolist()
        return losses

    def is_source_of_garbage(self) -> bool:
        """Whether what this device gave to the step that was refused is not finite."""
        return self._reducer is not None and not self._reducer.is_finite()

    def _tree_of(self, by_rank: Sequence[float]) -> Tensor:
        fold: Fold[float] = Fold(self.task.num_workers, float.__add__)
        for rank, loss in enumerate(by_rank):
            fold.push(Block(rank, rank + 1), loss)
        return torch.tensor(fold.total(), dtype=torch.float64)

    def _apply(self, total: Gradients) -> None:
        self.phase = "apply"
        own, step = self._layout.own, self.step
        self.probe("apply", step, own)
        self.whole = False
        try:
            self.task.apply(total)
        except ValueError:
            self.whole = True  # the task's promise: refused, and unchanged
            raise
        self.whole = True
        if self.probe("applied", step, own) == "flip":
            _flip_a_bit(self.task.parameters()[0])

    def _commit(self) -> None:
        self.phase = "idle"
        self._held = {step: held for step, held in self._held.items() if step >= self.step}

    def adopt(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Become another replica: a newcomer, or one that is behind."""
        self.whole = False
        self._entered = None
        self._holdings, self._live, self._prepared = {}, None, None
        if self.task.tables is not None:
            self.task.tables.reader = None
        self.task.restore(step, arrays)
        self._held, self.last = {}, None
        self.whole = True

    # Sharded tables between generations.

    @property
    def prepared(self) -> bool:
        """Whether the step after the last one committed could be done here alone."""
        return self._prepared is not None and self.whole

    def held_rows(self) -> tuple[Held, ...]:
        """Return the holdings that are here."""
        return tuple(h.held for h in self._holdings.values()) if self.whole else ()

    def state_without_rows(self) -> dict[str, Tensor]:
        """Return the task's state, with tables that are empty."""
        tables = self.task.tables
        if tables is None:
            return self.task.state()
        full = dict(tables.tables)
        tables.tables.update({name: table.like() for name, table in full.items()})
        try:
            return self.task.state()
        finally:
            tables.tables.update(full)

    def whole_state(self) -> dict[str, Tensor]:
        """Return all shared state. With shards: all devices at once; rows only on device 0."""
        shards = self._layout.shards
        if shards is None or self._live is None:
            return self.task.state()
        if self._exchange is None:
            raise ExecutorError("the device belongs to no generation", expected="configure first")
        plan = Reshuffle(
            held=tuple(shards.held(device) for device in range(shards.size)),
            size_before=shards.size,
            wanted=tuple((0,) if device == 0 else () for device in range(shards.size)),
            size_after=1,
        )
        return self.gathered(self._exchange, plan, self._live)

    def gathered(self, exchange: Exchange, plan: Reshuffle, holding: int) -> dict[str, Tensor]:
        """Return all shared state where ``plan`` wants rows, without tables elsewhere."""
        here = self._holdings.get(holding)
        tables = self._empty_tables() if here is None else here.tables
        states = reshuffled(exchange, tables, self.task.seed, plan)
        found = self.state_without_rows()
        if not plan.wanted[exchange.index]:
            return {name: value for name, value in found.items() if not name.startswith("table/")}
        return found | {f"table/{name}": value for name, value in columns_of(states).items()}

    def reshuffle(self, exchange: Exchange, plan: Reshuffle, holding: int, into: int) -> int:
        """Make holding ``into`` of ``holding`` with the others of a party; return bytes sent."""
        here = self._holdings.get(holding)
        tables = self._empty_tables() if here is None else here.tables
        before = exchange.sent_bytes
        states = reshuffled(exchange, tables, self.task.seed, plan)
        numbers = plan.wanted[exchange.index]
        self._prepared = None
        self._holdings = {} if here is None else {holding: here}
        if numbers:
            held = Held(holding=into, size=plan.size_after, numbers=numbers)
            self._holdings[into] = Holding(held=held, tables=filled(tables, states))
        return exchange.sent_bytes - before

    def _empty_tables(self) -> dict[str, EmbeddingTable]:
        tables = self.task.tables
        return {} if tables is None else {n: t.like() for n, t in tables.tables.items()}


def _spoilt(part: Gradients) -> Gradients:
    return replace(part, dense=tuple(torch.full_like(g, float("nan")) for g in part.dense))


@torch.no_grad()
def _flip_a_bit(parameter: Tensor) -> None:
    parameter.view(torch.uint8).reshape(-1)[0] ^= 1
