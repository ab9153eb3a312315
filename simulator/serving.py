"""Serving demand in the simulated world: an online service whose need for GPUs changes with time.

The demand is a step function (``traces.serving.ServingDemand``, from a trace of instances, or any
``Steps`` in thousandths of a GPU), rounded up to whole GPUs of one type. It comes before arrivals
of the same instant and after ends of jobs. How the driver serves it is in ``policies.lending``.

Left out: load within an instance, and services that share a GPU with training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from policies import lending
from policies.clock import DEMAND, Moment
from simulator.cluster import SimulatedCluster
from traces import ClusterSpec, UsageError
from traces.steps import Steps

MILLI = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """One service. ``demand``: thousandths of a GPU of ``gpu_type`` over time.

    ``give_way_s``: the time within which a job leaves a device. ``linger_s``: for how long a device
    that is no longer needed is kept from training. Raises :class:`UsageError` for numbers that
    cannot be.
    """

    demand: Steps
    gpu_type: str
    give_way_s: float = 5.0
    linger_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("give_way_s", "linger_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"service: {name} is {getattr(self, name)}; expected seconds")
        if len(self.demand) and int(self.demand.values.min()) < 0:
            raise UsageError("service: its demand is negative somewhere")

    def describe(self) -> dict[str, Any]:
        """What the run's record says of it."""
        return {
            "gpu_type": self.gpu_type,
            "give_way_s": self.give_way_s,
            "linger_s": self.linger_s,
            "changes": len(self.demand),
            "peak_gpus": -(-self.demand.peak // MILLI),
        }


class ServingLoad:
    """Tells the driver of a service's demand, change by change.

    Create it after the driver and before the run. Raises :class:`UsageError` if the demand is
    sometimes larger than the cluster's GPUs of that type, or the cluster has none.
    """

    def __init__(self, cluster: SimulatedCluster, service: Service) -> None:
        self._cluster = cluster
        self._service = service
        _check(service, cluster.spec)
        gpus = -(-service.demand.values // MILLI)
        changes = np.diff(gpus, prepend=0) != 0
        self._changes = iter(
            zip(service.demand.times_s[changes].tolist(), gpus[changes].tolist(), strict=True)
        )
        # While its demand may still fall, who waits for devices does not wait for ever.
        cluster.returning += 1
        self._next()

    def _next(self) -> None:
        change = next(self._changes, None)
        if change is None:
            self._cluster.returning -= 1
            return
        time_s, gpus = change
        clock = self._cluster.clock
        clock.at(max(time_s, clock.now), DEMAND, self._happen, gpus)

    def _happen(self, moment: Moment) -> None:
        service = self._service
        self._cluster.listener.serving_demand(
            lending.ServingDemand(
                gpu_type=service.gpu_type,
                gpus=moment.subject,
                give_way_s=service.give_way_s,
                linger_s=service.linger_s,
            )
        )
        self._next()


def _check(service: Service, spec: ClusterSpec) -> None:
    capacity = spec.gpus_by_type()
    if service.gpu_type not in capacity:
        raise UsageError(
            f"service: it needs GPUs of type {service.gpu_type}; the cluster has"
            f" {', '.join(capacity)}"
        )
    peak = -(-service.demand.peak // MILLI)
    if peak > capacity[service.gpu_type]:
        raise UsageError(
            f"service: it needs {peak} {service.gpu_type} at {service.demand.peak_s:.12g} s; the"
            f" cluster has {capacity[service.gpu_type]}"
        )
