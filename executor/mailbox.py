"""A worker's mailbox: its end of the pipe, and a thread that reads there whatever the worker does.

Pings are answered at once, wishes to pause or to abandon a generation are noted; all else waits
until the worker asks for it, in order. When the agent is gone a worker process ends at once; a
worker that is a thread is killed, as gently as that goes.

Leaves out: what is done about an order (``executor.worker``).
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from executor import messages as m

EXIT_ORPHAN = 3


class Mailbox:
    """The mailbox of one worker.

    ``doing`` says what the worker is doing and since when (monotonic seconds); ``on_kill`` frees it
    from what it waits for. ``paused_run``: the latest run to be paused; ``abandoned``: the latest
    generation to be given up; ``killed``: whether the worker shall do and say nothing more.
    """

    def __init__(
        self,
        pipe: Connection,
        *,
        as_process: bool,
        doing: Callable[[], tuple[str, float]],
        on_kill: Callable[[], None],
    ) -> None:
        self.paused_run = -1
        self.abandoned = -1
        self.killed = threading.Event()
        self._pipe = pipe
        self._as_process = as_process
        self._doing, self._on_kill = doing, on_kill
        self._sending = threading.Lock()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def open(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def next(self) -> Any:
        """Wait for the next order; None: there will be none any more."""
        return self._orders.get()

    def say(self, news: m.News | m.Reply) -> None:
        """Tell the agent."""
        if self.killed.is_set():
            return
        try:
            with self._sending:
                self._pipe.send(news)
        except OSError:
            self._orphaned()

    def kill(self) -> None:
        """Say nothing more, and give out no order any more."""
        self.killed.set()
        self._on_kill()
        self._orders.put(None)

    def hang_up(self) -> None:
        """End the pipe for both sides, and for our reader, who may be waiting on it."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        while True:
            try:
                order = self._pipe.recv()
            except (EOFError, OSError):
                self._orphaned()
                return
            if isinstance(order, m.Ping):
                phase, since_s = self._doing()
                phase_s = time.monotonic() - since_s
                self.say(m.Pong(number=order.number, phase=phase, phase_s=phase_s))
            elif isinstance(order, m.Pause):
                self.paused_run = order.number
            elif isinstance(order, m.Abandon):
                self.abandoned = order.generation
            elif isinstance(order, m.Quit):
                self._orders.put(None)
                return
            else:
                self._orders.put(order)

    def _orphaned(self) -> None:
        if self._as_process:
            os._exit(EXIT_ORPHAN)
        self.kill()
