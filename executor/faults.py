"""Injected faults, scripted by rank or device, step and point, so that each can be repeated.

In torchft's manner: a fault says where it happens, not when. The engine calls a ``Probe`` at its
named points; a device that a fault is meant for then dies, hangs, runs out of memory or produces
garbage. Each fault happens once: before it happens it is reported, and whoever recovers the job
does not give it out again.

Kinds: ``kill`` (SIGKILL; a worker that is a thread ends at once without a word), ``hang`` (waits
until it is killed), ``oom`` (raises MemoryError), ``nan`` (at ``micro-step``: the rank's gradient
becomes NaN), ``flip`` (at ``applied``: one bit of a parameter changes silently), ``damage`` (at
``exchange``: one byte of what is sent changes), ``full-disk`` (a write fails with ENOSPC).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from executor.errors import ExecutorError

POINTS = (
    "configure",  # a new generation begins
    "transfer",  # state or rows are about to go to other devices
    "arrival",  # they are about to come to a newcomer, which will hold the rank
    "micro-step",  # before a rank's micro-batch
    "backward",  # after it, before the switch
    "exchange",  # the last backward is done, dense partial sums are on their way
    "fold",  # everybody has contexts and sparse rows, nobody has the sum
    "apply",  # the sum is here, nothing is changed yet
    "applied",  # the update is done, nobody was told
    "checkpoint",  # a checkpoint is being written
)
KINDS = ("kill", "hang", "oom", "nan", "flip", "damage", "full-disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: at ``point`` of ``step``, on the device that holds virtual rank ``rank``.

    Raises ExecutorError for a kind or point that does not exist.
    """

    kind: str
    step: int
    rank: int
    point: str

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("point", POINTS)):
            if getattr(self, name) not in known:
                raise ExecutorError(
                    f"unknown {name} of a fault",
                    value=getattr(self, name),
                    expected=", ".join(known),
                )


class KilledError(BaseException):
    """Ends a worker that is a thread where a process would be gone; nothing may catch it."""


class Probe:
    """What a worker asks at every point: is there a fault for me?

    ``report`` tells the agent before the fault happens. ``killed`` is set when the worker is killed
    from outside; ``as_process`` is whether a kill ends a process or a thread.
    """

    def __init__(
        self,
        faults: Iterable[Fault] = (),
        *,
        report: Callable[[Fault], None] | None = None,
        killed: threading.Event | None = None,
        as_process: bool = False,
    ) -> None:
        self._faults = list(faults)
        self._report = report
        self._killed = threading.Event() if killed is None else killed
        self._as_process = as_process

    def __call__(self, point: str, step: int, ranks: range) -> str | None:
        """Let what is due at this point happen; return the kind of what the caller must do."""
        if self._killed.is_set():
            raise KilledError
        for fault in self._faults:
            if fault.point == point and fault.step == step and fault.rank in ranks:
                self._faults.remove(fault)
                if self._report is not None:
                    self._report(fault)
                return self._happen(fault)
        return None

    def _happen(self, fault: Fault) -> str | None:
        if fault.kind == "kill":
            self._die()
        if fault.kind == "hang":
            self._killed.wait()
            raise KilledError
        if fault.kind == "oom":
            raise MemoryError(f"injected at step {fault.step}, rank {fault.rank}")
        if fault.kind == "full-disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fault.kind

    def _die(self) -> NoReturn:
        if self._as_process:
            os.kill(os.getpid(), signal.SIGKILL)
        self._killed.set()
        raise KilledError
