"""From raw 64-bit ids to entry numbers: an open-addressing hash that works on whole tensors.

Any int64 is an id (0, negative, the extremes), and two ids never share an entry. Linear probing
(Knuth, vol. 3, 6.4, algorithm L) over a table of a power of two, at most half full, starting at the
low bits of the SplitMix64 of the id. All ids of a call probe side by side: each round looks at one
place for every id that has not been found yet, and few rounds are needed (2 to 3 places on average,
some tens for the unluckiest).

Entries are numbered 0, 1, 2, ... as ids are added, so columns beside the index (counts, steps,
rows) are plain tensors. Where an id stands in the table depends on the order of insertion; nothing
that is computed from rows does. Leaves out: deletion of single ids (a table that evicts builds the
index of the survivors), and concurrent writers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.sparse.initial import mix


class IdIndex:
    """Ids in the order they were added, found by hash."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._ids = torch.empty(0, dtype=torch.int64, device=self.device)
        self._count = 0
        self._resize(64)

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> Tensor:
        """All ids, (len,), by entry number."""
        return self._ids[: self._count]

    def find(self, ids: Tensor) -> Tensor:
        """Return the entry numbers of ``ids`` (N,), -1 where an id is absent."""
        found = torch.full_like(ids, -1)
        place = mix(ids) & (self._places - 1)
        todo = torch.arange(len(ids), device=self.device)
        wanted = ids
        while len(todo):
            key, entry = self._slot.index_select(0, place).unbind(1)
            hit = (entry >= 0) & (key == wanted)
            found[todo[hit]] = entry[hit]
            on = ((entry >= 0) & ~hit).nonzero().squeeze(1)
            todo, wanted = todo[on], wanted[on]
            place = (place[on] + 1) & (self._places - 1)
        return found

    def add(self, ids: Tensor) -> Tensor:
        """Add ``ids`` (N,), which must be absent and without repetition; return their entries."""
        entries = torch.arange(self._count, self._count + len(ids), device=self.device)
        total = self._count + len(ids)
        if total > len(self._ids):
            grown = self._ids.new_empty(max(total, 2 * len(self._ids), 64))
            grown[: self._count] = self.ids
            self._ids = grown
        self._ids[self._count : total] = ids
        self._count = total
        if 2 * total > self._places:
            self._resize(2 ** (2 * total - 1).bit_length() * 2)
        else:
            self._insert(ids, entries)
        return entries

    def _resize(self, places: int) -> None:
        self._places = places
        # Key and entry of a place lie side by side: one cache line per look. Entry -1: free.
        self._slot = torch.full((places, 2), -1, dtype=torch.int64, device=self.device)
        self._insert(self.ids, torch.arange(self._count, device=self.device))

    def _insert(self, ids: Tensor, entries: Tensor) -> None:
        place = mix(ids) & (self._places - 1)
        while len(ids):
            free = (self._slot[place, 1] < 0).nonzero().squeeze(1)
            # Ids that want the same free place all write; whichever stays has it. Entries differ,
            # so reading back tells who, and the others go on past a place that is now taken.
            self._slot[place[free], 1] = entries[free]
            won = self._slot[place, 1] == entries
            self._slot[place[won], 0] = ids[won]
            on = (~won).nonzero().squeeze(1)
            ids, entries = ids[on], entries[on]
            place = (place[on] + 1) & (self._places - 1)
