"""What a job tells of itself, and when: its events, with the seconds that they took.

A step is told of once, however often it is done: one that is done again has the same bits. How long
a rescale or a recovery took is known when the first step after it is done, so the diary keeps when
it was commanded, when something broke, and how long nobody trained.

Leaves out: what the events mean to others (``executor.events``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from executor import events as e
from executor.layout import StepReport
from traces.workermap import WorkerMap


class Diary:
    """Tells of one job. ``started``: its first step after a start is done."""

    def __init__(
        self, job_id: str, emit: Callable[[e.Event], None], clock: Callable[[], float]
    ) -> None:
        self.started = False
        self._job_id, self._emit, self._clock = job_id, emit, clock
        self._told = 0  # the last step that was told of
        self._last_step_s = clock()
        self._commanded: float | None = None
        self._broke_at: float | None = None
        self._resumed_at = 0
        self._paused_at: float | None = None
        self._pause_s = 0.0

    def tell(self, kind: Any, **values: Any) -> None:
        """Tell of an event of this kind, now."""
        self._emit(kind(job_id=self._job_id, at_s=self._clock(), **values))

    def commanded(self) -> None:
        """Another worker map is wanted from now on."""
        self._commanded = self._clock()

    def broke(self, step: int, reason: str) -> None:
        """A step could not be done; what counts is the first break until all is well again."""
        now = self._clock()
        if self._broke_at is None:
            self._broke_at = now
        if self._paused_at is None:
            self._paused_at = now
        self.tell(e.Broken, step=step, reason=reason)

    @property
    def recovering(self) -> bool:
        """Whether it told of a break, and not yet that all is well again."""
        return self._broke_at is not None

    def stands(self) -> None:
        """From now on nobody trains."""
        self._paused_at = self._clock()

    def resumes(self, at: int) -> None:
        """So many steps are there to go on from."""
        self._resumed_at = at

    def runs(self) -> None:
        """From now on there is training."""
        now = self._last_step_s = self._clock()
        if self._paused_at is not None:
            self._pause_s, self._paused_at = now - self._paused_at, None

    def is_news(self, step: int) -> bool:
        """Whether a committed step was not told of."""
        return step > self._told

    def step(self, report: StepReport) -> None:
        """Tell of a committed step."""
        now = self._clock()
        if self.is_news(report.step):
            self._told = report.step
            self.tell(
                e.Progress,
                step=report.step,
                loss=report.loss,
                losses=report.losses,
                seconds=now - self._last_step_s,
                sent_bytes=report.sent_bytes,
            )
        self._last_step_s = now

    def first_step(self, step: int, worker_map: WorkerMap, *, as_wanted: bool) -> None:
        """Tell what a step of this generation means, if it is the first.

        ``as_wanted``: the map is the one that was commanded last.
        """
        now = self._clock()
        if self._broke_at is not None:
            self.tell(
                e.Recovered,
                step=step,
                resumed_at=self._resumed_at,
                worker_map=worker_map,
                seconds=now - self._broke_at,
            )
            self._broke_at = None
        if self._commanded is not None and as_wanted:
            took = now - self._commanded
            if self.started:
                self.tell(
                    e.Rescaled,
                    step=step,
                    worker_map=worker_map,
                    seconds=took,
                    pause_s=self._pause_s,
                )
            else:
                self.tell(e.Running, step=step, worker_map=worker_map, seconds=took)
            self.started, self._commanded = True, None
