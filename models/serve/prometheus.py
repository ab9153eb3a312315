"""The figures of a service in Prometheus's text format, version 0.0.4.

Only what is in the figures already: counters, gauges, and percentiles as summaries' quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_QUANTILES = (("0.5", "p50_ms"), ("0.95", "p95_ms"), ("0.99", "p99_ms"))


def as_text(stats: Mapping[str, Any]) -> str:
    """Return ``Service.stats()`` as lines of samples."""
    return "\n".join(_lines(stats)) + "\n"


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    for name, key, label in (
        ("tandem_http_seconds", "http", "path"),
        ("tandem_latency_seconds", "latency", "kind"),
        ("tandem_waiting_seconds", "waiting", "kind"),
    ):
        yield f"# TYPE {name} summary"
        for which, times in stats[key].items():
            for quantile, column in _QUANTILES:
                seconds = times[column] / 1e3
                yield f'{name}{{{label}="{which}",quantile="{quantile}"}} {seconds!r}'
            yield f'{name}_count{{{label}="{which}"}} {times["count"]}'
    cache, batches = stats["cache"], stats["batches"]
    for name, value in (
        ("tandem_batches_total", batches["count"]),
        ("tandem_busy_seconds_total", batches["busy_s"]),
        ("tandem_histories_encoded_total", stats["histories_encoded"]),
        ("tandem_candidates_scored_total", stats["candidates_scored"]),
        ("tandem_cache_hits_total", cache["hits"]),
        ("tandem_cache_misses_total", cache["misses"]),
        ("tandem_cache_evicted_total", cache["evicted"]),
    ):
        yield f"# TYPE {name} counter"
        yield f"{name} {value}"
    for name, value in (
        ("tandem_requests_in_line", stats["in_line"]),
        ("tandem_cache_users", cache["users"]),
        ("tandem_cache_bytes", cache["held_bytes"]),
        ("tandem_current_version", stats["current_version"]),
        ("tandem_failed_versions", len(stats["failed_versions"])),
    ):
        yield f"# TYPE {name} gauge"
        yield f"{name} {value}"
    for name, key, label in (
        ("tandem_answers_total", "answered_by_version", "version"),
        ("tandem_refused_total", "refused", "status"),
    ):
        yield f"# TYPE {name} counter"
        for which, count in stats[key].items():
            yield f'{name}{{{label}="{which}"}} {count}'
