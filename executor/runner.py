"""Scripts: what a job does with its workers in several rounds, written as one after another.

A script is a generator. It yields a batch, requests by worker, and is resumed with the replies when
all requests that are open have been answered. If a worker dies meanwhile, or says that a peer was
lost, what the script knows is out of date: it is closed, and whoever runs it begins another. So a
script changes nothing that a second run of it would not set again. Only the ``Last`` that it asks
is different: whoever does not answer that, or cannot, changes nothing any more.

Leaves out: which script is run, and what is done when it has ended (``executor.job``).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from executor import messages as m
from executor.errors import ExecutorError
from executor.pool import Handle

Batch = Mapping[Handle, m.Request]
Replies = Mapping[Handle, m.Reply]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Last:
    """What a script asks last; then it is not closed any more."""

    batch: Batch


Part = Generator[Batch | Last, Replies, Value]  # of a script, with what it found out
Script = Part[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a script ended.

    ``done``; ``disturbed``: a worker is gone, it was closed; ``refused``: a worker replied with the
    error ``text``, it was closed; ``failed``: it raised ``text`` itself.
    """

    how: Literal["done", "disturbed", "refused", "failed"]
    text: str = ""


class Runner:
    """Runs one script at a time, and keeps the requests that are open, of a script or not."""

    def __init__(self) -> None:
        self._script: Script | None = None
        self._serials = itertools.count(1)
        self._open: dict[int, Handle] = {}
        self._replies: dict[Handle, m.Reply] = {}
        self._disturbed = False
        self._last = False

    @property
    def leaving(self) -> bool:
        """Whether a script has asked what it asks last, and waits for it."""
        return self._last and self._script is not None

    @property
    def asked(self) -> list[Handle]:
        """Workers that have not answered yet."""
        return list(self._open.values())

    def ask(self, handle: Handle, request: m.Request) -> None:
        """Send a request; its reply is given to the script that runs when it comes."""
        serial = next(self._serials)
        self._open[serial] = handle
        if not handle.say(replace(request, serial=serial)):
            del self._open[serial]
            self._disturbed = True

    def answered(self, handle: Handle, reply: m.Reply) -> bool:
        """Take a reply; False if nobody waits for it any more."""
        if self._open.pop(reply.serial, None) is None:
            return False
        self._replies[handle] = reply
        return True

    def disturb(self, handle: Handle | None = None) -> None:
        """What the script knows is out of date; this worker will not answer."""
        self._disturbed = True
        for serial in [s for s, h in self._open.items() if h is handle]:
            del self._open[serial]

    def begin(self, script: Script) -> Ending | None:
        """Run a script up to its first wait; return its ending if it has one by then."""
        self._script, self._disturbed, self._last = script, False, False
        return self._resume(None) or self.go_on()

    def go_on(self) -> Ending | None:
        """Resume the script for as long as no request is open; None: it waits, or none runs."""
        while self._script is not None and not self._open:
            ending = self._verdict()
            if ending is not None:
                self._script.close()
                self._script = None
            else:
                ending = self._resume(dict(self._replies))
            if ending is not None:
                return ending
        return None

    def _verdict(self) -> Ending | None:
        """Whether the replies are such that the script cannot go on."""
        if self._last:
            return None
        if self._disturbed or any(reply.lost for reply in self._replies.values()):
            self._disturbed = False
            return Ending(how="disturbed")
        errors = [reply.error for reply in self._replies.values() if reply.error is not None]
        return Ending(how="refused", text=errors[0]) if errors else None

    def _resume(self, replies: Replies | None) -> Ending | None:
        """Give the script its replies, and send what it asks for next."""
        assert self._script is not None
        try:
            batch = next(self._script) if replies is None else self._script.send(replies)
        except StopIteration:
            self._script = None
            return Ending(how="done")
        except ExecutorError as error:
            self._script = None
            return Ending(how="failed", text=str(error))
        if isinstance(batch, Last):
            self._last, batch = True, batch.batch
        self._replies = {}
        for handle, request in batch.items():
            self.ask(handle, request)
        return None
