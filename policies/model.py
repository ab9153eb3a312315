"""How fast a job goes and what its transitions cost: one model, used twice.

The driver holds one instance, from which the view's estimates come; the simulated world holds
another, which is its truth. They are equal unless a study wants a policy to be wrong.

Work is counted in seconds on the GPUs a job asked for. Its rate on an allocation is the speed of
the GPU type, times a factor where the gang spans nodes or racks (1: communication costs nothing).
An elastic job's rate depends on its worker map. With a profile it is the job's reference step time
(one logical worker on each of ``num_workers`` GPUs of its preferred type, on unlimited links) over
that of the map (``policies.rates``), and speeds and factors do not apply to it. Without one, the
device with most work to do, logical workers over speed, sets the pace. Costs are seconds during
which devices are held without progress.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from policies.rates import (
    UNLIMITED,
    Comm,
    Distortion,
    Network,
    rates_of,
    reference_s,
    step_time_of,
)
from policies.state import JobState
from traces import Allocation, ClusterSpec, DataError, Profile, UsageError, WorkerMap
from traces.profile import JobRates


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What transitions cost, charged every time; seconds, but for ``drain_steps``.

    ``start_s``: a first start. ``restore_s``: a start after a preemption or failure (loading a
    checkpoint comes on top of ``start_s``). ``save_s``: after a preemption the devices are held
    that long to save the state (where it is saved). ``migrate_s``: a move to other devices.
    ``rescale_s``: an elastic job's change of devices, whether their number changes or not.
    ``drain_steps``: global steps for which an elastic job with a profile goes on where it is after
    it was told to leave or to change its devices: half a step, on average, to the next boundary.
    """

    start_s: float = 0.0
    restore_s: float = 0.0
    save_s: float = 0.0
    migrate_s: float = 0.0
    rescale_s: float = 0.0
    drain_steps: float = 0.0

    def __post_init__(self) -> None:
        for cost in fields(self):
            value = getattr(self, cost.name)
            if not 0.0 <= value < float("inf"):
                unit = "steps" if cost.name == "drain_steps" else "seconds"
                raise UsageError(f"cost {cost.name} is {value}; expected {unit}, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Costs and rates.

    ``speeds``: GPU type to speed (types not named have 1). ``across_nodes``, ``across_racks``:
    factor on the rate of a gang that spans nodes, and one that spans racks (then both apply).
    ``profile``: of elastic jobs; ``distortion``: how the truth differs from it, job by job.
    """

    costs: Costs = field(default_factory=Costs)
    speeds: Mapping[str, float] = field(default_factory=dict)
    across_nodes: float = 1.0
    across_racks: float = 1.0
    profile: Profile | None = None
    distortion: Distortion = field(default_factory=Distortion)

    def __post_init__(self) -> None:
        for name, value in (
            *((f"speed of {t}", v) for t, v in self.speeds.items()),
            ("factor across_nodes", self.across_nodes),
            ("factor across_racks", self.across_racks),
        ):
            if not 0.0 < value < float("inf"):
                raise UsageError(f"{name} is {value}; expected a positive number")

    @property
    def uniform(self) -> bool:
        """Whether every allocation has rate 1."""
        return not self.speeds and self.across_nodes == self.across_racks == 1.0

    def rate(self, allocation: Allocation, spec: ClusterSpec) -> float:
        """Progress per second of a rigid job on an allocation."""
        nodes = spec.nodes
        rate = min(
            (self.speeds.get(nodes[n].gpu_type, 1.0) for n, _ in allocation.shares), default=1.0
        )
        return rate * self._across(allocation, spec)

    def elastic_rate(
        self, job: JobState, allocation: Allocation, spec: ClusterSpec, at_s: float = 0.0
    ) -> float:
        """Progress per second of an elastic job on an allocation, with its worker map.

        ``at_s``: the moment, for a distortion that drifts; a stay keeps the rate it began with.
        """
        workers = job.worker_map
        assert workers is not None, f"{job} has no worker map"
        if self.profile is not None:
            assert job.elastic is not None
            own = rates_of(self.profile, job.elastic)
            rates = self.distortion.rates(own, job.job_id, at_s)
            comm = links_of(workers, spec, own)
            step_s = step_time_of(rates, workers.layout(spec), comm).total_s
            return reference_s(self.profile, job.elastic) / step_s
        nodes, speeds = spec.nodes, self.speeds
        rate = min(
            speeds.get(nodes[node].gpu_type, 1.0) / count
            for (node, _), count in zip(workers.gpus, workers.counts, strict=True)
        )
        return rate * self._across(allocation, spec)

    def _across(self, allocation: Allocation, spec: ClusterSpec) -> float:
        shares = allocation.shares
        if len(shares) == 1:
            return 1.0
        if len({spec.nodes[n].rack for n, _ in shares}) > 1:
            return self.across_nodes * self.across_racks
        return self.across_nodes

    def move_cost_s(self, job: JobState) -> float:
        """Seconds between a running job's change of devices and its progress there."""
        return self.costs.migrate_s if job.elastic is None else self.costs.rescale_s

    def start_cost_s(self, job: JobState) -> float:
        """Seconds between getting devices and making progress."""
        if job.first_start_s is None:
            return self.costs.start_s
        return self.costs.start_s + self.costs.restore_s

    def describe(self) -> dict[str, Any]:
        """What a run's record says of it; :func:`model_of` makes it again."""
        from traces.profile_file import written  # noqa: PLC0415  (few runs have a profile)

        return {
            "costs": asdict(self.costs),
            "speeds": dict(self.speeds),
            "across_nodes": self.across_nodes,
            "across_racks": self.across_racks,
            "profile": None if self.profile is None else json.loads(written(self.profile)),
            "profile_sha256": None if self.profile is None else self.profile.sha256(),
            "distortion": asdict(self.distortion),
        }


class _Same:
    """An inventory compared by identity: its content is long."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.spec is self.spec

    def __hash__(self) -> int:
        return id(self.spec)


@lru_cache(maxsize=16)
def _network(same: _Same) -> Network:
    return Network(same.spec)


def links_of(workers: WorkerMap, spec: ClusterSpec, rates: JobRates) -> Comm:
    """What the links allow a job's devices; unlimited where it sends nothing over them."""
    if not rates.gradient_bytes or len(workers.gpus) == 1:
        return UNLIMITED
    return _network(_Same(spec)).comm(workers.allocation().shares)


def model_of(recorded: Mapping[str, Any]) -> Model:
    """Make a model again from a run's record.

    Raises :class:`DataError` for fields that no model has.
    """
    from traces.profile_file import parse  # noqa: PLC0415  (few runs have a profile)

    try:
        profile = recorded.get("profile")
        distortion = dict(recorded.get("distortion") or {})
        if "of_type" in distortion:
            distortion["of_type"] = tuple(map(tuple, distortion["of_type"]))
        return Model(
            costs=Costs(**recorded.get("costs", {})),
            speeds=recorded.get("speeds", {}),
            across_nodes=recorded.get("across_nodes", 1.0),
            across_racks=recorded.get("across_racks", 1.0),
            profile=None if profile is None else parse(profile, Path("run.json")),
            distortion=Distortion(**distortion),
        )
    except (TypeError, AttributeError) as error:
        raise DataError(f"the record of the model is damaged: {error}", column="model") from error
