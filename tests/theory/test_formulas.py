"""The formulas where they are known in simpler form, and the distributions against their draws."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import numpy as np
import pytest

from tests.theory.estimate import Drawn, estimate, moments
from tests.theory.formulas import (
    Service,
    deterministic,
    erlang_c,
    exponential,
    foreground_background,
    hyperexponential,
    lognormal,
    pollaczek_khinchine,
    schrage_miller,
)

SERVICES = [exponential, deterministic, hyperexponential, lognormal]


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_known_special_cases(load: float) -> None:
    assert erlang_c(1, load) == pytest.approx(load / (1 - load))
    assert pollaczek_khinchine(load, 2.0) == pytest.approx(load / (1 - load))
    # Two servers: P(wait) = 2 rho^2 / (1 + rho).
    waits = 2 * load**2 / (1 + load)
    assert erlang_c(2, load) == pytest.approx(waits / (2 * (1 - load)))


def test_foreground_background_of_exponential_service_is_that_of_any_blind_order() -> None:
    assert foreground_background(0.9, exponential()) == pytest.approx(10.0, rel=1e-5)


def test_shortest_remaining_of_exponential_service_by_adaptive_quadrature() -> None:
    from scipy.integrate import quad

    load = 0.9

    def left(x: float) -> float:
        return 1 - load * (1 - (1 + x) * exp(-x))

    def of_size(x: float) -> float:
        squares = 2 - (x * x + 2 * x + 2) * exp(-x) + x * x * exp(-x)
        return float(load * squares / (2 * left(x) ** 2) + quad(lambda t: 1 / left(t), 0, x)[0])

    mean = quad(lambda x: of_size(x) * exp(-x), 0, 60, limit=200)[0]
    assert schrage_miller(load, exponential()) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("make", SERVICES)
def test_partial_moments_against_draws(make: Callable[[], Service]) -> None:
    service = make()
    drawn = service.draw(np.random.default_rng(1), 500_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.01)
    assert (drawn**2).mean() == pytest.approx(service.square, rel=0.05)
    for x in (0.3, 1.5, 4.0):
        below = drawn[drawn <= x]
        assert service.tail(x) == pytest.approx((drawn > x).mean(), abs=0.003)
        assert service.below(x) == pytest.approx(below.sum() / len(drawn), abs=0.005)
        assert service.square_below(x) == pytest.approx((below**2).sum() / len(drawn), abs=0.02)
        assert service.capped(x) == pytest.approx(np.minimum(drawn, x).mean(), abs=0.005)


def test_intervals_hold_what_they_should() -> None:
    """Of 100 intervals for a mean that is known, about 95 contain it, with controls or without."""
    service = exponential()
    held = 0
    for seed in range(100):
        drawn = Drawn.poisson(0.5, service, 4_000, seed)
        times = drawn.services + drawn.gaps**2
        found = estimate("a sum", 1.0 + 8.0, times, moments(drawn, 0.5, service)[2:])
        held += abs(found.mean - found.theory) <= found.half
    assert 88 <= held <= 99
