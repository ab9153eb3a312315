"""An online service whose need for GPUs changes with time, and how either world tells of it.

The demand is a step function (``traces.serving.ServingDemand``, from a trace of instances, or any
``Steps`` in thousandths of a GPU, rounded up to whole GPUs), or a :class:`Diurnal` curve, of one
GPU type. It comes before arrivals of the same instant and after ends of jobs. How the driver serves
it is in ``policies.lending``.

Left out: load within an instance, and services that share a GPU with training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from policies import lending
from policies.clock import DEMAND, Clock, Moment
from policies.contract import Listener
from policies.registry import parse_params
from traces import ClusterSpec, UsageError, load
from traces.serving import ServingDemand
from traces.steps import Steps

MILLI = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """Between ``low`` and ``high`` GPUs over every ``period_s``, highest at ``peak_s`` of it.

    ``low + (high - low) (1 + cos(2 pi (t - peak_s) / period_s)) / 2`` at multiples of ``step_s``,
    rounded; constant in between, without end. The usual shape of user traffic, not anyone's.
    """

    low: int
    high: int
    period_s: float = 86_400.0
    peak_s: float = 43_200.0
    step_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UsageError(
                f"diurnal: low is {self.low} and high is {self.high}; expected 0 <= low <= high"
            )
        for name in ("period_s", "step_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"diurnal: {name} is {getattr(self, name)}; expected above 0")

    def at(self, time_s: float) -> int:
        """GPUs at an instant."""
        turn = 2.0 * math.pi * (time_s - self.peak_s) / self.period_s
        return round(self.low + (self.high - self.low) * (1.0 + math.cos(turn)) / 2.0)

    def changes(self, start_s: float) -> Iterator[tuple[float, int]]:
        """Yield (time, GPUs from then on), the first at ``start_s``."""
        step = math.floor(start_s / self.step_s)
        now = self.at(step * self.step_s)
        yield start_s, now
        while self.low != self.high:
            step += 1
            gpus = self.at(step * self.step_s)
            if gpus != now:
                now = gpus
                yield step * self.step_s, gpus


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """One service. ``demand``: of GPUs of ``gpu_type`` over time (steps: thousandths of one).

    ``give_way_s``: the time within which a job leaves a device. ``linger_s``: for how long a device
    that is no longer needed is kept from training. ``text``: what the demand was made from, if it
    was. Raises :class:`UsageError` for numbers that cannot be.
    """

    demand: Steps | Diurnal
    gpu_type: str
    give_way_s: float = 5.0
    linger_s: float = 300.0
    text: str | None = None

    def __post_init__(self) -> None:
        for name in ("give_way_s", "linger_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"service: {name} is {getattr(self, name)}; expected seconds")
        demand = self.demand
        if isinstance(demand, Steps) and len(demand) and int(demand.values.min()) < 0:
            raise UsageError("service: its demand is negative somewhere")

    @property
    def peak(self) -> tuple[int, float]:
        """The most GPUs it needs, and when first."""
        demand = self.demand
        if isinstance(demand, Diurnal):
            return demand.high, demand.peak_s
        return -(-demand.peak // MILLI), demand.peak_s or 0.0

    def changes(self, start_s: float) -> Iterator[tuple[float, int]]:
        """Yield (time, GPUs from then on) in order of time, the first that holds at ``start_s``."""
        demand = self.demand
        if isinstance(demand, Diurnal):
            yield from demand.changes(start_s)
            return
        gpus = -(-demand.values // MILLI)
        changes = np.diff(gpus, prepend=0) != 0
        times, counts = demand.times_s[changes], gpus[changes]
        first = max(int(np.searchsorted(times, start_s, side="right")) - 1, 0)
        yield from zip(times[first:].tolist(), counts[first:].tolist(), strict=True)

    def describe(self) -> dict[str, Any]:
        """What the run's record says of it."""
        return {
            "gpu_type": self.gpu_type,
            "give_way_s": self.give_way_s,
            "linger_s": self.linger_s,
            "demand": self.text,
            "diurnal": asdict(self.demand) if isinstance(self.demand, Diurnal) else None,
            "peak_gpus": self.peak[0],
        }


