"""A quantity that stays constant between events: GPUs in demand over time.

``Steps`` is right-continuous: at the instant of a change the new value holds, so a service that
ends and another that begins at the same second are never counted together. Values are integers
(milli-GPUs), so sums of many changes are exact and do not depend on the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """A piecewise-constant function of time, 0 before its first change.

    ``times_s`` (n,) ascends strictly; ``values`` (n,) are the integers that hold from there on.
    """

    times_s: Floats
    values: Integers

    @classmethod
    def of_intervals(cls, start_s: Floats, end_s: Floats, height: Integers) -> Steps:
        """Sum ``height`` over the half-open intervals ``[start_s, end_s)``; all (n,).

        Empty intervals (``end_s <= start_s``) add nothing.
        """
        lives = end_s > start_s
        times = np.concatenate([start_s[lives], end_s[lives]])
        changes = np.concatenate([height[lives], -height[lives]])
        instants, place = np.unique(times, return_inverse=True)
        net = np.zeros(len(instants), dtype=np.int64)
        np.add.at(net, place, changes)
        kept = net != 0
        return cls(times_s=instants[kept], values=np.cumsum(net[kept], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def peak(self) -> int:
        """The largest value (0 if nothing ever happens)."""
        return int(self.values.max(initial=0))

    @property
    def peak_s(self) -> float | None:
        """The first instant of the peak; None if nothing ever happens."""
        return float(self.times_s[int(self.values.argmax())]) if len(self) else None

    def at(self, time_s: float) -> int:
        """Return the value that holds at ``time_s``."""
        place = int(np.searchsorted(self.times_s, time_s, side="right")) - 1
        return 0 if place < 0 else int(self.values[place])

    def integral(self, from_s: float, to_s: float) -> float:
        """Value times seconds between two instants."""
        if to_s <= from_s or not len(self):
            return 0.0
        starts = np.clip(self.times_s, from_s, to_s)
        ends = np.clip(np.append(self.times_s[1:], np.inf), from_s, to_s)
        return float(np.dot(self.values.astype(np.float64), ends - starts))

    def mean(self, from_s: float, to_s: float) -> float:
        """Time average between two instants; 0 over an empty interval."""
        return self.integral(from_s, to_s) / (to_s - from_s) if to_s > from_s else 0.0
