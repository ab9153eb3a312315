"""One port, one service: from binding to the last answer.

SIGINT and SIGTERM end it cleanly: no new connection is taken, requests in flight are answered (for
``GRACE_S`` at most), threads end, and the function returns. A second one closes connections at
once. The port is bound before anything is announced, so port 0 can be announced as what it became.

Needs the extra ``serve``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from models.errors import ModelError
from models.serve.http import MAX_BODY_BYTES, build_app
from models.serve.service import Service, Settings
from models.serve.versions import Versions

GRACE_S = 10


class Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,  # warnings go where the process sends them
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()


def bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 takes a free one. Raises ModelError."""
    where = f"{host}:{port}"
    if not 0 <= port <= 65_535:
        raise ModelError("no such port", where=where, value=port, expected="0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound_socket = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ModelError(f"cannot be listened on: {error.strerror}", where=where) from error
    try:
        bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_socket.bind(address)
        bound_socket.listen()  # now, so that a port that is taken is known at once
    except OSError as error:
        bound_socket.close()
        raise ModelError(
            f"cannot be listened on: {error.strerror}",
            where=where,
            expected="a free port, or 0 for any",
        ) from error
    return bound_socket


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    device: torch.device | str = "cpu",
    poll_s: float = 2.0,
    keep: int = 2,
    settings: Settings | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    on_ready: Callable[[str, int], None],
) -> None:
    """Serve the versions of a folder until a signal.

    ``poll_s``: seconds between looks for a newer version; 0: only when a client asks. ``on_ready``
    is called with the address and the version, once, when requests are answered. Call it in the
    main thread, which has the signals. Raises ModelError for an address that cannot be listened on,
    settings out of range, and a folder without a version that can be used.
    """
    if max_body_bytes < 1:
        raise ModelError(
            "nothing could be asked", where="max_body_bytes", value=max_body_bytes, expected="more"
        )
    settings = Settings() if settings is None else settings
    with bound(host, port) as listening:
        versions = Versions(folder, keep=keep, device=device)
        with Service(versions, settings) as service:
            if poll_s:
                versions.watch(poll_s)
            app = build_app(service, max_body_bytes=max_body_bytes)
            url = _url(listening)
            server = Server(app, lambda: on_ready(url, versions.current.number))
            with suppress(KeyboardInterrupt):  # uvicorn raises it again when everything has ended
                server.run(sockets=[listening])


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