class World(Protocol):
    """What a service needs of a backend: who listens, and how much will come back by itself."""

    returning: int

    @property
    def listener(self) -> Listener:
        """The driver."""
        ...


class ServingLoad:
    """Tells the driver of a service's demand, change by change. ``gpus``: what it is at present.

    Create it after the driver and before the run. Raises :class:`UsageError` if the demand is
    sometimes larger than the cluster's GPUs of that type, or the cluster has none.
    """

    def __init__(self, world: World, service: Service, *, clock: Clock, spec: ClusterSpec) -> None:
        check_service(service, spec)
        self.gpus = 0
        self._world, self._clock, self._service = world, clock, service
        self._changes = service.changes(clock.now)
        # While its demand may still fall, who waits for devices does not wait for ever.
        world.returning += 1
        self._next()

    def _next(self) -> None:
        change = next(self._changes, None)
        if change is None:
            self._world.returning -= 1
            return
        time_s, gpus = change
        self._clock.at(max(time_s, self._clock.now), DEMAND, self._happen, gpus)

    def _happen(self, moment: Moment) -> None:
        service = self._service
        self.gpus = moment.subject
        self._world.listener.serving_demand(
            lending.ServingDemand(
                gpu_type=service.gpu_type,
                gpus=moment.subject,
                give_way_s=service.give_way_s,
                linger_s=service.linger_s,
            )
        )
        self._next()


def check_service(service: Service, spec: ClusterSpec) -> None:
    """Raise :class:`UsageError` for a demand that a cluster can never meet."""
    capacity = spec.gpus_by_type()
    if service.gpu_type not in capacity:
        raise UsageError(
            f"service: it needs GPUs of type {service.gpu_type}; the cluster has"
            f" {', '.join(capacity)}"
        )
    peak, peak_s = service.peak
    if peak > capacity[service.gpu_type]:
        raise UsageError(
            f"service: it needs {peak} {service.gpu_type} at {peak_s:.12g} s; the cluster has"
            f" {capacity[service.gpu_type]}; expected no more: a larger cluster, another type, or a"
            " smaller scale"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """What may stand behind the name of a file: ``scale`` the demand, begin at ``from_s``."""

    scale: float = 1.0
    from_s: float = 0.0


def demand_of(text: str) -> Steps | Diurnal:
    """Make a demand of ``diurnal:low=GPUS,high=GPUS[,...]`` or ``FILE[:scale=X,from_s=S]``.

    Raises :class:`UsageError` for parameters that are not there or cannot be, ``DataError`` for
    files without service instances.
    """
    name, _, given = text.partition(":")
    if name == "diurnal" and not Path(text).exists():
        params = parse_params(Diurnal, given, "diurnal")
        for needed in ("low", "high"):
            if needed not in params:
                raise UsageError(f"service {text}: {needed} is missing; expected GPUs")
        return Diurnal(**params)
    name, colon, given = text.rpartition(":")
    if Path(text).exists() or not colon or "=" not in given:
        return recorded(text)
    cut = _Cut(**parse_params(_Cut, given, "service"))
    return recorded(name, scale=cut.scale, from_s=cut.from_s)


def recorded(path: Path | str, *, scale: float = 1.0, from_s: float = 0.0) -> Steps:
    """Read a trace with service instances as demand, from its second ``from_s`` on.

    ``scale`` multiplies it. Raises as :func:`demand_of`.
    """
    if not 0.0 < scale < math.inf or not 0.0 <= from_s < math.inf:
        raise UsageError(
            f"service: scale is {scale} and from_s is {from_s}; expected above 0, and 0 or more"
        )
    steps = ServingDemand.of(load(str(path))).total
    values = np.rint(steps.values * scale).astype(np.int64)
    return Steps(times_s=steps.times_s - from_s, values=values)
