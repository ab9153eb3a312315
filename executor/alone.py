"""A process that measures tasks alone on one lane, from the outside: start, ask for rounds, end.

The other side is ``executor.measure``. The process has the environment of its lane and level, and
does nothing between two rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from executor.devices import DeviceLane
from executor.levels import Agreement
from executor.measure import Samples
from executor.presets import model_task
from traces.errors import DataError

TIMEOUT_S = 300.0
WORKERS = (1, 2, 4)  # logical workers on the one device, for the switch


class Alone:
    """The process of one lane. Use as a context manager.

    ``cases``: (model, batch size per logical worker); ``seconds``: of each, in a round.
    """

    def __init__(
        self,
        lane: DeviceLane,
        agreement: Agreement,
        cases: Sequence[tuple[str, int]],
        seconds: float,
    ) -> None:
        self.lane = lane
        self._cases = list(cases)
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "executor.measure"],
            env=os.environ | agreement.environ(lane) | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request = {
            "lane": lane.to_json(),
            "agreement": agreement.to_json(),
            "seconds": seconds,
            "cases": [
                {n: model_task(model, batch, n).to_json() for n in WORKERS}
                for model, batch in self._cases
            ],
        }
        self._write(json.dumps(request))

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def round(self) -> Mapping[tuple[str, int], Samples]:
        """Measure every case once more. Raises DataError if the process fails or hangs."""
        guard = threading.Timer(TIMEOUT_S, self._process.kill)
        guard.start()
        try:
            self._write("round")
            assert self._process.stdout is not None
            answer = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not answer:
            raise DataError(f"lane {self.lane.name}: {self._last_words()}")
        found = map(Samples.from_json, json.loads(answer))
        return dict(zip(self._cases, found, strict=True))

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise DataError(f"lane {self.lane.name}: {self._last_words()}") from None

    def _last_words(self) -> str:
        self._process.kill()
        _, said = self._process.communicate()
        return (said.strip().splitlines() or ["the measuring process ended"])[-1]
