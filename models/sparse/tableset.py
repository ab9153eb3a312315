"""The tables of a model: looked up in the forward pass, updated in the same step as the dense side.

In training, a look-up gathers the unique rows into a leaf of the autograd graph and remembers it;
``apply(step)`` sums what the leaves received, in the order of ``models.sparse.gradients``, and
updates the rows. One process calls nothing else::

    logits = network(batch, tables)
    loss(logits, batch.label).backward()
    dense.step()
    tables.apply(step)

Several logical workers: after each micro-batch ``gradients(rank)`` takes what that worker's
look-ups received; partial sums are closed with ``accumulate`` wherever they meet, and every holder
of the tables calls ``apply(step, gradients)`` with all of them, in any order, for the same bits.

Serving and evaluation look up without a trace: ``training`` is False, or gradients are switched
off. Leaves out: look-ups inside recomputed regions (they would be remembered twice: look up
before), and going on after a disk filled up in the middle of ``apply`` (load the last state).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from models.errors import ModelError
from models.sparse.gradients import SparseGradient, Unique, accumulate, gather, unique
from models.sparse.table import EmbeddingTable

NO_STEP = -1


class TableSet:
    """Tables by name; a ``models.batch.Lookup``.

    ``training``: look-ups are remembered for ``apply``. ``step``: the last step applied, -1 before
    the first. ``reader``: where the values (U, dim) of ids (U,) ascending come from, if not from
    the table itself: for one whose rows are not all here.
    """

    def __init__(self, tables: Iterable[EmbeddingTable]) -> None:
        self.tables: dict[str, EmbeddingTable] = {}
        for table in tables:
            if table.name in self.tables:
                raise ModelError("two tables of one name", value=table.name, expected="one")
            self.tables[table.name] = table
        self.training = True
        self.step = NO_STEP
        self.reader: Callable[[EmbeddingTable, Tensor], Tensor] | None = None
        self._taken: dict[str, list[tuple[Unique, Tensor]]] = {}

    def __call__(self, table: str, ids: Tensor) -> Tensor:
        """Return the vectors of ``ids``; see ``lookup``."""
        return self.lookup(table, ids)

    def lookup(self, table: str, ids: Tensor) -> Tensor:
        """Return the vectors (..., dim) float32 of ``ids`` (...,) int64, on the table's device.

        An id never seen gives its initial value. Nothing is inserted or counted before ``apply``.
        Raises ModelError on an unknown table or ids that are not int64.
        """
        held = self.table(table)
        if ids.dtype != torch.int64:
            raise ModelError(
                "ids of another type", where=f"table {table!r}", value=ids.dtype, expected="int64"
            )
        index = unique(ids.reshape(-1).to(held.device))
        read = EmbeddingTable.values if self.reader is None else self.reader
        rows = read(held, index.ids)
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_(True)
            self._taken.setdefault(table, []).append((index, rows))
        return gather(rows, index).reshape(*ids.shape, held.dim)

    def table(self, name: str) -> EmbeddingTable:
        """Return a table by name. Raises ModelError on an unknown one."""
        if name not in self.tables:
            raise ModelError("unknown table", value=name, expected=", ".join(sorted(self.tables)))
        return self.tables[name]

    @property
    def pending(self) -> bool:
        """Whether look-ups are waiting for ``gradients``, ``apply`` or ``discard``."""
        return any(self._taken.values())

    def discard(self) -> None:
        """Forget the look-ups since the last step, as if they had not been."""
        self._taken.clear()

    def gradients(self, rank: int = 0) -> dict[str, SparseGradient]:
        """Take what the look-ups since the last call received, summed per id, for one virtual rank.

        A look-up that received no gradient (not part of the loss) leaves no trace.
        """
        taken = {}
        for name in sorted(self._taken):
            calls = [(index, rows.grad) for index, rows in self._taken[name]]
            parts = [
                SparseGradient(
                    ids=index.ids,
                    order_key=torch.full_like(index.ids, call),
                    grads=grad,
                    sightings=index.counts,
                )
                for call, (index, grad) in enumerate(calls)
                if grad is not None
            ]
            if parts:
                taken[name] = _of_one_rank(parts, rank)
        self._taken.clear()
        return taken

    def accumulate(
        self,
        table: str,
        ids: Tensor,
        grads: Tensor,
        order_key: Tensor,
        *,
        sightings: Tensor | None = None,
        block: tuple[int, int] | None = None,
        num_ranks: int | None = None,
    ) -> SparseGradient:
        """Sum partial sums of a table over virtual ranks; ``models.sparse.gradients.accumulate``.

        Pure: the tables are only asked for the width. Raises ModelError on another one.
        """
        dim = self.table(table).dim
        if grads.dim() != 2 or grads.shape[1] != dim:
            raise ModelError(
                "gradient of another width",
                where=f"table {table!r}",
                value=tuple(grads.shape),
                expected=f"(rows, {dim})",
            )
        return accumulate(
            ids, grads, order_key, sightings=sightings, block=block, num_ranks=num_ranks
        )

    def apply(
        self,
        step: int,
        gradients: Mapping[str, SparseGradient] | None = None,
        *,
        lr_scale: float = 1.0,
    ) -> None:
        """Update the rows: with ``gradients``, or with what the look-ups since the last step got.

        ``lr_scale`` multiplies every table's learning rate. Tables without a gradient only evict.
        Raises ModelError, with every table as it was, on a step that is not after the last one, an
        unknown table, a gradient of another shape, or one that is not finite.
        """
        if step <= self.step:
            raise ModelError(
                "step applied already", value=step, expected=f"a step after {self.step}"
            )
        if gradients is None:
            gradients = self.gradients()
        elif self.pending:
            raise ModelError(
                "look-ups are waiting while gradients are given",
                where=f"step {step}",
                expected="gradients(rank) or discard() first",
            )
        if not 0 <= lr_scale < float("inf"):
            raise ModelError("bad lr_scale", value=lr_scale, expected="0 or more, finite")
        closed = {}
        for name in sorted(gradients):
            part = gradients[name]
            closed[name] = self.accumulate(
                name, part.ids, part.grads, part.order_key, sightings=part.sightings
            )
            _check_finite(name, step, closed[name])
        for name, table in sorted(self.tables.items()):
            table.apply(step, closed.get(name), lr_scale=lr_scale)
        self.step = step


def _of_one_rank(parts: list[SparseGradient], rank: int) -> SparseGradient:
    total = parts[0]
    if len(parts) > 1:
        total = accumulate(
            torch.cat([p.ids for p in parts]),
            torch.cat([p.grads for p in parts]),
            torch.cat([p.order_key for p in parts]),
            sightings=torch.cat([p.sightings for p in parts]),
        )
    return SparseGradient(
        ids=total.ids,
        order_key=torch.full_like(total.ids, rank),
        grads=total.grads,
        sightings=total.sightings,
    )


def _check_finite(name: str, step: int, gradient: SparseGradient) -> None:
    if not gradient.grads.numel():
        return
    # One pass: the extremes of what holds a NaN are NaN.
    extremes = torch.stack(torch.aminmax(gradient.grads))
    if not bool(torch.isfinite(extremes).all()):
        finite = torch.isfinite(gradient.grads)
        at = int((~finite.all(dim=1)).nonzero()[0])
        raise ModelError(
            "gradient is not finite",
            where=f"table {name!r}, step {step}",
            value=f"id {int(gradient.ids[at])}",
            expected="finite numbers; no table was changed",
        )
