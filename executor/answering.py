"""The process that answers on a lane lent to an online service: LONGER over HTTP, on loopback.

``python -m executor.answering``, in the lane's environment, loads what it needs and waits for one
line of JSON on stdin (``folder`` of versions, ``device``, ``threads``, ``cpus``); so it may be
started before there is a lane. Then it serves, and says its address in one line on stdout when
requests are answered. It ends with SIGTERM (requests in flight are answered first), when its stdin
is closed, or with the process that started it.

Needs the extra ``serve``.
"""

from __future__ import annotations

import json
import os
import sys
import threading


def main() -> int:
    """Serve until told to end."""
    from executor.worker import die_with_parent  # noqa: PLC0415  it imports torch

    die_with_parent()
    from models.device import threads  # noqa: PLC0415
    from models.serve.server import serve  # noqa: PLC0415

    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    asked = json.loads(line)
    if asked["cpus"]:
        os.sched_setaffinity(0, asked["cpus"])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with threads(asked["threads"]):
        serve(asked["folder"], port=0, device=asked["device"], poll_s=0.0, on_ready=_say)
    return 0


def _say(url: str, version: int) -> None:
    sys.stdout.write(json.dumps({"url": url, "version": version}) + "\n")
    sys.stdout.flush()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
