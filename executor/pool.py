"""Workers by lane: processes that have imported torch, lent to jobs and taken back.

A lane (``executor.devices.DeviceLane``) says which CUDA device a worker uses, or which CPU
capability its torch is started with; a job's determinism level may add to that. Such an environment
must be there before torch is imported, so there is one zygote (``executor.zygote``) for each, which
forks into workers. A job that ends gives its workers back, for the next one on the same lane at the
same level.

Workers may be threads of this process as well (``threads=True``), for tests of the protocol: the
pipe, the messages and the process groups are the same.

Leaves out: which lane a job should use. That is decided by a worker map.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from executor import messages as m
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.levels import Agreement
from executor.zygote import Forked, Zygote

_QUIT_S = 5.0

Place = tuple[int, int]
"""A device of a worker map: (index of the node, index of the device there)."""


class Handle:
    """The agent's end of one worker: a pipe, and a way to end it."""

    def __init__(self, lane: DeviceLane, number: int, pipe: Connection) -> None:
        self.lane = lane
        self.environment = ""
        self.number = number
        self.pipe = pipe
        self.gone = False

    def say(self, order: Any) -> bool:
        """Send an order; False if the worker is gone."""
        if self.gone:
            return False
        try:
            self.pipe.send(order)
        except OSError:
            self.gone = True
        return not self.gone

    @property
    def pid(self) -> int | None:
        """The process, if it is one of its own."""
        return None

    def kill(self) -> None:
        """End the worker at once, whatever it is doing."""
        raise NotImplementedError

    def wait(self, timeout_s: float) -> bool:
        """Return whether the worker has ended within so many seconds."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"worker {self.number} ({self.lane.name})"


class _ProcessHandle(Handle):
    def __init__(self, lane: DeviceLane, number: int, pipe: Connection, process: Forked) -> None:
        super().__init__(lane, number, pipe)
        self._process = process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self.gone = True
        self._process.kill()
        self.pipe.close()  # ends one that is not born yet as soon as it is

    def wait(self, timeout_s: float) -> bool:
        return self._process.wait(timeout_s)


class _ThreadHandle(Handle):
    def __init__(
        self, lane: DeviceLane, number: int, pipe: Connection, worker: Any, thread: threading.Thread
    ) -> None:
        super().__init__(lane, number, pipe)
        self._worker = worker
        self._thread = thread

    def kill(self) -> None:
        self.gone = True
        self._worker.kill()
        self._thread.join(_QUIT_S)
        self.pipe.close()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def slow_to_open(lane: DeviceLane) -> bool:
    """Whether a worker's first use of a device takes longer than a recovery should: a whole GPU's.

    A share of a GPU is made by its job's level (``executor.levels``), and must not be used before.
    """
    return lane.cuda_index is not None and lane.sm_fraction == 1


class WorkerPool:
    """Starts workers, lends them to jobs, takes them back. Use as a context manager.

    ``warm``: at most so many idle workers are kept per lane. ``spare``: lanes of which one worker
    is idle with its device open whenever one has been lent, for the next or for who dies.
    ``kernels``: what workers found their operators to give, by ``Handle.environment`` (see
    ``executor.witness``).
    """

    def __init__(
        self,
        *,
        threads: bool = False,
        warm: int = 8,
        spare: Callable[[DeviceLane], bool] = slow_to_open,
    ) -> None:
        self._spare = (lambda lane: False) if threads else spare
        self.kernels: dict[str, Mapping[str, str]] = {}
        self._threads = threads
        self._warm = warm
        self._idle: dict[str, list[Handle]] = {}
        self._all: dict[int, Handle] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # PR_SET_PDEATHSIG goes by the thread that started a process, so one that lives as long as
        # the pool starts them all.
        self._starter = ThreadPoolExecutor(1, "starter")
        self._zygotes: dict[str, Zygote] = {}
        self._closed = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, lane: DeviceLane, agreement: Agreement | None = None) -> Handle:
        """Return a warm worker of a lane, or start one.

        Raises ExecutorError after ``close``, and DataError for a lane that the job's level does not
        admit.
        """
        environ = _environ(lane, agreement)
        handle = self._idle_one(lane, environ) or self._start(lane, environ)
        if self._spare(lane):
            self._warm_up(lane, 1, environ)
        return handle

    def _idle_one(self, lane: DeviceLane, environ: Mapping[str, str]) -> Handle | None:
        with self._lock:
            if self._closed:
                raise ExecutorError("the pool is closed", where=f"lane {lane.name}")
            idle = self._idle.setdefault(_key(lane, environ), [])
            while idle:
                handle = idle.pop()
                if not handle.gone and not handle.pipe.poll():
                    return handle
                self._forget(handle)
        return None

    def warm_up(self, lane: DeviceLane, number: int, agreement: Agreement | None = None) -> None:
        """Have ``number`` idle workers of a lane started; they become ready by themselves."""
        self._warm_up(lane, number, _environ(lane, agreement))

    def _warm_up(self, lane: DeviceLane, number: int, environ: Mapping[str, str]) -> None:
        key = _key(lane, environ)
        with self._lock:
            missing = number - len(self._idle.setdefault(key, []))
        for _ in range(missing):
            handle = self._start(lane, environ)
            if self._spare(lane):
                handle.say(m.Open(lane=lane))
            with self._lock:
                self._idle[key].append(handle)

    def give_back(self, handle: Handle) -> None:
        """Take a worker back that has detached from its job; a dead one is buried."""
        with self._lock:
            idle = self._idle.setdefault(handle.environment, [])
            if not handle.gone and not self._closed and len(idle) < self._warm:
                idle.append(handle)
                return
        self.end(handle)

    def end(self, handle: Handle) -> None:
        """End one worker: ask first, then kill."""
        if handle.say(m.Quit()) and handle.wait(_QUIT_S):
            handle.gone = True
            handle.pipe.close()
        else:
            handle.kill()
        with self._lock:
            self._all.pop(handle.number, None)

    def bury(self, handle: Handle) -> None:
        """Kill a worker that died, hangs or cannot be trusted."""
        handle.kill()
        with self._lock:
            self._all.pop(handle.number, None)

    def pids(self) -> list[int]:
        """Return the processes of all workers that were started and not ended, zygotes included."""
        with self._lock:
            workers = [pid for handle in self._all.values() if (pid := handle.pid) is not None]
            return workers + [z.process.pid for z in self._zygotes.values() if z.alive]

    def close(self) -> None:
        """End all workers, idle and lent; none is left when this returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            handles = list(self._all.values())
        for handle in handles:
            handle.say(m.Quit())
        for handle in handles:
            if not handle.gone and handle.wait(_QUIT_S):
                handle.gone = True
                handle.pipe.close()
            else:
                handle.kill()
        self._all.clear()
        for zygote in self._zygotes.values():
            zygote.close()
        self._starter.shutdown()

    def _forget(self, handle: Handle) -> None:
        handle.kill()
        self._all.pop(handle.number, None)

    def _start(self, lane: DeviceLane, environ: Mapping[str, str]) -> Handle:
        number = next(self._numbers)
        start = self._start_thread if self._threads else self._start_process
        handle = self._starter.submit(start, lane, number, environ).result()
        handle.environment = _key(lane, environ)
        with self._lock:
            self._all[number] = handle
        return handle

    def _start_process(self, lane: DeviceLane, number: int, environ: Mapping[str, str]) -> Handle:
        key = str(sorted(environ.items()))
        zygote = self._zygotes.get(key)
        if zygote is not None and zygote.alive:
            with suppress(OSError):  # it died since
                return _ProcessHandle(lane, number, *zygote.fork())
        if zygote is not None:
            zygote.close()
        zygote = self._zygotes[key] = Zygote(environ)
        return _ProcessHandle(lane, number, *zygote.fork())

    def _start_thread(self, lane: DeviceLane, number: int, _: Mapping[str, str]) -> Handle:
        from executor.worker import Worker  # noqa: PLC0415  it imports torch

        ours, theirs = Pipe()
        worker = Worker(theirs, as_process=False)
        thread = threading.Thread(target=worker.run, name=f"worker {number}", daemon=True)
        thread.start()
        return _ThreadHandle(lane, number, ours, worker, thread)


def _environ(lane: DeviceLane, agreement: Agreement | None) -> dict[str, str]:
    return lane.environ() if agreement is None else agreement.environ(lane)


def _key(lane: DeviceLane, environ: Mapping[str, str]) -> str:
    return f"{lane.name} {sorted(environ.items())}"
