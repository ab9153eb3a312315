"""The simulated world's clock: SimPy's event loop without the step.

Nothing is waited for between two simulated events, so the loop need not be open to a world that
does (SimPy's ``run`` calls ``step`` for each event, and a real-time clock overrides it): taking an
event from the heap and making its calls is all of it, and a replay does it millions of times. The
order of events and what a failed one does are SimPy's.
"""

from __future__ import annotations

from heapq import heappop
from typing import Any

import simpy
from simpy.core import StopSimulation

from policies.clock import Clock


class SimulatedClock(Clock):
    """Simulated time in seconds, run in one loop."""

    def run(self, until: Any = None) -> Any:
        """Run until an event has happened, and return its value; see SimPy for other cases.

        Raises ``RuntimeError`` when nothing is left that could make it happen, and whatever an
        event failed with.
        """
        if not isinstance(until, simpy.Event) or until.callbacks is None:
            return super().run(until)
        until.callbacks.append(StopSimulation.callback)
        queue = self._queue
        try:
            while queue:
                self._now, _, _, event = heappop(queue)
                calls, event.callbacks = event.callbacks, None  # type: ignore[assignment]
                for call in calls:
                    call(event)
                if not event._ok and not hasattr(event, "_defused"):
                    raise event._value
        except StopSimulation as end:
            return end.args[0]
        raise RuntimeError(f"no events are left, and {until} has not happened")
