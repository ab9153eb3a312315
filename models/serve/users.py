"""Encoded users, kept within bounds: the least recently used go first.

An entry stands for (version, user, request time) and for one history. It is right for as long as it
is there: what was encoded depends on nothing else. It goes when

- the bounds on bytes or on users ask for room, the least recently used first;
- its version is no longer held;
- the same user at the same time and version is encoded with another history (a digest of the events
  tells), or events are appended.

There is no expiry by the clock: a request at a later time has another key.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Set
from dataclasses import dataclass

from models.errors import ModelError
from models.longer.kvcache import Cache
from models.serve.request import Digest

Key = tuple[int, int, float]
"""Version, user, request time in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One encoded history and the digest of its events."""

    cache: Cache
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What happened so far, and what is held now."""

    hits: int
    misses: int
    evicted: int
    users: int
    held_bytes: int


class EncodedUsers:
    """Entries by key, for several threads.

    ``max_bytes``, ``max_users``: what is held at most; an entry larger than that is not kept.
    """

    def __init__(self, *, max_bytes: int, max_users: int) -> None:
        for name, value in (("max_bytes", max_bytes), ("max_users", max_users)):
            if value < 0:
                raise ModelError("no such bound", where=name, value=value, expected="0 or more")
        self.max_bytes, self.max_users = max_bytes, max_users
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evicted = 0
        self._lock = threading.Lock()

    def find(self, key: Key, digest: Digest | None = None, *, counts: bool = True) -> Entry | None:
        """Return the entry of a key, None if there is none or if it is of another history.

        ``counts``: as a hit or a miss.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or (digest is not None and entry.digest.value != digest.value):
                self._misses += counts
                return None
            self._hits += counts
            self._entries.move_to_end(key)
            return entry

    def holds(self, key: Key) -> bool:
        """Whether there is an entry; counts as no use of it."""
        with self._lock:
            return key in self._entries

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry in place of the one that had its key, and make room for it."""
        size = entry.cache.held_nbytes
        with self._lock:
            self._remove(key)
            if size > self.max_bytes or self.max_users == 0:
                return
            self._entries[key] = entry
            self._bytes += size
            while self._bytes > self.max_bytes or len(self._entries) > self.max_users:
                self._remove(next(iter(self._entries)))
                self._evicted += 1

    def keep_versions(self, numbers: Set[int]) -> None:
        """Forget the users of all other versions."""
        with self._lock:
            self._forget(key for key in list(self._entries) if key[0] not in numbers)

    def counts(self) -> Counts:
        """Return what happened so far."""
        with self._lock:
            return Counts(
                hits=self._hits,
                misses=self._misses,
                evicted=self._evicted,
                users=len(self._entries),
                held_bytes=self._bytes,
            )

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.cache.held_nbytes
