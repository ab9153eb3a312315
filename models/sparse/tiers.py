"""Where rows lie: hot (the device), host memory, or a memory-mapped file. Never what they are.

A record is one row's weights and optimizer state, float32. Records are copied between tiers, never
computed with, so the sizes of the tiers cannot change a number. Placement is least recently used by
step: the ``hot_rows`` records with the latest last step lie hot, the next ``host_rows`` in host
memory, the rest in the file; equal steps are ordered by id, smaller first. It follows from (last
step, id) alone, and is settled when a step is applied; reading moves nothing.

The file is scratch space (its name is removed as soon as it is open, so nothing is left behind by a
process that dies); what must last is saved by ``models.sparse.state``. The paper's tiers are HBM,
host and SSD (LONGER, section 3); how it places rows is not disclosed. Leaves out: prefetch, reading
and writing in the background, and file systems without ``posix_fallocate`` telling early that the
disk is full.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import ModelError

HOT, HOST, FILE = 0, 1, 2
_FIRST_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Sizes in rows. ``hot_rows`` None: everything is hot; ``host_rows`` None: the host is endless.

    ``folder``: where the memory-mapped file is made (None: the system's folder for such files).
    """

    hot_rows: int | None = None
    host_rows: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("hot_rows", "host_rows"):
            size = getattr(self, name)
            if size is not None and size < 0:
                raise ModelError(
                    "bad size",
                    where=f"Tiers.{name}",
                    value=size,
                    expected="0 or more rows, or None",
                )


