"""The clock: SimPy's environment with a total order of simultaneous events.

SimPy orders its heap by (time, priority, sequence). The driver's kinds of event are priorities,
so that everything that happens at one instant is taken in, in a fixed order, before one decision
is made. Events are scheduled at absolute times: adding a delay to the present would round, and
two events meant for one instant could miss each other.

Another world swaps the clock and nothing else, as SimPy's ``RealtimeEnvironment`` does: it
overrides ``step()``.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import TYPE_CHECKING, Any

import simpy
from simpy.events import EventPriority

# Priorities; SimPy's own URGENT (0) starts processes.
FINISH = EventPriority(1)
CAPACITY = EventPriority(2)
DEMAND = EventPriority(3)
ARRIVAL = EventPriority(4)
TIMER = EventPriority(5)
DECIDE = EventPriority(6)
SAMPLE = EventPriority(7)
END = EventPriority(8)


class Moment(simpy.Event):
    """An event that happens at its scheduled instant and calls one function with itself.

    ``subject`` is whatever the function needs to know. Cancelling takes the function away; the
    empty event still passes through the heap.
    """

    # What SimPy asks of every event that has happened: it has no value, and it did not fail. Said
    # once for all moments, because a run makes millions.
    _value = None
    _ok = True

    def __init__(
        self, env: Clock, call: Callable[[Moment], object] | None, subject: Any = None
    ) -> None:
        self.env = env
        self.callbacks = [] if call is None else [call]  # type: ignore[list-item]
        self.subject = subject

    def cancel(self) -> None:
        """Let the instant pass without a call."""
        if self.callbacks is not None:
            self.callbacks = []


Calls = tuple[Callable[[Any], object], ...]


class Clock(simpy.Environment):
    """Simulated time in seconds."""

    # The present, as in SimPy, but read without a call: it is asked for all the time. SimPy keeps
    # it as ``_now`` and has a property ``now``; here both are one slot.
    if not TYPE_CHECKING:
        __slots__ = ("now",)

    def post(self, moment: Moment, time_s: float, kind: EventPriority, calls: Calls) -> None:
        """Schedule a moment that was made elsewhere, or that has passed, to make these calls.

        SimPy only iterates over them, so many moments may share one tuple; no process can wait for
        such a moment.
        """
        moment.callbacks = calls  # type: ignore[assignment]
        heappush(self._queue, (time_s, kind, next(self._eid), moment))

    def events(self) -> int:
        """Events scheduled so far."""
        return next(self._eid)  # uses one number up, which nobody misses

    def at(
        self,
        time_s: float,
        kind: EventPriority,
        call: Callable[[Moment], object] | None = None,
        subject: Any = None,
    ) -> Moment:
        """Schedule a moment at ``time_s`` (not in the past); a process may also yield it."""
        moment = Moment(self, call, subject)
        heappush(self._queue, (time_s, kind, next(self._eid), moment))
        return moment


if not TYPE_CHECKING:
    Clock._now = Clock.now
