"""A sorted queue of entries: an array with a moving head.

Queues here are mostly appended to at the end and taken from at the front, which this does in a
few bytecodes; an entry that belongs in the middle is inserted by bisection, and the shift of the
array behind it (8 bytes per entry) is cheaper than a tree for the tens of thousands that wait.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Any

_COMPACT = 1024


class Ordered:
    """Entries in ascending order. ``items[head:]`` is the content, for loops that count."""

    __slots__ = ("head", "items")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.head = 0

    def __len__(self) -> int:
        return len(self.items) - self.head

    def __getitem__(self, position: int) -> Any:
        """The entry at a position from the front (0 or more)."""
        return self.items[self.head + position]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items[self.head :] if self.head else self.items)

    def __reversed__(self) -> Iterator[Any]:
        items = self.items
        return (items[i] for i in range(len(items) - 1, self.head - 1, -1))

    def add(self, entry: Any) -> None:
        """Enter an entry."""
        items = self.items
        if len(items) == self.head or items[-1] < entry:
            items.append(entry)
        else:
            insort(items, entry, self.head)

    def remove(self, entry: Any) -> None:
        """Take out an entry that is there."""
        items, head = self.items, self.head
        if items[head] is entry:
            items[head] = None
            self.head = head = head + 1
            if head == len(items) or (head >= _COMPACT and 2 * head >= len(items)):
                del items[:head]
                self.head = 0
        elif items[-1] is entry:
            del items[-1]
        else:
            position = bisect_left(items, entry, head)
            assert items[position] is entry
            del items[position]

    def bisect_left(self, entry: Any) -> int:
        """Position (from the front) of the first entry not before this one."""
        return bisect_left(self.items, entry, self.head) - self.head

    def bisect_right(self, entry: Any) -> int:
        """Position (from the front) of the first entry after this one."""
        return bisect_right(self.items, entry, self.head) - self.head
