"""Mean times of queues in closed form, and the distributions of service they are asked for.

Sources: Erlang (1917) for M/M/c; Pollaczek (1930) and Khinchine (1932) for M/G/1 in order of
arrival; Schrage and Miller (1966) for M/G/1 under shortest remaining processing time; Schrage
(1967) and Kleinrock, Queueing Systems II, section 4.6, for foreground-background. Integrals over
a service distribution are done numerically (SciPy's adaptive quadrature), to about 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, log, sqrt

import numpy as np
import numpy.typing as npt

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A distribution of service times with mean 1.

    ``tail(x)``: P(S > x). ``below(x)``: E[S; S <= x]. ``square_below(x)``: E[S^2; S <= x].
    ``square``: E[S^2]. ``draw(rng, n)``: n independent samples.
    """

    name: str
    square: float
    tail: Callable[[float], float]
    below: Callable[[float], float]
    square_below: Callable[[float], float]
    draw: Draw

    def capped(self, x: float) -> float:
        """E[min(S, x)]."""
        return self.below(x) + x * self.tail(x)

    def square_capped(self, x: float) -> float:
        """E[min(S, x)^2]."""
        return self.square_below(x) + x * x * self.tail(x)


def _exponential_below(x: float, mean: float) -> float:
    return mean - (x + mean) * exp(-x / mean)


def _exponential_square_below(x: float, mean: float) -> float:
    return 2 * mean**2 - (x * x + 2 * mean * x + 2 * mean**2) * exp(-x / mean)


def exponential() -> Service:
    """Exponential service: squared coefficient of variation 1."""
    return Service(
        name="exponential",
        square=2.0,
        tail=lambda x: exp(-x),
        below=lambda x: _exponential_below(x, 1.0),
        square_below=lambda x: _exponential_square_below(x, 1.0),
        draw=lambda rng, n: rng.exponential(1.0, n),
    )


def deterministic() -> Service:
    """Every service takes 1."""
    return Service(
        name="deterministic",
        square=1.0,
        tail=lambda x: float(x < 1),
        below=lambda x: float(x >= 1),
        square_below=lambda x: float(x >= 1),
        draw=lambda rng, n: np.ones(n),
    )


def hyperexponential(variation: float = 4.0) -> Service:
    """Two exponential phases with balanced means, of the given squared coefficient of variation."""
    p = (1 + sqrt((variation - 1) / (variation + 1))) / 2
    phases = ((p, 1 / (2 * p)), (1 - p, 1 / (2 * (1 - p))))  # probability, mean

    def draw(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        means = np.where(rng.random(n) < p, phases[0][1], phases[1][1])
        return rng.exponential(1.0, n) * means

    return Service(
        name=f"hyperexponential, C2={variation:g}",
        square=1 + variation,
        tail=lambda x: sum(q * exp(-x / m) for q, m in phases),
        below=lambda x: sum(q * _exponential_below(x, m) for q, m in phases),
        square_below=lambda x: sum(q * _exponential_square_below(x, m) for q, m in phases),
        draw=draw,
    )


def lognormal(variation: float = 4.0) -> Service:
    """Lognormal service of the given squared coefficient of variation."""
    sigma = sqrt(log(1 + variation))
    mu = -sigma * sigma / 2

    def normal(z: float) -> float:
        return (1 + erf(z / sqrt(2))) / 2

    def moment_below(x: float, k: int) -> float:
        if x <= 0:
            return 0.0
        whole = exp(k * mu + (k * sigma) ** 2 / 2)
        return whole * normal((log(x) - mu) / sigma - k * sigma)

    return Service(
        name=f"lognormal, C2={variation:g}",
        square=1 + variation,
        tail=lambda x: 1 - moment_below(x, 0),
        below=lambda x: moment_below(x, 1),
        square_below=lambda x: moment_below(x, 2),
        draw=lambda rng, n: rng.lognormal(mu, sigma, n),
    )


def erlang_c(servers: int, load: float) -> float:
    """Mean waiting time in M/M/c with mean service 1 and utilisation ``load`` (Erlang C)."""
    offered = servers * load
    blocking = 1.0  # Erlang B, by its recursion in the number of servers
    for k in range(1, servers + 1):
        blocking = offered * blocking / (k + offered * blocking)
    waits = blocking / (1 - load * (1 - blocking))
    return waits / (servers * (1 - load))


def pollaczek_khinchine(load: float, square: float, mean: float = 1.0) -> float:
    """Mean waiting time in M/G/1, in order of arrival: lambda E[S^2] / (2 (1 - rho))."""
    return load / mean * square / (2 * (1 - load))


def schrage_miller(load: float, service: Service) -> float:
    """Mean time in system in M/G/1 under shortest remaining processing time."""
    rate = load

    def left(x: float) -> float:
        return 1 - rate * service.below(x)

    def of_size(x: float, inner: float) -> float:
        waits = rate * service.square_capped(x) / (2 * left(x) ** 2)
        return waits + inner

    return _over_sizes(service, of_size, lambda t: 1 / left(t))


def foreground_background(load: float, service: Service) -> float:
    """Mean time in system in M/G/1 under foreground-background processor sharing."""
    rate = load

    def of_size(x: float, _: float) -> float:
        left = 1 - rate * service.capped(x)
        return (rate * service.square_capped(x) / (2 * left) + x) / left

    return _over_sizes(service, of_size, lambda _: 0.0)


def _over_sizes(
    service: Service,
    of_size: Callable[[float, float], float],
    inner: Callable[[float], float],
) -> float:
    """E[g(S, integral of ``inner`` from 0 to S)], on a fine grid that is even in log size."""
    grid = np.concatenate(([0.0], np.geomspace(1e-7, 1e4, 50_001)))
    slope = np.array([inner(x) for x in grid])
    area = np.concatenate(([0.0], np.cumsum(np.diff(grid) * (slope[1:] + slope[:-1]) / 2)))
    value = np.array([of_size(x, a) for x, a in zip(grid, area, strict=True)])
    mass = -np.diff([service.tail(x) for x in grid])
    return float(np.sum(mass * (value[1:] + value[:-1]) / 2))
