"""One embedding table: rows by raw 64-bit id, trained in place, that never collide.

An id has an *entry* (count of sightings, last step) from its first training step on, and a *row*
(weights and optimizer state) once it is admitted: in the step in which its count reaches
``admit_after``. Until then, and for ids never seen, its value is the initial one of
``models.sparse.initial``, and its gradient is not used: a rare id costs 40 bytes or so, not a row.

A step is a pure function of the table and of the gradient of the step: rows are updated one by one
with a row-wise optimizer, entries that are due are evicted, and the order in which ids came shows
nowhere but in where things lie. State leaves in canonical order, by id ascending.

The directory (index, counts, steps, placement) lies on the CPU and hot rows on the device, so a
look-up on a GPU sends its unique ids to the host: the price, there, is one transfer per look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.sparse.evict import Eviction, evicted
from models.sparse.gradients import SparseGradient
from models.sparse.index import IdIndex
from models.sparse.initial import base_of, initial_rows
from models.sparse.optimizer import RowAdagrad, RowOptimizer
from models.sparse.tiers import RowStore, Tiers

_ROWS_IN_CACHE = 4096  # on a CPU, rows that are updated at once
_NOTHING = (torch.empty(0), torch.empty(0), torch.empty(0))

Evictor = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(step, last steps, counts, ids) to a mark for each id that goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """All of a table that training changes, in canonical order, on the CPU.

    ``ids`` (E,) int64 ascending, ``count`` and ``last_step`` (E,) int64, ``admitted`` (E,) bool,
    ``records`` (A, dim + state width) float32: weights, then optimizer state, of the admitted ids.
    """

    ids: Tensor
    count: Tensor
    last_step: Tensor
    admitted: Tensor
    records: Tensor


class EmbeddingTable:
    """Rows of ``dim`` floats by id.

    ``seed`` with name and id gives the initial value, uniform in [-scale, scale) (None: 1 over the
    root of ``dim``). ``admit_after``: sightings (occurrences in training batches) from which a row
    trains. ``tiers`` says where rows may lie, ``device`` where hot ones do; neither changes a
    number. Raises ModelError on settings out of range.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        seed: int,
        *,
        optimizer: RowOptimizer | None = None,
        scale: float | None = None,
        admit_after: int = 1,
        eviction: Eviction | None = None,
        tiers: Tiers | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        scale = dim**-0.5 if scale is None and dim > 0 else scale
        _check_settings(name, dim, scale, admit_after)
        assert scale is not None
        self.name = name
        self.dim = dim
        self.seed = seed
        self.scale = scale
        self.optimizer: RowOptimizer = RowAdagrad() if optimizer is None else optimizer
        self.admit_after = admit_after
        self.eviction = eviction
        self.tiers = Tiers() if tiers is None else tiers
        self.device = torch.device(device)
        # Who holds only some of the rows cannot tell alone which are too many.
        self.evictor: Evictor | None = None
        self._base = base_of(seed, name)
        self._empty()

    def _empty(self) -> None:
        self._width = self.dim + self.optimizer.state_width(self.dim)
        self._index = IdIndex()
        self._found = _NOTHING  # ids last looked up, the same here, their entries
        self._store = RowStore(self._width, self.tiers, self.device)
        # Columns beside the index: sightings, last step, row number or -1. Grown by doubling.
        self._entries = torch.empty((3, 0), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_rows(self) -> int:
        """Admitted ids, which have a row."""
        return sum(self._store.used())

    def rows_in_tiers(self) -> tuple[int, int, int]:
        """Return how many rows lie hot, in host memory and in the file."""
        return self._store.used()

    def config(self) -> dict[str, Any]:
        """Return what the meaning of a saved state depends on, as plain JSON values."""
        return {
            "dim": self.dim,
            "seed": self.seed,
            "scale": self.scale,
            "admit_after": self.admit_after,
            "eviction": None if self.eviction is None else asdict(self.eviction),
            "optimizer": {"kind": type(self.optimizer).__name__} | asdict(self.optimizer),  # type: ignore[call-overload]
        }

    def values(self, ids: Tensor) -> Tensor:
        """Return rows (U, dim) float32 of ``ids`` (U,) int64, on the device; change nothing."""
        asked, ids = ids, ids.cpu()
        entry = self._index.find(ids)
        self._found = (asked, ids, entry)
        row = (
            torch.where(entry >= 0, self._entries[2, entry.clamp(min=0)], -1)
            if len(self)
            else entry
        )
        known = row >= 0
        if bool(known.all()):
            return self._store.read(row, self.dim)
        rows = self._initial(ids)
        at = known.nonzero().squeeze(1)
        rows.index_copy_(0, at.to(self.device), self._store.read(row[at], self.dim))
        return rows

    def _initial(self, ids: Tensor) -> Tensor:
        return initial_rows(self._base, ids.to(self.device), self.dim, self.scale)

    def apply(self, step: int, gradient: SparseGradient | None, *, lr_scale: float = 1.0) -> None:
        """Count, admit and update the ids of ``gradient`` (one sum per id), then evict if due.

        The caller has checked the gradient (``TableSet.apply``) and sees to it that steps rise.
        """
        if gradient is not None:
            self._update(step, gradient, self.optimizer.lr * lr_scale)
        if self.eviction is not None and self.eviction.due(step):
            self._evict(self.eviction, step)
        self.arrange()

    def _update(self, step: int, gradient: SparseGradient, lr: float) -> None:
        entry, grad = self._find_or_add(gradient.ids), gradient.grads.to(self.device)
        count = self._entries[0].index_select(0, entry) + gradient.sightings.cpu()
        self._entries[0, entry] = count
        self._entries[1, entry] = step
        admitted = count >= self.admit_after
        if not bool(admitted.all()):
            chosen = admitted.nonzero().squeeze(1)
            entry, grad = entry[chosen], grad.index_select(0, chosen.to(self.device))
        rows = self._rows(entry)
        at_once = _ROWS_IN_CACHE if self.device.type == "cpu" else max(1, len(rows))
        for row, part in zip(torch.split(rows, at_once), torch.split(grad, at_once), strict=True):
            record = self._store.read(row)
            old, state = record[:, : self.dim], record[:, self.dim :]
            weight, state = self.optimizer.step(old, state, part, lr)
            torch.cat((weight, state), dim=1, out=record)
            self._store.write(row, record)

    def _find_or_add(self, ids: Tensor) -> Tensor:
        # A step's ids are mostly the very tensor that was looked up last; nothing has moved since.
        known, here, entry = self._found
        if known is not ids:
            here = ids.cpu()
            entry = self._index.find(here)
        self._found = _NOTHING
        absent = (entry < 0).nonzero().squeeze(1)
        if len(absent):
            added = self._index.add(here[absent])
            entry[absent] = added
            if len(self._index) > self._entries.shape[1]:
                size = max(len(self._index), 2 * self._entries.shape[1], 64)
                grown = torch.empty((3, size), dtype=torch.int64)
                grown[:, : self._entries.shape[1]] = self._entries
                self._entries = grown
            self._entries[:2, added] = 0
            self._entries[2, added] = -1
        return entry

    def _rows(self, entry: Tensor) -> Tensor:
        """Return the row numbers of entries; those that have none yet get a row."""
        row = self._entries[2].index_select(0, entry)
        without = (row < 0).nonzero().squeeze(1)
        if len(without):
            new = entry[without]
            given = self._store.allocate(len(new))
            state = self.optimizer.start(len(new), self.dim).to(self.device)
            initial = self._initial(self._index.ids[new])
            self._store.write(given, torch.cat((initial, state), dim=1))
            self._entries[2, new] = given
            row[without] = given
        return row

    def _evict(self, rule: Eviction, step: int) -> None:
        ids = self._index.ids
        count, last_step, row = self._entries[:, : len(ids)]
        if self.evictor is None:
            gone = evicted(rule, step, last_step, count, ids)
        else:
            gone = self.evictor(step, last_step, count, ids)
        if not bool(gone.any()):
            return
        self._store.free(row[gone & (row >= 0)])
        self._entries = self._entries[:, : len(ids)][:, ~gone]
        index = IdIndex()
        index.add(ids[~gone])
        self._index = index
        self._found = _NOTHING

    def arrange(self) -> None:
        """Put every row where (last step, id) says, if there is more than one tier."""
        if self.tiers.hot_rows is None:
            return
        _, last_step, row = self._entries[:, : len(self)]
        has = row >= 0
        self._store.arrange(row[has], last_step[has], self._index.ids[has])

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, counts and last steps, (E,) int64 each, in one order; not to be changed."""
        count, last_step, _ = self._entries[:, : len(self)]
        return self._index.ids, count, last_step

    def like(self) -> EmbeddingTable:
        """Return an empty table of the same settings."""
        return EmbeddingTable(
            self.name,
            self.dim,
            self.seed,
            optimizer=self.optimizer,
            scale=self.scale,
            admit_after=self.admit_after,
            eviction=self.eviction,
            tiers=self.tiers,
            device=self.device,
        )

    def state(self, chosen: Tensor | None = None) -> TableState:
        """Return a copy of the state, ids ascending; of the ``chosen`` (E,) bool of ``entries``."""
        ids, order = torch.sort(self._index.ids)
        if chosen is not None:
            order = order[chosen[order]]
            ids = self._index.ids[order]
        count, last_step, row = self._entries[:, : len(self)][:, order]
        admitted = row >= 0
        return TableState(
            ids=ids,
            count=count.clone(),
            last_step=last_step.clone(),
            admitted=admitted,
            records=self._store.read(row[admitted]).cpu(),
        )

    def restore(self, state: TableState) -> None:
        """Become the table of ``state``. Raises ModelError, unchanged, if it does not fit."""
        self.check(state)
        self._empty()
        entry = self._find_or_add(state.ids)
        self._entries[0, entry] = state.count
        self._entries[1, entry] = state.last_step
        row = self._store.allocate(len(state.records))
        self._entries[2, entry[state.admitted]] = row
        self._store.write(row, state.records.to(self.device))
        self.arrange()

    def check(self, state: TableState) -> None:
        """Raise ModelError if ``state`` is not a state of this table."""
        rows = len(state.ids)
        wanted = {
            "ids": (torch.int64, (rows,)),
            "count": (torch.int64, (rows,)),
            "last_step": (torch.int64, (rows,)),
            "admitted": (torch.bool, (rows,)),
            "records": (torch.float32, (int(state.admitted.sum()), self._width)),
        }
        for name, (dtype, shape) in wanted.items():
            column = getattr(state, name)
            if column.dtype != dtype or tuple(column.shape) != shape:
                raise ModelError(
                    "state does not fit",
                    where=f"table {self.name!r}, {name}",
                    value=f"{column.dtype} {tuple(column.shape)}",
                    expected=f"{dtype} {shape}",
                )
        if not bool((state.ids[1:] > state.ids[:-1]).all()):
            raise ModelError("ids out of order", where=f"table {self.name!r}", expected="ascending")


def _check_settings(name: str, dim: int, scale: float | None, admit_after: int) -> None:
    where = f"table {name!r}"
    if not name:
        raise ModelError("a table needs a name", expected="a non-empty string")
    if dim < 1:
        raise ModelError("bad dim", where=where, value=dim, expected="1 or more")
    if scale is None or scale < 0 or not math.isfinite(scale):
        raise ModelError("bad scale", where=where, value=scale, expected="0 or more, finite")
    if admit_after < 1:
        raise ModelError("bad admit_after", where=where, value=admit_after, expected="1 or more")
