"""Concurrent requests become batches: one thread computes, the others wait for their answer.

A batch is what waits when the thread is free. If it is not full, the thread waits until its oldest
request is ``max_wait_s`` old, so a request alone is delayed by that much at most, and under load
nobody waits on purpose. A batch is bounded in requests and in weight (candidates); one request
heavier than the bound is a batch of its own. Order is that of arrival.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from models.serve.refusal import Busy, Closed


@dataclass(slots=True, kw_only=True)
class Job:
    """Something to be done: its weight, when it came (of ``time.perf_counter``), its answer."""

    weight: int = 1
    arrived_s: float = field(default_factory=time.perf_counter)
    future: Future[Any] = field(default_factory=Future)


J = TypeVar("J", bound=Job)


class Batcher(Generic[J]):
    """Calls ``run`` with batches of jobs, in a thread, until ``close``.

    ``run`` gives every job's future its answer, and raises nothing. ``max_waiting``: jobs that may
    wait; beyond it ``put`` refuses.
    """

    def __init__(
        self,
        run: Callable[[list[J]], None],
        *,
        max_batch: int,
        max_weight: int,
        max_wait_s: float,
        max_waiting: int,
    ) -> None:
        self._run = run
        self.max_batch, self.max_weight = max_batch, max_weight
        self.max_wait_s, self.max_waiting = max_wait_s, max_waiting
        self._waiting: deque[J] = deque()
        self._weight = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: J) -> None:
        """Add a job. Raises Busy if too many are waiting, Closed after ``close``."""
        with self._changed:
            if self._closing:
                raise Closed("is shutting down", where="service")
            if len(self._waiting) >= self.max_waiting:
                raise Busy(
                    "too many requests are waiting",
                    where="service",
                    value=len(self._waiting),
                    expected="try again later",
                )
            self._waiting.append(job)
            self._weight += job.weight
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs, do those that wait, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._run(batch)

    def _next(self) -> list[J]:
        """Wait for a batch; it is empty when there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._waiting and self.max_wait_s > 0:
                until = self._waiting[0].arrived_s + self.max_wait_s
                self._changed.wait_for(self._full_or_closing, until - time.perf_counter())
            return self._taken()

    def _full_or_closing(self) -> bool:
        full = len(self._waiting) >= self.max_batch or self._weight >= self.max_weight
        return full or self._closing

    def _taken(self) -> list[J]:
        batch: list[J] = []
        weight = 0
        while self._waiting and len(batch) < self.max_batch:
            weight += self._waiting[0].weight
            if batch and weight > self.max_weight:
                break
            batch.append(self._waiting.popleft())
            self._weight -= batch[-1].weight
        return batch
