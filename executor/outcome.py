"""What an executed run's log has beyond a simulated one's: training, utilisation, shares of time.

More tables (``traces.runlog.EXECUTED``): ``training``, a row for each job with its steps, loss and
digests; ``utilisation``, how busy each lane was; ``serving``, what a service answered. And a field
``executor`` of the record: the lanes, what their levels set, and where the held device time went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from executor import events as e
from executor.clock import WallClock
from executor.cluster import LocalCluster
from executor.devices import DeviceLane
from executor.online import Online
from executor.pace import PREDICTED
from executor.past import Past
from executor.pool import Place
from executor.recipes import Recipes
from executor.utilisation import Reading
from policies.rates import rates_of, step_time_of
from traces import ClusterSpec, Profile


def training_rows(
    recipes: Recipes,
    cluster: LocalCluster,
    reference: Mapping[str, str],
    begun: Mapping[str, int],
    past: Past,
) -> list[dict[str, Any]]:
    """A row of the training table for each job of the run, in rank order."""
    changes = _count(cluster, e.Rescaled)
    recoveries = _count(cluster, e.Recovered)
    rows = []
    for job in recipes.jobs:
        job_id = job.job_id
        done = cluster.finished.get(job_id) or past.finished.get(job_id)
        wanted = reference.get(job_id)
        rows.append(
            {
                "job_id": job.job_id,
                "steps": done.step if done else cluster.step_of(job.job_id),
                "loss": done.loss if done else math.nan,
                "level": recipes.agreement(job.rank).level.value,
                "digest": done.digest if done else None,
                "reference_digest": wanted,
                "same_bits": None if done is None or wanted is None else done.digest == wanted,
                "rescales": changes.get(job_id, 0) + past.told["rescaled", job_id],
                "recoveries": recoveries.get(job_id, 0) + past.told["recovered", job_id],
                "resumed": begun.get(job.job_id, 0) > 0,
            }
        )
    return rows


def utilisation_rows(spec: ClusterSpec, readings: list[Reading]) -> list[dict[str, Any]]:
    """A row of the utilisation table for each reading."""
    return [
        {
            "time_s": one.time_s,
            "node": spec.nodes[one.place[0]].name,
            "gpu": one.place[1],
            "busy": one.busy,
            "memory_mib": one.memory_mib,
        }
        for one in readings
    ]


def serving_rows(service: Online) -> list[dict[str, Any]]:
    """A row of the serving table for each second; what is no number is null there."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in service.tally.rows
    ]


def device_seconds(cluster: LocalCluster, spec: ClusterSpec, profile: Profile) -> dict[str, float]:
    """Where the time went for which jobs held lanes, in lane-seconds.

    ``start`` and ``rescale``: from the decision to the first step there, ``closing``: from the last
    step to the release, both measured. The rest of a stay is training: what the profile predicts
    for its steps by part, with ``waiting`` for devices that have less to compute than the slowest,
    and ``unexplained`` for what is left (negative where the profile predicts more than was
    measured).
    """
    total: dict[str, float] = {}

    def add(name: str, seconds: float) -> None:
        total[name] = total.get(name, 0.0) + seconds

    seen: set[int] = set()
    for stay in cluster.closed:
        elastic = stay.job.elastic
        assert elastic is not None
        lanes, layout = len(stay.worker_map.gpus), stay.worker_map.layout(spec)
        add("rescale" if stay.job.rank in seen else "start", (stay.begin_s - stay.since_s) * lanes)
        seen.add(stay.job.rank)
        rates = rates_of(profile, elastic)
        step = step_time_of(rates, layout)
        steps = stay.at - stay.begun_at
        own = sum(n * rates.microbatch_s[t] for t, n in layout)
        waited = step.compute_s * lanes - own
        shared = (step.switch_s, step.reduce_s, step.update_s)
        predicted = (own, waited, *(seconds * lanes for seconds in shared))
        for name, seconds in zip(PREDICTED, predicted, strict=True):
            add(name, steps * seconds)
        last_s = max(stay.last_s, stay.begin_s)
        add("closing", (stay.end_s - last_s) * lanes)
        held = (last_s - stay.begin_s) * lanes
        add("unexplained", held - steps * step.total_s * lanes)
    return {name: round(seconds, 6) for name, seconds in total.items()}


def said_of(
    cluster: LocalCluster,
    clock: WallClock,
    places: Mapping[Place, DeviceLane],
    device_s: Mapping[str, float],
    wall_s: float,
) -> dict[str, Any]:
    """The record's field ``executor``. ``driver_s_per_event``: what the driver does between waits.

    Policy, plan, log and commands to the agent together; an event is one that its clock processed.
    """
    rescaled = [x for x in cluster.told if isinstance(x, e.Rescaled)]
    recovered = [x for x in cluster.told if isinstance(x, e.Recovered)]
    started = [x for x in cluster.told if isinstance(x, e.Running)]
    return {
        "lanes": {f"{n}/{g}": lane.to_json() for (n, g), lane in places.items()},
        "device_s": dict(device_s),
        "start_s": [round(x.seconds, 4) for x in started],
        "rescale_s": [round(x.seconds, 4) for x in rescaled],
        "rescale_pause_s": [round(x.pause_s, 4) for x in rescaled],
        "recovery_s": [round(x.seconds, 4) for x in recovered],
        "lanes_lost": sum(isinstance(x, e.LaneLost) for x in cluster.told),
        "driver_s_per_event": round((wall_s - cluster.waited_s) / max(1, cluster.waits), 6),
        "largest_lag_s": round(clock.largest_lag_s, 4),
    }


def _count(cluster: LocalCluster, kind: type[e.Event]) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in cluster.told:
        if isinstance(event, kind):
            found[event.job_id] = found.get(event.job_id, 0) + 1
    return found
