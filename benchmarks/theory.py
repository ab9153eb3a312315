"""Simulate the queues of ``tests/theory`` and write what they gave beside what theory says.

    python benchmarks/theory.py [TEXT]

TEXT: only the queues in whose names it occurs; the others keep what the file says of them. Writes
``benchmarks/results/theory.json``; ``docs/theory.md`` is its table.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.theory.cases import CASES  # noqa: E402  (the checkout is on the path now)

RESULTS = ROOT / "benchmarks" / "results" / "theory.json"


def main(text: str = "") -> None:
    """Run the queues, and write after each, so that an interrupt loses one."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known = {str(case) for case in CASES}
    results = {name: row for name, row in results.items() if name in known}
    for case in CASES:
        if text not in str(case):
            continue
        began = time.perf_counter()
        found = case.run()
        results[str(case)] = {
            "what": found.what.rpartition(", ")[2],
            "theory": round(found.theory, 6),
            "mean": round(found.mean, 6),
            "half_width_95": round(found.half, 6),
            "plain_mean": round(found.plain, 6),
            "jobs": found.jobs,
            "wall_s": round(time.perf_counter() - began, 1),
        }
        print(found, f"{results[str(case)]['wall_s']} s", flush=True)
        ordered = {str(c): results[str(c)] for c in CASES if str(c) in results}
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
