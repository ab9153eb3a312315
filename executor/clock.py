"""The wall clock: the driver's SimPy environment in real time.

A step waits for the instant of the next event *or* for a message from the world, whichever is
first; nothing else differs from the simulated clock (SimPy's ``RealtimeEnvironment`` overrides the
same one method, and waits for time alone). A message becomes an event at the instant it came, so
the total order of simultaneous events is the simulator's.

An event keeps the instant it was meant for, even if it is processed late: a driver that was busy
for a millisecond does not let its timers drift. ``largest_lag_s`` says how late one was at worst.

No code outside this file and the mailboxes reads the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import simpy
from simpy.core import EmptySchedule

from policies.clock import Clock, Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something that happened in the world at ``time_s``; ``call`` is told of it by the clock.

    ``kind`` is its place among simultaneous events (``policies.clock``); ``subject`` is whatever
    ``call`` needs to know.
    """

    time_s: float
    kind: simpy.events.EventPriority
    call: Callable[[Moment], object]
    subject: Any = None


class Mailbox(Protocol):
    """Where the world's messages arrive, and the only thing that knows what time it is."""

    def now_s(self) -> float:
        """Seconds since the run began; never decreases."""
        ...

    def wait(self, until_s: float) -> Sequence[Message]:
        """Return what has arrived, oldest first, as soon as there is something.

        Returns nothing only once ``until_s`` has come. ``until_s`` may lie in the past (then it
        does not wait) or be infinite.
        """
        ...

    def expecting(self) -> bool:
        """Whether a message can still come although no event is scheduled."""
        ...


class WallClock(Clock):
    """A clock whose ``step`` waits for wall time or for a message."""

    def __init__(self, mailbox: Mailbox, initial_time: float = 0.0) -> None:
        super().__init__(initial_time)
        self.mailbox = mailbox
        self.largest_lag_s = 0.0

    def step(self) -> None:
        """Wait for the next event or message, and process what comes first.

        Raises SimPy's ``EmptySchedule`` when nothing is scheduled and nothing can come.
        """
        due_s = self.peek()
        if due_s == float("inf") and not self.mailbox.expecting():
            raise EmptySchedule
        for message in self.mailbox.wait(due_s):
            # What is later than an event that has passed already is taken in now, not in the past.
            time_s = max(message.time_s, self._now)
            self.at(time_s, message.kind, message.call, message.subject)
        self.largest_lag_s = max(self.largest_lag_s, self.mailbox.now_s() - self.peek())
        super().step()
