"""One device of a job: its ranks' micro-batches in turn, the exchange, the update, the commit.

A step on every device::

    turns      for each local rank: context in, micro-batch, context out, gradient to the sum
               (``executor.turns``; the last rank's backward starts the exchange bucket by bucket)
    notices    flags, a checksum of the replica and losses to everybody; contexts after this step
               to the device that keeps a copy of them; partial sums of sparse rows to the device
               that sums their id (``executor.notice``), in one exchange (``executor.mail``)
    buckets    partial sums are added up along the tree (``executor.reduce``)
    sparse     sums of all rows to everybody (sharded tables: ``executor.rows`` instead)
    apply      the update; with it the step is *committed* here

Parameters change only in ``apply``; a step that breaks before leaves the last committed state and
contexts. A device commits only after it has everybody's notice and all sums, so whoever survives a
death holds the contexts of every rank for some step at which a survivor's replica is: if it has
committed, those of that step, else those of the step before, since the contexts of the last
committed step and those of the step in flight are both kept until the next commit. With sharded
tables a device commits only after everybody has all that the update needs, and what was to be
applied is kept until the next step, so whoever survives a death can still do (``forward``) the step
that another survivor has done.

Leaves out: who decides what is done after a break (``executor.job``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from executor import notice, sparse
from executor.context import Context, first_context
from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.faults import Probe
from executor.hashing import checksum
from executor.holdings import Holdings
from executor.layout import Layout, StepReport
from executor.mail import Mail
from executor.notice import Notice
from executor.reduce import DenseReducer, Order
from executor.rows import RefusedError, Rows
from executor.shards import Held, Reshuffle
from executor.task import Task
from executor.tree import Block, Fold
from executor.turns import Turns
from models.sparse.gradients import SparseGradient
from models.train.step import Gradients

STOP = 1  # a notice's flag: pause after this step


@dataclass(slots=True)
class _Drafts:
    """What a device has of one step: contexts of its ranks, packed copies of its neighbour's."""

    own: dict[int, Context] = field(default_factory=dict)
    copies: dict[int, bytes] = field(default_factory=dict)


