"""Where devices that are to form a group leave word for each other: keys and values of the agent's.

A worker visits the board for one meeting, and what was put there goes when the last visitor of that
meeting has left, or died. The board is a socket of Linux' abstract namespace, so nothing of it is
on a network or a disk, and it serves processes of its own user only.

Torch's ``TCPStore`` does the same over TCP. It looks up the name of every peer, so where a name
server is slow or a packet is lost each meeting stands for 5 s, and it listens on all addresses of
the machine.

Leaves out: other machines.
"""

from __future__ import annotations

import os
import secrets
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from torch._C._distributed_c10d import Store

_CREDENTIALS = struct.Struct("3i")  # of a peer, from the kernel: process, user, group
_LONG_S = 600.0
_SLICE_S = 0.5  # of a visitor's wait, after which the board looks whether it is still there


class Board:
    """The agent's side: answers visitors in threads until ``close``. ``address``: for ``Visit``."""

    def __init__(self) -> None:
        self.address = f"\0tandem-{secrets.token_hex(8)}"
        self._meetings: dict[str, _Meeting] = {}
        self._lock = threading.Lock()
        self._server = _Server(self.address, _Visitor)
        self._server.board = self
        self._thread = threading.Thread(target=self._serve, name="board", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Take no more visitors."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def meetings(self) -> list[str]:
        """The meetings that have visitors."""
        with self._lock:
            return list(self._meetings)

    @contextmanager
    def visited(self, meeting: str) -> Iterator[_Meeting]:
        """Have one more visitor at a meeting."""
        with self._lock:
            found = self._meetings.setdefault(meeting, _Meeting())
            found.visitors += 1
        try:
            yield found
        finally:
            with self._lock:
                found.visitors -= 1
                if not found.visitors:
                    del self._meetings[meeting]


class _Meeting:
    """The notes of one meeting. Its methods are what a visitor may ask for."""

    def __init__(self) -> None:
        self.visitors = 0
        self._notes: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def put(self, key: str, value: bytes) -> None:
        with self._changed:
            self._notes[key] = value
            self._changed.notify_all()

    def read(self, keys: list[str], within_s: float) -> list[bytes] | None:
        """Return notes as soon as all are there, or None after so many seconds."""
        with self._changed:
            if self._changed.wait_for(lambda: all(key in self._notes for key in keys), within_s):
                return [self._notes[key] for key in keys]
            return None

    def add(self, key: str, number: int) -> int:
        with self._changed:
            total = int(self._notes.get(key, b"0")) + number
            self.put(key, str(total).encode())
            return total

    def remove(self, key: str) -> bool:
        with self._changed:
            return self._notes.pop(key, None) is not None


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    board: Board

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Only our own user's: messages are pickles."""
        found = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(found)[1] == os.getuid())


class _Visitor(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with (
            Connection(os.dup(self.request.fileno())) as peer,
            suppress(EOFError, OSError),
            self.server.board.visited(peer.recv()) as meeting,
        ):
            while True:
                what, *arguments = peer.recv()
                peer.send(getattr(meeting, what)(*arguments))


class Visit(Store):
    """A worker's side, at one meeting: a store for torch's groups.

    Whoever made it keeps it for as long as a group uses it, and closes it. Raises RuntimeError, as
    torch's stores do, if the board is gone, if what is waited for does not come in time, or if the
    visit was closed from another thread, also while it waits.
    """

    def __init__(self, address: str, meeting: str, *, timeout_s: float = _LONG_S) -> None:
        super().__init__()
        self._address, self._meeting, self._timeout_s = address, meeting, timeout_s
        self._asking = threading.Lock()
        self._copies: list[Visit] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._board = Connection(os.dup(self._socket.fileno()))
        try:
            self._socket.connect(address)
            self._board.send(meeting)
        except OSError as error:
            self.close()
            raise RuntimeError(f"the agent is not there: {error.strerror}") from None

    def close(self) -> None:
        """Leave the meeting."""
        for copy in self._copies:
            copy.close()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends a wait in another thread
        with self._asking:
            self._socket.close()
            self._board.close()

    def have_come(self, keys: list[str], within_s: float) -> bool:
        """Return whether all keys are there within so many seconds."""
        return self._read(keys, within_s) is not None

    # What torch's groups call. Keys: text; values: bytes.

    def set(self, key: str, value: bytes | str) -> None:
        """Put a value on the board."""
        self._ask("put", key, value.encode() if isinstance(value, str) else value)

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        return self._found([key], self._timeout_s)[0]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there."""
        self._found(keys, self._timeout_s if timeout is None else timeout.total_seconds())

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there now."""
        return self.have_come(keys, 0.0)

    def add(self, key: str, value: int) -> int:
        """Add to a number, which is 0 at first, and return it."""
        return int(self._ask("add", key, value))

    def delete_key(self, key: str) -> bool:
        """Take a value away; whether it was there."""
        return bool(self._ask("remove", key))

    def clone(self) -> Visit:
        """Visit the board a second time; the visit ends with this one."""
        self._copies.append(Visit(self._address, self._meeting, timeout_s=self._timeout_s))
        return self._copies[-1]

    def has_extended_api(self) -> bool:
        """Whether there is more than this."""
        return False

    def set_timeout(self, timeout: timedelta) -> None:
        """Wait so long, unless another time is given."""
        self._timeout_s = timeout.total_seconds()

    def _found(self, keys: list[str], within_s: float) -> list[bytes]:
        found = self._read(keys, within_s)
        if found is None:
            raise RuntimeError(f"{', '.join(keys)}: not on the board within {within_s:g} s")
        return found

    def _read(self, keys: list[str], within_s: float) -> list[bytes] | None:
        end = time.monotonic() + within_s
        while True:
            left = end - time.monotonic()
            found: list[bytes] | None = self._ask("read", keys, max(0.0, min(left, _SLICE_S)))
            if found is not None or left <= _SLICE_S:
                return found

    def _ask(self, *request: Any) -> Any:
        try:
            with self._asking:
                self._board.send(request)
                return self._board.recv()
        except (EOFError, OSError):
            raise RuntimeError("the board is gone, or the visit is over") from None
