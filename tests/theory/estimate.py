"""Means of simulated queues, with intervals, helped by what is known about the same jobs.

A queue at 90 % utilisation forgets slowly: a plain average of waiting times would need tens of
millions of jobs to be good to 1 %. But the arrivals and services that were drawn deviate from
their means by amounts we can see, and so do other functions of them whose means are known. Those
are control variates (Lavenberg and Welch, 1981): per batch of consecutive jobs, the average time is
regressed on the controls, taken as deviations from their means; the intercept is the estimate and
its standard error gives the interval. Controls come from the drawn times alone, never from the
simulation, but for the martingales, which multiply a simulated wait by the deviation of a *later*
independent draw and so have mean zero whatever the policy does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator import simulate
from tests.theory.formulas import Service, pollaczek_khinchine
from traces import Workload

Array = npt.NDArray[np.float64]
BATCHES = 40


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Jobs of one run: ``gaps`` before each arrival, service times, arrival instants."""

    gaps: Array
    services: Array
    arrivals: Array

    @classmethod
    def poisson(cls, rate: float, service: Service, count: int, seed: int) -> Drawn:
        """Draw ``count`` Poisson arrivals at ``rate`` and their service times."""
        gap_rng, service_rng = (np.random.default_rng([seed, i]) for i in (0, 1))
        gaps = gap_rng.exponential(1 / rate, count)
        return cls(gaps=gaps, services=service.draw(service_rng, count), arrivals=np.cumsum(gaps))

    def run(self, servers: int, policy: str) -> tuple[Array, Array]:
        """Simulate on ``servers`` GPUs; waiting times and times in system, by arrival."""
        table = pd.DataFrame(
            {"submit_s": self.arrivals, "duration_s": self.services, "num_gpus": 1}
        )
        jobs = simulate(Workload(table), f"1x{servers}", policy=policy).jobs
        return jobs["queueing_s"].to_numpy(), jobs["jct_s"].to_numpy()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and the half-width of its 95 % interval, and what they should be."""

    what: str
    mean: float
    half: float
    theory: float
    jobs: int
    plain: float

    @property
    def error(self) -> float:
        """Relative to theory."""
        return self.mean / self.theory - 1

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.mean:.5f} +- {self.half:.5f} (95 %), theory {self.theory:.5f},"
            f" {100 * self.error:+.3f} %, {self.jobs} jobs (plain mean {self.plain:.4f})"
        )

    def check(self) -> None:
        """Within 1 % of theory, known about that well, and consistent with it."""
        assert abs(self.error) <= 0.01, str(self)
        assert self.half <= 0.02 * self.theory, f"interval too wide to tell: {self}"
        # Of dozens of 95 % intervals some must miss; none should by as much again. The quantum and
        # the empty start may add their little.
        assert abs(self.mean - self.theory) <= 2 * self.half + 2e-3 * self.theory, str(self)


def workload_found(gaps: Array, services: Array) -> Array:
    """Work that each arrival finds at a single server (Lindley's recursion, in one pass)."""
    steps = np.concatenate(([0.0], services[:-1])) - gaps
    steps[0] = 0.0
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum.accumulate(walk))


def martingales(waits: Array, drawn: Drawn, rate: float) -> list[Array]:
    """Controls with mean zero: a wait times what it cannot know, the next gap and its service."""
    next_gap = np.append(drawn.gaps[1:], 1 / rate) - 1 / rate
    service = drawn.services - 1.0
    return [waits * next_gap, waits * service, next_gap, service]


def fast_server(drawn: Drawn, servers: int, load: float, service: Service) -> list[Array]:
    """Controls: the wait at one server as fast as all of them, less its mean; its martingales."""
    mean = 1 / servers
    found = workload_found(drawn.gaps, drawn.services * mean)
    known = pollaczek_khinchine(load, service.square * mean**2, mean)
    return [found - known, *martingales(found, drawn, servers * load)[:2]]


def moments(drawn: Drawn, rate: float, service: Service) -> list[Array]:
    """Controls from the draws themselves: gaps and services, and their squares."""
    return [
        drawn.gaps - 1 / rate,
        drawn.gaps**2 - 2 / rate**2,
        drawn.services - 1.0,
        drawn.services**2 - service.square,
    ]


def work_capped(drawn: Drawn, load: float, service: Service, caps: list[float]) -> list[Array]:
    """Controls: the work found if every service were cut at a cap, less its known mean."""
    found = []
    for cap in caps:
        mean = service.capped(cap)
        work = workload_found(drawn.gaps, np.minimum(drawn.services, cap))
        known = pollaczek_khinchine(load * mean, service.square_capped(cap), mean)
        found.append(work - known)
    return found


def work_of_small(drawn: Drawn, load: float, service: Service, sizes: list[float]) -> list[Array]:
    """Controls: the work found if only services up to a size counted, less its known mean."""
    found = []
    for size in sizes:
        mean = service.below(size)
        small = np.where(drawn.services <= size, drawn.services, 0.0)
        known = pollaczek_khinchine(load * mean, service.square_below(size), mean)
        found.append(workload_found(drawn.gaps, small) - known)
    return found


def estimate(what: str, theory: float, times: Array, controls: list[Array]) -> Estimate:
    """Regress batch averages on the controls' batch averages."""
    from scipy import stats

    size = len(times) // BATCHES
    used = size * BATCHES

    def batched(values: Array) -> Array:
        return np.asarray(values[:used].reshape(BATCHES, size).mean(axis=1))

    columns = [batched(c) for c in controls]
    columns = [c for c in columns if c.std() > 0]
    design = np.column_stack([np.ones(BATCHES), *columns])
    target = batched(times)
    # Columns scaled to one size, or nearly equal controls would lose the solver's digits.
    scale = np.linalg.norm(design, axis=0)
    solution, _, rank, _ = np.linalg.lstsq(design / scale, target, rcond=1e-10)
    residual = target - design / scale @ solution
    free = BATCHES - int(rank)
    spread = np.linalg.pinv((design / scale).T @ (design / scale), rcond=1e-12)
    error = np.sqrt(residual @ residual / free * spread[0, 0]) / scale[0]
    return Estimate(
        what=what,
        mean=float(solution[0] / scale[0]),
        half=float(stats.t.ppf(0.975, free) * error),
        theory=theory,
        jobs=used,
        plain=float(target.mean()),
    )