class Replica:
    """A job's state on one device, and the contexts it holds.

    ``audit_every``: every so many steps the replicas compare a checksum of all parameters; 0 never.
    ``overlap``: sum and exchange during backward. ``slowdown``: every micro-batch is made to last
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
        self._on_host = on_host
        self._turns = Turns(
            task,
            overlap=overlap,
            fetch_ahead=fetch_ahead,
            slowdown=slowdown,
            own_process=own_process,
        )
        self._held: dict[int, _Drafts] = {}
        self._layout = Layout(blocks=(range(task.num_workers),), index=0)
        self._exchange: Exchange | None = None
        self._mail: Mail | None = None  # of notices
        self._sums_mail: Mail | None = None  # of sums of sparse rows, whose sizes are others
        self._reducer: DenseReducer | None = None
        # Of sharded tables: their rows, and what was to be applied last.
        self._holdings = Holdings(task)
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
        self._now(phase)

    @property
    def phase_since_s(self) -> float:
        """When the phase began, on the monotonic clock."""
        return self._phase[1]

    def _now(self, phase: str) -> None:
        self._phase = (phase, time.monotonic())

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
        self._mail, self._sums_mail = Mail(exchange), Mail(exchange)
        self._held = {self.step: drafts}
        self._reducer = self._new_reducer(exchange)
        self._turns.follow(drafts.own)
        if layout.shards is not None:
            self._prepared = None
            self._holdings.hold(layout.shards, exchange, holding, number)

    def _new_reducer(self, exchange: Exchange) -> DenseReducer:
        return DenseReducer(
            self.task.parameters(),
            self.order.at(self.step),
            self._layout.blocks,
            exchange,
            scale=self.task.scale,
            device=self._home_of_sums(exchange),
        )

    def _home_of_sums(self, exchange: Exchange) -> torch.device:
        """Where partial sums wait: where they are exchanged, or with the task if they are not."""
        own = self.task.device
        if exchange.size > 1:
            return own if exchange.device.type == own.type else exchange.device
        return torch.device("cpu") if self._on_host else own

    def release(self) -> None:
        """Leave the generation: close the exchange; state and contexts stay."""
        self._holdings.release()
        if self._reducer is not None:
            self._reducer.close()
            self._reducer = None
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def close(self) -> None:
        """Leave the generation and end the threads that fetch data."""
        self.release()
        self._turns.close()

    def held_contexts(self) -> dict[int, dict[int, bytes]]:
        """Return all contexts held here as bytes, by step and rank."""
        return {
            step: {rank: c.to_bytes() for rank, c in drafts.own.items()} | drafts.copies
            for step, drafts in self._held.items()
        }

    def own_contexts(self) -> list[Context]:
        """Return the contexts of our ranks after the last committed step, in rank order."""
        return [c for _, c in sorted(self._held[self.step].own.items())]

    def do_step(
        self, *, stop: Callable[[], bool] = lambda: False, gather_contexts: bool = False
    ) -> StepReport:
        """Do one step with the other devices, and commit it.

        ``stop``: whether to ask everybody to pause after it, called when the micro-batches are done
        (so that a wish is not a step late); the report says whether anybody did.
        ``gather_contexts``: device 0 gets the contexts of all ranks (all devices must agree).

        Raises PeerLostError when another device is gone, GarbageError when one sent what cannot be
        right, and what the task raises; the state is then that of the last commit, unless ``whole``
        says otherwise.
        """
        exchange, mail, reducer = self._exchange, self._mail, self._reducer
        sums_mail = self._sums_mail
        if exchange is None or mail is None or sums_mail is None or reducer is None:
            raise ExecutorError("the device belongs to no generation", expected="configure first")
        sent_before = exchange.sent_bytes
        self._prepared = None
        self._holdings.keep_live()
        own, rows = self._layout.own, self._holdings.rows
        drafts = self._held[self.step + 1] = _Drafts()
        if reducer.order != self.order.at(self.step):  # a ring has other buckets after step 1
            reducer.close()
            reducer = self._reducer = self._new_reducer(exchange)
        reducer.begin()
        losses, partials = self._turns.run(
            own, self._held[self.step].own, drafts.own, reducer, rows, self.probe, self._now
        )
        self._now("exchange")
        damage = self.probe("exchange", self.step, own) == "damage"
        said = self._said(STOP if stop() else 0, losses, partials, drafts)
        reducer.launch_rest()
        notices = self._swapped(mail, said, drafts, gather_contexts=gather_contexts, damage=damage)
        notice.audit(notices, self.step)
        dense = reducer.finish()
        by_rank = [loss for told in notices for loss in told.losses]
        loss = self._tree_of(by_rank)
        sums = [told.sums for told in notices if told.sums]
        total = Gradients(loss=loss, dense=dense, sparse={}, finite=reducer.finite)
        if rows is not None:
            total = self._agreed(rows, total, sums)
        elif self.task.tables is not None:
            total = replace(total, sparse=sparse.everywhere(sums_mail, exchange.size, sums))
        self._apply(total)
        self._commit()
        self.last = StepReport(
            step=self.step,
            loss=float(loss) * self.task.scale,  # means are averaged, shares summed, as gradients
            losses=tuple(by_rank),
            stop=any(told.flags & STOP for told in notices),
            sent_bytes=exchange.sent_bytes - sent_before,
        )
        return self.last

    def _said(
        self,
        flags: int,
        losses: Sequence[float],
        partials: Mapping[str, SparseGradient],
        drafts: _Drafts,
    ) -> Notice:
        """What we tell the others of the step."""
        alone = len(self._layout.blocks) == 1
        audited = self._audit_every and self.step % self._audit_every == 0 and not alone
        return Notice(
            flags=flags,
            checksum=checksum(self.task.parameters()) if audited else 0,
            losses=tuple(losses),
            contexts={} if alone else {rank: c.to_bytes() for rank, c in drafts.own.items()},
            sums=partials,
        )

    def _swapped(
        self, mail: Mail, said: Notice, drafts: _Drafts, *, gather_contexts: bool, damage: bool
    ) -> list[Notice]:
        """Swap notices, and keep the copies of contexts that came with them."""
        size, index = len(self._layout.blocks), self._layout.index
        if size == 1:
            self.probe("fold", self.step, self._layout.own)
            return [said]
        copier = (index + 1) % size
        wanted = frozenset({copier, 0} if gather_contexts else {copier}) - {index}
        rows = self._holdings.rows
        messages = notice.written(
            said, size, to=wanted, summer=None if rows is None else rows.owner
        )
        if damage:
            messages[copier] = messages[copier][:-1] + bytes([messages[copier][-1] ^ 1])
        received = mail.swap(messages)
        self.probe("fold", self.step, self._layout.own)
        notices = [notice.read(m, device, self.step) for device, m in enumerate(received)]
        for told in notices:
            drafts.copies.update(told.contexts)
        return notices

    def _agreed(
        self, rows: Rows, total: Gradients, sums: Sequence[Mapping[str, SparseGradient]]
    ) -> Gradients:
        """Return the gradient with the rows held here; from then on we can do the step alone."""
        rows.bring(sums, self.step)
        self._prepared = total = replace(total, sparse=rows.held_sums)
        try:
            rows.agree(self.step)
        except RefusedError:
            self._now("apply")
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

    def is_source_of_garbage(self) -> bool:
        """Whether what this device gave to the step that was refused is not finite."""
        return self._reducer is not None and not self._reducer.own_finite()

    def _tree_of(self, by_rank: Sequence[float]) -> Tensor:
        fold: Fold[float] = Fold(self.task.num_workers, float.__add__)
        for rank, loss in enumerate(by_rank):
            fold.push(Block(rank, rank + 1), loss)
        return torch.tensor(fold.total(), dtype=torch.float64)

    def _apply(self, total: Gradients) -> None:
        self._now("apply")
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
        self._now("idle")
        self._held = {step: held for step, held in self._held.items() if step >= self.step}

    def adopt(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Become another replica: a newcomer, or one that is behind."""
        self.whole = False
        self._prepared = None
        self._turns.forget()
        self._holdings.clear()
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
        return self._holdings.held() if self.whole else ()

    def state_without_rows(self) -> dict[str, Tensor]:
        """Return the task's state, with tables that are empty."""
        return self._holdings.state_without_rows()

    def whole_state(self) -> dict[str, Tensor]:
        """Return all shared state. With shards: all devices at once; rows only on device 0."""
        return self._holdings.whole_state(self._layout.shards, self._exchange)

    def gathered(self, exchange: Exchange, plan: Reshuffle, holding: int) -> dict[str, Tensor]:
        """Return all shared state where ``plan`` wants rows, without tables elsewhere."""
        return self._holdings.gathered(exchange, plan, holding)

    def reshuffle(self, exchange: Exchange, plan: Reshuffle, holding: int, into: int) -> int:
        """Make holding ``into`` of ``holding`` with the others of a party; return bytes sent."""
        self._prepared = None
        return self._holdings.reshuffle(exchange, plan, holding, into)


@torch.no_grad()
def _flip_a_bit(parameter: Tensor) -> None:
    parameter.view(torch.uint8).reshape(-1)[0] ^= 1
