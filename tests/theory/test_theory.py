"""Simulated queues against queueing theory; ``docs/theory.md`` has the numbers.

Every GPU is a server and every job asks for one. Mean service is 1. Seeds are fixed, so a test
that passes always passes; the estimates say how far chance could have carried them.
"""

from __future__ import annotations

import pytest

from tests.theory.cases import CASES, Case


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_one_per_cent(case: Case) -> None:
    found = case.run()
    print(found)  # noqa: T201  (the table of docs/theory.md)
    found.check()
