"""What a service tells of itself: how long answers take, how large batches are, who answered.

Percentiles are of the newest ``WINDOW`` answers, by nearest rank: the p-th is the smallest time
that at least p per cent of them did not exceed. Everything else counts from the start.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

WINDOW = 4096
PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of values that are in order; NaN of none."""
    if not values:
        return math.nan
    return values[max(math.ceil(percent / 100 * len(values)), 1) - 1]


def summary(seconds: Iterable[float]) -> dict[str, float | None]:
    """Return p50, p95, p99 and the longest of some times, in milliseconds; None of none."""
    ordered = sorted(seconds)
    found: dict[str, float | None] = {
        f"p{p}_ms": percentile(ordered, p) * 1e3 if ordered else None for p in PERCENTILES
    }
    return found | {"max_ms": ordered[-1] * 1e3 if ordered else None}


class Times:
    """Times of answers by name, for several threads."""

    def __init__(self) -> None:
        self._window: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        """Note one answer."""
        with self._lock:
            self._window[name].append(seconds)
            self._count[name] += 1

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Return count and percentiles by name."""
        with self._lock:
            copied = {name: list(window) for name, window in sorted(self._window.items())}
            counts = dict(self._count)
        return {name: {"count": counts[name]} | summary(s) for name, s in copied.items()}


class Figures:
    """All that a service counts."""

    def __init__(self) -> None:
        self.http = Times()
        """From a request's first byte to its answer's last, by path; answers with status 200."""
        self.latency = Times()
        """From a request's arrival at the service to its answer, by kind of request."""
        self.waiting = Times()
        """Of that, before its batch began."""
        self._sizes: Counter[int] = Counter()
        self._totals: Counter[str] = Counter()
        self._versions: Counter[int] = Counter()
        self._refused: Counter[str] = Counter()
        self._lock = threading.Lock()

    def batch(self, *, requests: int, encoded: int, candidates: int, seconds: float) -> None:
        """Note a batch of one version."""
        with self._lock:
            self._sizes[requests] += 1
            self._totals["batches"] += 1
            self._totals["requests"] += requests
            self._totals["histories_encoded"] += encoded
            self._totals["candidates_scored"] += candidates
            self._totals["busy_ns"] += round(seconds * 1e9)

    def answered(self, version: int) -> None:
        """Note which version answered."""
        with self._lock:
            self._versions[version] += 1

    def refused(self, status: str) -> None:
        """Note a request that was refused, by its HTTP status."""
        with self._lock:
            self._refused[status] += 1

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        with self._lock:
            totals = dict(self._totals)
            sizes, versions = sorted(self._sizes.items()), sorted(self._versions.items())
            refused = dict(sorted(self._refused.items()))
        batches, requests = totals.get("batches", 0), totals.get("requests", 0)
        return {
            "http": self.http.summaries(),
            "latency": self.latency.summaries(),
            "waiting": self.waiting.summaries(),
            "batches": {
                "count": batches,
                "mean_requests": requests / batches if batches else None,
                "by_requests": {str(size): count for size, count in sizes},
                "busy_s": totals.get("busy_ns", 0) / 1e9,
            },
            "histories_encoded": totals.get("histories_encoded", 0),
            "candidates_scored": totals.get("candidates_scored", 0),
            "answered_by_version": {str(number): count for number, count in versions},
            "refused": refused,
        }
