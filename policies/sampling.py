"""Samples of a run's state: what is in service, held, fragmented and waited for, every so often.

Exact averages come from the allocations table; samples are for what only the live state knows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from policies.books import NAN, Recorder
from policies.clock import SAMPLE, Clock, Moment
from policies.view import LiveView

Fragmented = Callable[[LiveView], list[float]]  # fragmented GPUs by pool
SAMPLES_PER_STEP = 4_000


def samples(
    clock: Clock,
    view: LiveView,
    log: Recorder,
    fragmented: Fragmented | None,
    first_s: float,
    every_s: float,
) -> Generator[Moment, Any, None]:
    """A process that samples from ``first_s`` on; a long run is sampled half as often each time.

    Samples are taken last of all that happens at an instant.
    """
    due_s = max(first_s, clock.now)  # a run may go on where another one ended
    while True:
        for _ in range(SAMPLES_PER_STEP):
            yield clock.at(due_s, SAMPLE)
            sample(clock.now, view, log, fragmented)
            due_s += every_s
        every_s *= 2


def sample(now: float, view: LiveView, log: Recorder, fragmented: Fragmented | None) -> None:
    """Record the state of every GPU type."""
    pools = view.free.pools
    wasted = [NAN] * len(pools) if fragmented is None else fragmented(view)
    for pool in pools:
        log.sample(
            now,
            pool.gpu_type,
            float(pool.capacity),
            pool.capacity - pool.free - pool.share_milli / 1000,
            wasted[pool.index],
            len(view.running),
            len(view.waiting),
            view.waiting.gpus,
        )
