"""Who works for a job: members, those who are about to join, those who are about to leave.

*Members* are the devices of the generation, by place in the worker map's order. *Joining* are
workers that build the task, maybe while the members still train. *Leaving* are asked to forget the
job and go back to the pool then. The crew also knows when one of them hangs: if nothing was heard
of anybody for a while all are asked what they are doing, and one that does not answer, or is in
work of its own for too long, is taken for hung. Waiting for others is no fault.

Leaves out: what is done when one is lost (``executor.job``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from executor import messages as m
from executor.devices import DeviceLane
from executor.levels import Agreement
from executor.pool import Handle, Place, WorkerPool

_PONG_S = 1.0
_ASLEEP_S = 5.0  # between two looks, of which there are some in a second
_OWN_WORK = frozenset({"attach", "configure", "compute", "apply", "write"})


class Crew:
    """The workers of one job, borrowed from a pool. ``attached`` are those that have its task."""

    def __init__(
        self, lanes: Mapping[Place, DeviceLane], pool: WorkerPool, agreement: Agreement | None
    ) -> None:
        self.members: dict[Place, Handle] = {}
        self.joining: dict[Place, Handle] = {}
        self.leaving: list[Handle] = []
        self.attached: set[Handle] = set()
        self._asked: set[Handle] = set()  # to build the task
        self._lanes, self._pool, self._agreement = lanes, pool, agreement

    @property
    def handles(self) -> list[Handle]:
        """All workers of the job."""
        return [*self.members.values(), *self.joining.values(), *self.leaving]

    def at(self, gpu: Place) -> Handle:
        """Return the worker on a device; if there is none, one is taken from the pool to join."""
        if gpu in self.members:
            return self.members[gpu]
        if gpu not in self.joining:
            self.joining[gpu] = self._pool.take(self._lanes[gpu], self._agreement)
        return self.joining[gpu]

    def call(self, gpus: Iterable[Place]) -> list[Handle]:
        """Have a worker on each device; return those that nobody has asked to build the task."""
        workers = [self.at(gpu) for gpu in gpus]
        new = [h for h in workers if h in self.joining.values() and h not in self._asked]
        self._asked.update(new)
        return new

    @property
    def ready(self) -> bool:
        """Whether all who are joining have built the task."""
        return all(handle in self.attached for handle in self.joining.values())

    def is_new(self, handle: Handle) -> bool:
        """Whether a worker is joining and has not built the task yet."""
        return handle in self.joining.values() and handle not in self.attached

    def bury(self, handle: Handle) -> list[tuple[Place, bool]]:
        """Take a worker out and kill it; return where it was, and whether as a member."""
        self._pool.bury(handle)
        self._forget(handle)
        if handle in self.leaving:
            self.leaving.remove(handle)
        found = []
        for where in (self.joining, self.members):
            for gpu in [g for g, h in where.items() if h is handle]:
                del where[gpu]
                found.append((gpu, where is self.members))
        return found

    def change(self, devices: Mapping[Place, Handle]) -> None:
        """Make these the members; whoever is not among them leaves.

        If one dies from here on, the new members are asked what they have.
        """
        leaving = [h for gpu, h in self.members.items() if gpu not in devices]
        # Those that were wanted once, and not any more, leave too.
        spare = [h for gpu, h in self.joining.items() if gpu not in devices]
        self.leaving += [*leaving, *spare]
        self.joining = {}
        self.members = dict(devices)

    def let_go(self) -> None:
        """Give those who leave back to the pool."""
        for handle in self.leaving:
            self._forget(handle)
            self._pool.give_back(handle)
        self.leaving = []

    def disband(self, handles: Iterable[Handle]) -> None:
        """Give these back to the pool, but for those that were buried; nobody is left."""
        for handle in handles:
            if handle in self.handles:
                self._pool.give_back(handle)
        self.members, self.joining, self.leaving = {}, {}, []

    def _forget(self, handle: Handle) -> None:
        """It has no task of ours any more."""
        self.attached.discard(handle)
        self._asked.discard(handle)


class Watch:
    """Whether somebody hangs. ``clock`` gives seconds.

    If we have not looked for long we were stopped ourselves (Ctrl-Z, a machine that stood still),
    and so, maybe, were they: their silence begins anew.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = self._looked = clock()  # the last sign of life; our own last look
        self._pinged: float | None = None
        self._pongs: dict[Handle, m.Pong] = {}

    def heard(self) -> None:
        """There was a sign of life, or a new reason to wait for one."""
        self._since = self._clock()

    def pong(self, handle: Handle, pong: m.Pong) -> None:
        """A worker says what it is doing: no sign of life, but an answer."""
        self._pongs[handle] = pong

    def rest(self) -> None:
        """Nobody is waited for."""
        self._pinged, self._looked = None, self._clock()

    def hung(self, handles: Iterable[Handle], limit_s: float) -> list[tuple[Handle, str]]:
        """Return who hangs, and what it does, when nothing was heard for ``limit_s``."""
        now = self._clock()
        slept, self._looked = now - self._looked > _ASLEEP_S, now
        if slept:
            self._since = now
        if now - self._since < limit_s:
            self._pinged = None
        elif self._pinged is None:
            self._pinged, self._pongs = now, {}
            for handle in handles:
                handle.say(m.Ping(number=0))
        elif now - self._pinged > _PONG_S:
            self._pinged, self._since = None, now
            return [
                (handle, f"{what}; deadline {limit_s:g} s")
                for handle in handles
                if (what := self._fault(handle, limit_s)) is not None
            ]
        return []

    def _fault(self, handle: Handle, limit_s: float) -> str | None:
        pong = self._pongs.get(handle)
        if pong is None:
            return "does not answer"
        if pong.phase in _OWN_WORK and pong.phase_s > limit_s:
            return f"hangs in {pong.phase}"
        return None