class _Memory:
    """Records in a tensor that grows by doubling; places that were given back are used again."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.width = width
        self.data = torch.empty((0, width), device=device)
        self._top = 0
        self._free = torch.empty(0, dtype=torch.int64)

    @property
    def used(self) -> int:
        """Records held."""
        return self._top - len(self._free)

    def take(self, count: int) -> Tensor:
        """Return ``count`` places, (count,) int64 on the CPU."""
        again = self._free[max(0, len(self._free) - count) :]
        fresh = count - len(again)
        if self._top + fresh > len(self.data):
            self._grow(max(self._top + fresh, 2 * len(self.data), _FIRST_ROWS))
        places = torch.cat((again, torch.arange(self._top, self._top + fresh)))
        self._free = self._free[: len(self._free) - len(again)]
        self._top += fresh
        return places

    def give(self, places: Tensor) -> None:
        """Give places back."""
        self._free = torch.cat((self._free, places))

    def _grow(self, rows: int) -> None:
        data = self.data.new_empty((rows, self.width))
        data[: len(self.data)] = self.data
        self.data = data


class _MappedFile(_Memory):
    """The same, in a file without a name."""

    def __init__(self, width: int, folder: str | None) -> None:
        super().__init__(width, torch.device("cpu"))
        self._folder = folder
        self._handle: int | None = None

    def _grow(self, rows: int) -> None:
        size = rows * self.width * 4
        try:
            if self._handle is None:
                self._handle, name = tempfile.mkstemp(prefix="tandem-rows-", dir=self._folder)
                weakref.finalize(self, os.close, self._handle)
                Path(name).unlink()
            if hasattr(os, "posix_fallocate"):
                # A sparse file would kill the process with SIGBUS when the disk is full.
                os.posix_fallocate(self._handle, 0, size)
            else:
                os.ftruncate(self._handle, size)
            mapped = mmap.mmap(self._handle, size)
        except OSError as error:
            raise ModelError(
                f"cannot hold {rows} rows in a file: {error.strerror}",
                where=self._folder or tempfile.gettempdir(),
                expected=f"a folder with {size} bytes to spare (Tiers.folder)",
            ) from error
        self.data = torch.frombuffer(mapped, dtype=torch.float32).view(rows, self.width)


class RowStore:
    """Records by row number, in three tiers.

    ``width`` floats per record; hot records lie on ``device``. Row numbers are dense and used again
    after ``free``. The directory (tier and place of each row) lies on the CPU.
    """

    def __init__(self, width: int, tiers: Tiers, device: torch.device | str) -> None:
        self.width = width
        self.tiers = tiers
        self.device = torch.device(device)
        self._memory: list[_Memory] = [
            _Memory(width, self.device),
            _Memory(width, torch.device("cpu")),
            _MappedFile(width, tiers.folder),
        ]
        self._room = [tiers.hot_rows, tiers.host_rows, None]
        self._tier = torch.empty(0, dtype=torch.int8)
        self._place = torch.empty(0, dtype=torch.int64)
        self._free = torch.empty(0, dtype=torch.int64)
        self._top = 0

    def used(self) -> tuple[int, int, int]:
        """Records in (hot, host, file)."""
        hot, host, file = (memory.used for memory in self._memory)
        return hot, host, file

    def tier_of(self, rows: Tensor) -> Tensor:
        """Return 0, 1 or 2 for each row: hot, host, file."""
        return self._tier[rows]

    def allocate(self, count: int) -> Tensor:
        """Return ``count`` row numbers, (count,) int64; their records are undefined until written.

        They lie in the first tier with room; ``arrange`` settles where they belong.
        """
        again = self._free[max(0, len(self._free) - count) :]
        fresh = count - len(again)
        self._free = self._free[: len(self._free) - len(again)]
        rows = torch.cat((again, torch.arange(self._top, self._top + fresh)))
        self._top += fresh
        if self._top > len(self._tier):
            size = max(self._top, 2 * len(self._tier), _FIRST_ROWS)
            self._tier = torch.cat((self._tier, self._tier.new_zeros(size - len(self._tier))))
            self._place = torch.cat((self._place, self._place.new_zeros(size - len(self._place))))
        todo = rows
        for tier, memory in enumerate(self._memory):
            room = self._room[tier]
            part = len(todo) if room is None else min(len(todo), max(0, room - memory.used))
            self._tier[todo[:part]] = tier
            self._place[todo[:part]] = memory.take(part)
            todo = todo[part:]
        return rows

    def free(self, rows: Tensor) -> None:
        """Give row numbers and their places back."""
        for tier, memory in enumerate(self._memory):
            memory.give(self._place[rows[self._tier[rows] == tier]])
        self._free = torch.cat((self._free, rows))

    def read(self, rows: Tensor, floats: int | None = None) -> Tensor:
        """Return records (R, width) on the device; ``rows`` (R,) on the CPU.

        ``floats``: only the first so many of each record.
        """
        if self._room[HOT] is None:
            hot = self._memory[HOT].data[:, :floats]
            return hot.index_select(0, self._place[rows].to(self.device))
        records = torch.empty((len(rows), floats or self.width), device=self.device)
        for memory, at in self._by_tier(rows):
            data = memory.data[:, :floats]
            part = data.index_select(0, self._place[rows[at]].to(data.device))
            records.index_copy_(0, at.to(self.device), part.to(self.device))
        return records

    def write(self, rows: Tensor, records: Tensor) -> None:
        """Write records (R, width) where the rows lie; no row twice."""
        if self._room[HOT] is None:
            self._memory[HOT].data.index_copy_(0, self._place[rows].to(self.device), records)
            return
        for memory, at in self._by_tier(rows):
            part = records.index_select(0, at.to(records.device)).to(memory.data.device)
            memory.data.index_copy_(0, self._place[rows[at]].to(memory.data.device), part)

    def _by_tier(self, rows: Tensor) -> list[tuple[_Memory, Tensor]]:
        tier = self._tier[rows]
        found = [(m, (tier == t).nonzero().squeeze(1)) for t, m in enumerate(self._memory)]
        return [(memory, at) for memory, at in found if len(at)]

    def arrange(self, rows: Tensor, last_step: Tensor, ids: Tensor) -> None:
        """Move records so that each lies where (last step, id) puts it.

        ``rows``, ``last_step``, ``ids`` (n,) int64 on the CPU: all rows of the table.
        """
        if self._room[HOT] is None:
            return
        target = torch.full((len(rows),), FILE, dtype=torch.int8)
        rest = torch.arange(len(rows))
        for tier in (HOT, HOST):
            room = self._room[tier]
            wanted = len(rest) if room is None else min(room, len(rest))
            chosen = latest(last_step[rest], ids[rest], wanted)
            target[rest[chosen]] = tier
            rest = rest[~chosen]
        moving = (target != self._tier[rows]).nonzero().squeeze(1)
        moved, where = rows[moving], target[moving]
        # Everything that moves is read before anything is written: tiers may be full.
        records = self.read(moved)
        for tier, memory in enumerate(self._memory):
            memory.give(self._place[moved[self._tier[moved] == tier]])
        for tier, memory in enumerate(self._memory):
            here = moved[where == tier]
            self._tier[here] = tier
            self._place[here] = memory.take(len(here))
        self.write(moved, records)


def latest(last_step: Tensor, ids: Tensor, count: int) -> Tensor:
    """Mark the ``count`` entries with the latest step; equal steps by smaller id. (n,) bool. Pure.

    One selection instead of a sort: only entries that share the deciding step are sorted, by id.
    """
    if count <= 0 or count >= len(last_step):
        return torch.full((len(last_step),), count > 0, dtype=torch.bool)
    threshold = torch.kthvalue(last_step, len(last_step) - count + 1).values
    chosen = last_step > threshold
    tied = (last_step == threshold).nonzero().squeeze(1)
    tied = tied[torch.argsort(ids[tied])]
    chosen[tied[: count - int(chosen.sum())]] = True
    return chosen
