"""The same jobs through the engine and through a recursion: every wait, not only the mean.

Lindley (1952) for one server, Kiefer and Wolfowitz (1955) for several, both in order of arrival.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.theory.estimate import Array, Drawn, workload_found
from tests.theory.formulas import exponential, lognormal


def kiefer_wolfowitz(drawn: Drawn, servers: int) -> Array:
    """Waits in order of arrival: each takes the server with least work left."""
    left = np.zeros(servers)
    waits = []
    for gap, service in zip(drawn.gaps, drawn.services, strict=True):
        left = np.maximum(left - gap, 0.0)
        waits.append(left[0])
        left[0] += service
        left.sort()
    return np.array(waits)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.2])
def test_one_server_is_lindleys_recursion(load: float) -> None:
    drawn = Drawn.poisson(load, lognormal(), 20_000, seed=7)
    waits, times = drawn.run(1, "fifo")
    np.testing.assert_allclose(waits, workload_found(drawn.gaps, drawn.services), atol=1e-7)
    np.testing.assert_allclose(times, waits + drawn.services, atol=1e-7)


@pytest.mark.parametrize("servers", [1, 2, 4, 16])
def test_several_servers_are_kiefer_and_wolfowitzs(servers: int) -> None:
    drawn = Drawn.poisson(0.9 * servers, exponential(), 8_000, seed=8)
    waits, _ = drawn.run(servers, "fifo")
    np.testing.assert_allclose(waits, kiefer_wolfowitz(drawn, servers), atol=1e-7)


@pytest.mark.parametrize(
    "policy", ["fifo", "best-effort", "sjf", "srtf", "srsf", "las", "tiresias"]
)
def test_no_order_changes_when_the_server_is_busy(policy: str) -> None:
    """Work is conserved: the last job of a busy period ends at the same instant in any order."""
    drawn = Drawn.poisson(0.8, exponential(), 4_000, seed=9)
    _, times = drawn.run(1, policy)
    found = workload_found(drawn.gaps, drawn.services)
    begins = np.flatnonzero(found == 0.0)
    ends = np.maximum.reduceat(drawn.arrivals + times, begins)
    expected = drawn.arrivals[begins] + np.add.reduceat(drawn.services, begins)
    np.testing.assert_allclose(ends, expected, atol=1e-7)


def test_shortest_remaining_is_best_and_first_come_worst_of_three() -> None:
    drawn = Drawn.poisson(0.9, lognormal(), 10_000, seed=10)
    means = [drawn.run(1, p)[1].mean() for p in ("srtf", "las:quantum_gpu_s=0.5", "fifo")]
    assert means == sorted(means)
