"""The sparse gradients of a step: partial sums by id, exchanged between the devices of a job.

A device sums what its ranks gave for each (table, id) as far as the tree over ranks allows
(``models.sparse.gradients.accumulate`` with its block). An id belongs to one device by a hash; the
partial sums of an id meet there, are summed to the end, and the sums go to everybody, since every
device holds the whole tables. An id's sum is made in the order of (rank, position), so who owns it
changes nothing. Rows that only one device touched are sent once and come back to the others once.

Tables of which a device holds only some rows: ``executor.rows``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from executor.mail import Mail
from executor.packing import pack, unpack
from models.sparse.gradients import SparseGradient, accumulate, joined

_COLUMNS = ("ids", "order_key", "grads", "sightings")
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as int64
_SHIFT = 33

Sparse = Mapping[str, SparseGradient]
Summer = Callable[[str, Tensor], Tensor]  # the device of each id of a table


def owner(ids: Tensor, size: int) -> Tensor:
    """Return which of ``size`` devices sums each of ``ids`` (N,) int64: multiplicative hashing."""
    return ((ids * _MIX) >> _SHIFT) % size


def partial_sums(
    parts: Iterable[Sparse], block: range, num_ranks: int
) -> dict[str, SparseGradient]:
    """Sum what the ranks of one device gave as far as its whole subtrees go."""
    gathered: dict[str, list[SparseGradient]] = {}
    for part in parts:
        for name, gradient in part.items():
            gathered.setdefault(name, []).append(gradient)
    return {
        name: accumulate(
            torch.cat([p.ids for p in held]),
            torch.cat([p.grads for p in held]),
            torch.cat([p.order_key for p in held]),
            sightings=torch.cat([p.sightings for p in held]),
            block=(block.start, block.stop),
            num_ranks=num_ranks,
        )
        for name, held in sorted(gathered.items())
    }


def split(partials: Sparse, size: int, summer: Summer | None = None) -> list[dict[str, Tensor]]:
    """Return, for each device, the columns of the rows whose ids it sums.

    ``summer`` gives the device of each id of a table; None: ``owner``.
    """
    split_up: list[dict[str, Tensor]] = [{} for _ in range(size)]
    for name, gradient in partials.items():
        to = owner(gradient.ids, size) if summer is None else summer(name, gradient.ids)
        for device in range(size):
            at = (to == device).nonzero().squeeze(1)
            for column in _COLUMNS:
                split_up[device][f"{name}/{column}"] = getattr(gradient, column).index_select(0, at)
    return split_up


def columns(sums: Sparse) -> dict[str, Tensor]:
    """Return the columns of gradients by ``table/column``."""
    return {
        f"{name}/{column}": getattr(g, column) for name, g in sums.items() for column in _COLUMNS
    }


def gradients(arrays: Mapping[str, Tensor]) -> dict[str, SparseGradient]:
    """Read what ``columns`` or ``split`` made."""
    names = sorted({name.rpartition("/")[0] for name in arrays})
    return {
        name: SparseGradient(**{column: arrays[f"{name}/{column}"] for column in _COLUMNS})
        for name in names
    }


def summed(parts: Sequence[Sparse]) -> dict[str, SparseGradient]:
    """Sum the partial sums of all devices; tables that nobody touched are absent."""
    names = sorted({name for part in parts for name in part})
    return {name: joined([part[name] for part in parts if name in part]) for name in names}


def put_together(parts: Sequence[Sparse]) -> dict[str, SparseGradient]:
    """Join sums of different ids, in order of ids."""
    names = sorted({name for part in parts for name in part})
    together = {}
    for name in names:
        held = [part[name] for part in parts if name in part]
        ids = torch.cat([p.ids for p in held])
        order = torch.argsort(ids)
        together[name] = SparseGradient(
            **{column: torch.cat([getattr(p, column) for p in held])[order] for column in _COLUMNS}
        )
    return together


def everywhere(mail: Mail, size: int, parts: Sequence[Sparse]) -> dict[str, SparseGradient]:
    """Sum the partial sums that came to this device, and get everybody's sums."""
    own = summed(parts)
    if size == 1:
        return put_together([own])
    messages = mail.swap([pack(None, columns(own))] * size)
    arrays = [unpack(message, "sums of sparse rows")[1] for message in messages]
    return put_together([gradients(found) for found in arrays])
