"""The load on an online service: real requests over HTTP at a rate, from a process of its own.

``python -m executor.asking`` reads orders from stdin, a line of JSON each (``rate``: requests per
second; ``urls``: who answers), and writes what came of the last second to stdout, a line each. It
is an open loop: a request is due at its time whether or not earlier ones were answered, and its
latency counts from then. At most ``MOST`` are under way; what is due beyond that, or while nobody
answers, is *unserved*. It ends when its stdin does.

Requests are those of a client that asks about many users: a history of events and some candidates,
drawn from a seed, sized for the version that is served. Leaves out: users that come again.
"""

from __future__ import annotations

import http.client
import json
import random
import select
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WINDOW_S = 1.0
MOST = 16
TIMEOUT_S = 5.0
_BODIES = 64
_CANDIDATES = 16
_NOW_S = 1.7e9


class Window:
    """What came of the requests of one stretch of time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._latencies_s: list[float] = []

    def count(self, name: str) -> None:
        """Count one request: ``requests``, ``refused``, ``failed`` or ``unserved``."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def answered(self, seconds: float) -> None:
        """Note one answer."""
        with self._lock:
            self._latencies_s.append(seconds)

    def take(self) -> dict[str, Any]:
        """Return what there is, and begin anew."""
        with self._lock:
            found = {**self._counts, "latencies_s": self._latencies_s}
            self._counts, self._latencies_s = {}, []
        return found


class Client:
    """Asks servers; one connection for each thread and server. ``seed``: of what is asked."""

    def __init__(self, window: Window, seed: int = 0) -> None:
        self._window = window
        self._random = random.Random(seed)
        self._local = threading.local()
        self._bodies: dict[str, list[bytes]] = {}
        self._lock = threading.Lock()

    def ask(self, url: str, number: int, due_s: float) -> None:
        """Send one request and note what came of it."""
        try:
            bodies = self._bodies_of(url)
            status = self._post(url, bodies[number % len(bodies)])
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            self._window.count("failed")
            return
        if status == http.client.OK:
            self._window.answered(time.monotonic() - due_s)
        else:
            self._window.count("refused")

    def _post(self, url: str, body: bytes) -> int:
        known: dict[str, http.client.HTTPConnection] = self._local.__dict__
        headers = {"Content-Type": "application/json"}
        for _ in range(2):  # a connection that idled may have been closed on the other side
            used = url in known
            connection = known.get(url) or _connection(url)
            known[url] = connection
            try:
                connection.request("POST", "/v1/score", body, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                del known[url]
                if not used:
                    raise
            else:
                return answer.status
        raise ConnectionError(url)

    def _bodies_of(self, url: str) -> list[bytes]:
        with self._lock:
            if url not in self._bodies:
                connection = _connection(url)
                try:
                    connection.request("GET", "/v1/versions")
                    served = json.loads(connection.getresponse().read())["held"][0]
                finally:
                    connection.close()
                self._bodies[url] = [_body(self._random, served) for _ in range(_BODIES)]
            return self._bodies[url]


def _connection(url: str) -> http.client.HTTPConnection:
    place = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT_S)


def _body(draw: random.Random, served: dict[str, Any]) -> bytes:
    """A score request for the version that is served."""
    events = int(served["max_length"])

    def ids(count: int) -> list[int]:
        return [draw.randrange(100_000) for _ in range(count)]

    asked = {
        "user": draw.randrange(100_000),
        "request_time_s": _NOW_S,
        "history": {
            "item": ids(events),
            "category": ids(events),
            "action": [draw.randrange(int(served["num_actions"])) for _ in range(events)],
            "time_s": sorted(_NOW_S - draw.uniform(1.0, 1e6) for _ in range(events)),
        },
        "candidates": {
            "item": ids(_CANDIDATES),
            "category": ids(_CANDIDATES),
            "cross": [ids(int(served["num_cross"])) for _ in range(_CANDIDATES)],
        },
    }
    return json.dumps(asked).encode()


class Loop:
    """Sends what is due. ``send(url, number, due_s)`` does it; ``now`` is the clock."""

    def __init__(
        self,
        window: Window,
        send: Callable[[str, int, float], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window, self._send, self._now = window, send, now
        self._rate = 0.0
        self._urls: Sequence[str] = ()
        self._due_s: float | None = None
        self._number = 0

    def order(self, rate: float, urls: Sequence[str]) -> None:
        """From now on: so many requests per second, to these."""
        if rate != self._rate:
            self._rate = rate
            self._due_s = self._now() + 1.0 / rate if rate > 0 else None
        self._urls = list(urls)

    def turn(self) -> float:
        """Send what is due now; return the seconds until something is due again."""
        while self._due_s is not None:
            due_s, now = self._due_s, self._now()
            if due_s > now:
                return due_s - now
            self._window.count("requests")
            if self._urls:
                self._send(self._urls[self._number % len(self._urls)], self._number, due_s)
            else:
                self._window.count("unserved")
            self._number += 1
            self._due_s = due_s + 1.0 / self._rate
        return WINDOW_S


def main() -> int:
    """Send requests until stdin ends."""
    window = Window()
    client = Client(window)
    room = threading.Semaphore(MOST)
    # Unbuffered: what is read ahead of a line would not wake the loop.
    with ThreadPoolExecutor(MOST, "asking") as pool, open(0, "rb", 0, closefd=False) as orders:

        def send(url: str, number: int, due_s: float) -> None:
            if not room.acquire(blocking=False):
                window.count("unserved")
                return
            pool.submit(client.ask, url, number, due_s).add_done_callback(lambda _: room.release())

        loop = Loop(window, send)
        closes_s = time.monotonic() + WINDOW_S
        while True:
            wait_s = min(loop.turn(), max(0.0, closes_s - time.monotonic()))
            if select.select([orders], [], [], wait_s)[0]:
                line = orders.readline()
                if not line:
                    return 0
                order = json.loads(line)
                loop.order(order["rate"], order["urls"])
            now = time.monotonic()
            if now >= closes_s:
                closes_s = now + WINDOW_S
                sys.stdout.write(json.dumps({"at_s": now, **window.take()}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
