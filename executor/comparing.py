"""Do lanes agree? One child process for each set of kernels runs the battery of operators.

The answer is about this machine, this version of torch and the battery's sizes. A job's own workers
can do the same at its start: ``executor.operators.digests``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from executor.devices import DeviceLane
from executor.levels import Agreement, Level, agree
from executor.operators import differing
from traces.errors import DataError

TIMEOUT_S = 300.0
_CHILD = """
import json, sys
from executor.devices import DeviceLane
from executor.levels import Agreement, configure
from executor.operators import digests
agreement, lane = json.loads(sys.argv[1])
lane = DeviceLane.from_json(lane)
configure(Agreement.from_json(agreement), lane)
print(json.dumps(digests(lane.device)))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Digests by lane type; ``differing``: operators on which some two types differ."""

    level: Level
    digests: Mapping[str, Mapping[str, str]]

    @property
    def differing(self) -> list[str]:
        """Names of the operators that differ between any two types, in the battery's order."""
        first, *others = self.digests.values()
        apart = {name for other in others for name in differing(first, other)}
        return [name for name in first if name in apart]


def compare(lanes: Sequence[DeviceLane], level: Level) -> Comparison:
    """Run the battery on one lane of each type, at a level; D1 is agreed for each type alone.

    Raises :class:`DataError` if a process fails, and as :func:`executor.levels.agree`.
    """
    by_type = {lane.gpu_type: lane for lane in reversed(lanes)}
    found: dict[str, Mapping[str, str]] = {}
    for gpu_type in dict.fromkeys(lane.gpu_type for lane in lanes):
        lane = by_type[gpu_type]
        agreement = agree(level, lanes if level is Level.D2 else [lane])
        found[gpu_type] = _digests(agreement, lane)
    return Comparison(level=level, digests=found)


def _digests(agreement: Agreement, lane: DeviceLane) -> Mapping[str, str]:
    given = json.dumps([agreement.to_json(), lane.to_json()])
    try:
        done = subprocess.run(  # noqa: S603  our own code, in our own interpreter
            [sys.executable, "-c", _CHILD, given],
            env=os.environ | agreement.environ(lane),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"lane {lane.name}: no answer within {TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise DataError(f"lane {lane.name}: {last}")
    found: Mapping[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found
