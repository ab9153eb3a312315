"""Do the lanes of a job run the kernels that it was promised? Asked of the lanes, at the start.

At D2 the lanes agree on a capability, and a table says that with it they give the same bits
(``executor.levels``). Here it is seen: the first worker of a lane runs the battery of operators
(``executor.operators``) before it builds the task, and what it found is compared with what the
job's other lanes found. A lane that differs is refused, with the operators named: the job fails
instead of training on with other bits.

A worker takes some 40 ms for it, once for each environment that a lane's workers are started with,
which is kept by the pool: what comes after costs nothing.

Leaves out: D0 and D1, where all lanes are of one type; GPUs, where the battery has operators that
D2 does not cover, and where this was never run; workers that are threads, which share their
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from executor.levels import Agreement, Level
from executor.operators import differing
from executor.pool import Handle

Digests = Mapping[str, str]
_NAMED = 6  # operators in an error


class Witness:
    """What the lanes of one job say. ``kept``: digests by worker environment, of all jobs."""

    def __init__(self, agreement: Agreement | None, kept: MutableMapping[str, Digests]) -> None:
        self._asks = agreement is not None and agreement.level is Level.D2 and not agreement.on_gpu
        self._kept = kept
        self._first: tuple[str, Digests] | None = None

    def asks(self, handle: Handle) -> bool:
        """Whether this worker has to run the battery: none of its lane and environment has."""
        return self._asks and handle.environment not in self._kept

    def heard(self, handle: Handle, found: Digests | None) -> str | None:
        """Take in what a worker found, None if it was not asked; return what is wrong, if it is."""
        if not self._asks:
            return None
        if found is not None:
            self._kept[handle.environment] = found
        said = self._kept.get(handle.environment)
        if said is None:
            return None
        lane = handle.lane.name
        if self._first is None:
            self._first = lane, said
        other, expected = self._first
        apart = differing(expected, said)
        if not apart:
            return None
        more = f" and {len(apart) - _NAMED} more" if len(apart) > _NAMED else ""
        return (
            f"level D2: lanes {other} and {lane} give other bits in"
            f" {', '.join(apart[:_NAMED])}{more}; expected lanes whose operators agree"
            " (tandem devices LANES --compare D2), or a job on one type at D1"
        )
