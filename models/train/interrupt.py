"""SIGINT and SIGTERM, noticed now and obeyed where nothing is half done.

The first signal is remembered and gives the handlers back to whoever had them, so a second one acts
at once. Signals belong to the main thread; elsewhere nothing is handled.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):  # noqa: N818  not an error: someone asked for it
    """Raised by ``check`` after a signal."""


class Interruption:
    """While it is entered, signals are noticed; ``check`` raises Interrupted after one."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
                # None: whoever handles it is not Python, and could not be given it back.
                if signal.getsignal(number) is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.asked:
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
