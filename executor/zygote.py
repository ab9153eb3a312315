"""A process that has imported torch and forks into workers: starting one takes milliseconds.

Which kernels torch runs is settled by the environment when it is loaded, so there is one zygote for
each environment. It has one thread, has touched no device and made no group, which is what makes
forking it safe. The agent hands it one end of a pipe over a socket (SCM_RIGHTS) for each worker it
wants, and learns the worker's process id from the answer; it does not wait for either, so a zygote
that is still importing holds nobody up.

A zygote dies with the agent, and a worker with its zygote (PR_SET_PDEATHSIG). Workers that end are
reaped by the kernel. Leaves out: machines without fork.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection

_PID = struct.Struct("<q")
_QUIT_S = 5.0


class Forked:
    """A worker process that a zygote was asked for; its id is known once it has been forked."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._pid: int | None = None
        self._handle: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id, if it is known yet."""
        if self._pid is None:
            self._zygote.listen()
        return self._pid

    def born(self, pid: int) -> None:
        """Take the process id, and a handle that stays right if the id is used again."""
        self._pid = pid
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """Send SIGKILL, if it is there."""
        if self.pid is not None and self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            self.wait(_QUIT_S)
            self.close()

    def wait(self, timeout_s: float) -> bool:
        """Return whether it has ended within so many seconds."""
        if self.pid is None:
            return False
        if self._handle is None:
            return True
        return bool(select.select([self._handle], [], [], timeout_s)[0])

    def close(self) -> None:
        """Give the handle up."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


class Zygote:
    """The agent's end: a process with ``environ`` added to ours, which forks on demand."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        whole = dict(os.environ)
        whole["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        whole.setdefault("OMP_NUM_THREADS", "1")
        whole |= environ
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-m", "executor.zygote", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=whole,
                stdin=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self._socket = ours
        self._expected: list[Forked] = []
        self._rest = b""

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def fork(self) -> tuple[Connection, Forked]:
        """Ask for a worker; return our end of its pipe. Raises OSError if the zygote is dead."""
        ours, theirs = Pipe()
        try:
            socket.send_fds(self._socket, [b"f"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._expected.append(Forked(self))
        return ours, self._expected[-1]

    def listen(self) -> None:
        """Take in the process ids that have come."""
        while self._expected and select.select([self._socket], [], [], 0)[0]:
            try:
                data = self._socket.recv(4096)
            except ConnectionResetError:  # it died before it read what it was asked for
                data = b""
            if not data:
                return
            self._rest += data
            while len(self._rest) >= _PID.size:
                (pid,) = _PID.unpack(self._rest[: _PID.size])
                self._rest = self._rest[_PID.size :]
                self._expected.pop(0).born(pid)

    def close(self) -> None:
        """End it; workers that are still there are killed by the kernel."""
        self.listen()
        self._expected.clear()  # what was not forked by now will not be
        self._socket.close()
        try:
            self.process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(argv: list[str]) -> int:
    """Be a zygote on the socket whose descriptor is the argument."""
    from executor import worker  # noqa: PLC0415  imported here it is imported once for all

    worker.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which ends us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    worker.prepare()
    gc.freeze()
    with socket.socket(fileno=int(argv[0])) as control:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                return 0
            pid = os.fork()
            if pid == 0:
                control.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                worker.be(descriptors[0])
            os.close(descriptors[0])
            try:
                control.sendall(_PID.pack(pid))
            except OSError:
                return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
