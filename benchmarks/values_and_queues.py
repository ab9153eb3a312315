"""What three choices save: named tuples, arrays with a moving head, and forks not made.

    python benchmarks/values_and_queues.py

Prints microseconds per operation, the least of five repeats; docs/decisions/0013, 0015 and 0016
quote them. The sorted list compared with is of `sortedcontainers`, which hypothesis brings along.
"""

from __future__ import annotations

import random
import time
import timeit
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any

from sortedcontainers import SortedList

from policies.free import FreeGpus
from policies.ordered import Ordered
from traces import ClusterSpec, Request
from traces.cluster import Allocation
from traces.job import Job

BACKLOGS = (10, 1_000, 10_000, 50_000)
Entry = tuple[float, int]


def least_us(call: Callable[[], object], number: int = 100_000) -> float:
    """Microseconds of one call."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def values() -> None:
    """Make a job and an allocation: named tuple, and frozen slotted keyword-only dataclass."""
    for made in (Job, Allocation):
        names = made._fields
        frozen = make_dataclass(
            "frozen", [(n, object) for n in names], frozen=True, slots=True, kw_only=True
        )
        row = list(range(len(names)))
        named = dict(zip(names, row, strict=True))
        as_tuple = least_us(lambda made=made, row=row: made(*row))  # type: ignore[misc]
        as_frozen = least_us(lambda frozen=frozen, named=named: frozen(**named))  # type: ignore[misc]
        print(
            f"{made.__name__:12} {len(names):2} fields: named tuple {as_tuple:5.2f} us,"
            f" frozen dataclass {as_frozen:5.2f} us"
        )


def serve(queue: Any, backlog: int, key: Callable[[int], float], count: int = 10_000) -> float:
    """Microseconds to enter one and take the first, with so many waiting."""
    entries: list[Entry] = [(key(i), i) for i in range(backlog + count)]
    for entry in sorted(entries[:backlog]):
        queue.add(entry)
    began = time.perf_counter()
    for entry in entries[backlog:]:
        queue.add(entry)
        queue.remove(queue[0])
    return (time.perf_counter() - began) / count * 1e6


def queues() -> None:
    """Enter one and take the first: arriving last in order, and anywhere in order."""
    for name in ("last", "anywhere"):
        for backlog in BACKLOGS:
            times = []
            for make in (Ordered, SortedList):
                rng = random.Random(1)
                key = float if name == "last" else (lambda _, rng=rng: rng.random())
                times.append(min(serve(make(), backlog, key) for _ in range(5)))
            print(
                f"{backlog:6,} waiting, entering {name:8}: array {times[0]:5.2f} us,"
                f" sorted list {times[1]:5.2f} us"
            )


def forks() -> None:
    """Make a scratch copy of the free index, and take one GPU in it."""
    request = Request(num_gpus=1)
    free = FreeGpus(ClusterSpec.parse("64x8:v100"))
    allocation = Allocation(((0, 1),))
    alone = least_us(free.fork, 20_000)
    taken = least_us(lambda: free.fork().take(allocation, request), 20_000)
    print(f"fork {alone:.2f} us; fork and take a GPU {taken:.2f} us")


if __name__ == "__main__":
    values()
    queues()
    forks()
