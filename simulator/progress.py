"""The progress line of a simulation: jobs done, simulated time, queue, decisions per second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies.driver import Driver


class progress:  # noqa: N801  (reads as a verb: with progress(...) as report)
    """A progress line on stderr while it is a terminal; yields ``on_progress`` or None."""

    def __init__(self, name: str, quiet: bool) -> None:
        self._name = name
        self._show = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Callable[[Driver], None] | None:
        if not self._show:
            return None
        from rich.console import Console  # noqa: PLC0415  only where there is a terminal
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} jobs"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=None, state="reading")
        return self._update

    def _update(self, driver: Driver) -> None:
        elapsed = self._bar.tasks[0].elapsed or 1e-9
        days = driver.clock.now / 86_400
        rate = driver.counts.decisions / elapsed
        self._bar.update(
            self._task,
            total=len(driver.workload),
            completed=driver.counts.finished,
            state=f"day {days:.1f}, {len(driver.view.waiting):,} waiting, {rate:,.0f} decisions/s",
        )

    def __exit__(self, *_: object) -> None:
        if self._show:
            self._bar.stop()
