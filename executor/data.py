"""Batches fetched ahead by threads that the logical workers of a device share.

EasyScale (SC'23) shares data workers between the EasyScaleThreads of a process: they run ahead, so
states of batches that were fetched and not yet consumed are part of what must move and be saved.
Here a source is a pure function of a place, so it is enough that a context's place is that of the
first batch not consumed: what was fetched beyond it is thrown away on a move and fetched again.

Leaves out: processes as data workers. A source that holds the interpreter's lock gains nothing from
threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from executor.errors import ExecutorError
from executor.task import Source

_THREADS = 2


class Fetcher:
    """Batches of a device's ranks in order; ``ahead`` per rank are fetched before they are asked.

    With ``ahead`` 0 a batch is fetched when it is asked for, and there are no threads.
    """

    def __init__(self, source: Source, ahead: int = 0, threads: int = _THREADS) -> None:
        if ahead < 0:
            raise ExecutorError(
                "bad number", where="fetch ahead", value=ahead, expected="0 or more"
            )
        self._source = source
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, "data") if ahead else None
        # Per rank a chain of futures, each (place it was fetched at, batch, next place).
        self._queues: dict[int, deque[Future[tuple[Any, Any, Any]]]] = {}

    def follow(self, places: Mapping[int, Any]) -> None:
        """Go on from these places by rank, and forget what was fetched for others."""
        self._queues = {}
        if self._pool is None:
            return
        for rank, place in places.items():
            self._queues[rank] = deque([self._pool.submit(self._fetch, rank, place)])
        for rank in places:
            self._fill(rank)

    def next(self, rank: int, place: Any) -> tuple[Any, Any]:
        """Return (batch, next place) of a rank that stands at ``place``."""
        queue = self._queues.get(rank)
        if not queue:
            return self._source.fetch(rank, place)
        at, batch, following = queue.popleft().result()
        if at != place:  # a step was given up: what was fetched is for a step that is not now
            queue.clear()
            batch, following = self._source.fetch(rank, place)
        self._fill(rank, following)
        return batch, following

    def close(self) -> None:
        """End the threads."""
        self._queues = {}
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, rank: int, place: Any) -> tuple[Any, Any, Any]:
        return (place, *self._source.fetch(rank, place))

    def _fetch_after(self, rank: int, before: Future[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
        return self._fetch(rank, before.result()[2])

    def _fill(self, rank: int, place: Any = None) -> None:
        assert self._pool is not None
        queue = self._queues[rank]
        if not queue:
            queue.append(self._pool.submit(self._fetch, rank, place))
        while len(queue) < self._ahead:
            queue.append(self._pool.submit(self._fetch_after, rank, queue[-1]))
