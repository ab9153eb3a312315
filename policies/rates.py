"""The rate model: seconds of one global step of a job on the devices that hold its workers.

EasyScale's (SC'23, section 3): a device runs the micro-batches of its logical workers one after
another, so the slowest device decides; then the gradients are reduced over all devices and the
parameters updated once::

    step = max over devices (n x micro-batch + (n - 1) x switch) + reduction + update

The reduction runs over the tree of the allocation in the cluster's topology graph: what a ring or
tree of messages sends over its narrowest link decides (:class:`Network`, read from
``ClusterSpec.graph()``). One model, used twice: policies call it with their estimate of the
profile, the simulated world with the truth. Truth may be another object: :class:`Distortion`
(noise by job, bias by model, drift in time) makes one from the other, as a pure function of seed,
job and time.

Left out: overlap of reduction and backward pass, and traffic of other jobs on the links.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from policies.placement.tree import Tree
from traces import ClusterSpec, Profile, UsageError
from traces.job import Elastic
from traces.profile import JobRates, ReduceCost

Layout = tuple[tuple[str, int], ...]
"""(GPU type, logical workers) of each device that holds any."""


class Comm(NamedTuple):
    """What the links between a job's devices allow: narrowest rate, and latency of one message."""

    bytes_per_s: float = math.inf
    latency_s: float = 0.0


UNLIMITED = Comm()


class StepTime(NamedTuple):
    """Seconds of one global step, by what they are spent on; the slowest device's first two."""

    compute_s: float
    switch_s: float
    reduce_s: float
    update_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.switch_s + self.reduce_s + self.update_s


def step_time(
    profile: Profile, elastic: Elastic, layout: Sequence[tuple[str, int]], comm: Comm = UNLIMITED
) -> StepTime:
    """Return the step time of an elastic job on a layout; equal questions are answered once.

    Raises :class:`UsageError` for a job without model or batch size, and ``DataError`` for a model
    or GPU type that the profile does not have.
    """
    return step_time_of(rates_of(profile, elastic), tuple(layout), comm)


def rates_of(profile: Profile, elastic: Elastic) -> JobRates:
    """Return the profile's row of a job; raises :class:`UsageError` if the job names none."""
    if elastic.model is None or elastic.batch_size is None:
        raise UsageError(
            "an elastic job has no model or no batch size, so no profile can say how fast it is;"
            " give the columns model and batch_size"
        )
    return profile.rates(elastic.model, elastic.batch_size, elastic.num_workers)


def reference_s(profile: Profile, elastic: Elastic) -> float:
    """Step time at rate 1: every logical worker alone on a GPU of the preferred type.

    Without a preferred type: of the fastest type of the profile.
    """
    rates = rates_of(profile, elastic)
    gpu_type = elastic.preferred_type or min(rates.microbatch_s, key=rates.seconds)
    return step_time_of(rates, ((gpu_type, 1),) * elastic.num_workers, UNLIMITED).total_s


@lru_cache(maxsize=65536)
def step_time_of(rates: JobRates, layout: Layout, comm: Comm = UNLIMITED) -> StepTime:
    """Return the step time at given rates."""
    if not layout:
        raise UsageError("rate: no device holds a logical worker; a job runs on at least one")
    slowest = (0.0, 0.0, 0.0)
    update_s = 0.0
    for gpu_type, workers in dict.fromkeys(layout):
        micro_s = rates.seconds(gpu_type)
        if workers < 1:
            raise UsageError(f"rate: a device holds {workers} logical workers; expected 1 or more")
        switches_s = (workers - 1) * rates.switch_s[gpu_type]
        slowest = max(slowest, (workers * micro_s + switches_s, workers * micro_s, switches_s))
        update_s = max(update_s, rates.update_s[gpu_type])
    reduce_s = reduce_time(rates.reduce, rates.gradient_bytes, len(layout), comm)
    return StepTime(slowest[1], slowest[2], reduce_s, update_s)


def device_s(rates: JobRates, gpu_type: str, workers: int) -> float:
    """Seconds a device needs for the micro-batches of its logical workers."""
    return workers * rates.seconds(gpu_type) + max(workers - 1, 0) * rates.switch_s[gpu_type]


def reduce_time(cost: ReduceCost, size_bytes: float, devices: int, comm: Comm) -> float:
    """Seconds of a full reduction over some devices; 0 on one, unless that was measured.

    The links are a floor under what was measured: ``2 (K - 1) / K`` of the bytes go over the
    narrowest link, in ``2 ceil(log2 K)`` rounds.
    """
    if devices == 1 and 1 not in cost.by_devices:
        return 0.0
    rounds = 2 * math.ceil(math.log2(devices))
    sent = 2.0 * (devices - 1) / devices * size_bytes
    linked_s = sent / comm.bytes_per_s + rounds * comm.latency_s
    if cost.by_devices:
        return max(_measured(cost, size_bytes, devices), linked_s)
    own_s = sent / min(cost.bytes_per_s, comm.bytes_per_s)
    return own_s + rounds * (cost.latency_s + comm.latency_s)


def _measured(cost: ReduceCost, size_bytes: float, devices: int) -> float:
    """Linear between measured numbers of devices, and beyond the last two; never below 0."""
    known = {k: t.latency_s + size_bytes / t.bytes_per_s for k, t in cost.by_devices.items()}
    if devices in known:
        return known[devices]
    counts = sorted(known)
    if len(counts) == 1:
        return known[counts[0]]
    above = next((i for i, k in enumerate(counts) if k > devices), len(counts) - 1)
    low, high = counts[max(above - 1, 0)], counts[max(above, 1)]
    slope = (known[high] - known[low]) / (high - low)
    return max(0.0, known[low] + slope * (devices - low))


class Network:
    """What the links of one inventory allow the devices of a job: read once from its graph."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.tree = Tree(spec)
        links = spec.links
        device, node, rack = links.device_latency_us, links.node_latency_us, links.rack_latency_us
        # There and back up the tree: inside a node, across nodes of a rack, across racks.
        self._latency_s = [2e-6 * device, 2e-6 * (device + node), 2e-6 * (device + node + rack)]

    def comm(self, shares: Sequence[tuple[int, int]]) -> Comm:
        """Return narrowest link and latency between devices, ((node index, GPU mask), ...)."""
        bytes_per_s = self.tree.ring_gb_per_s(shares) * 1e9
        if math.isinf(bytes_per_s):
            return UNLIMITED
        racks = {self.tree.rack_of[node] for node, _ in shares}
        height = 0 if len(shares) == 1 else 1 if len(racks) == 1 else 2
        return Comm(bytes_per_s, self._latency_s[height])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """How one profile differs from another: factors on micro-batch times, by GPU type.

    ``noise``: log-deviation of a factor per job and type. ``bias``: the same per model and type, so
    that all jobs of a model are misjudged alike. ``of_type``: known factors by type. ``drift``:
    greatest log-change over time, a sine of period ``drift_period_s`` with a phase per job and
    type, that moves every ``drift_step_s``. All drawn from ``seed`` by hashing, so they do not
    depend on the order of questions. The median of every factor is 1 (but for ``of_type``).
    """

    seed: int = 0
    noise: float = 0.0
    bias: float = 0.0
    drift: float = 0.0
    drift_period_s: float = 86_400.0
    drift_step_s: float = 3_600.0
    of_type: tuple[tuple[str, float], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("noise", "bias", "drift"):
            value = getattr(self, name)
            if not 0.0 <= value <= 3.0:
                raise UsageError(f"distortion: {name} is {value}; expected 0 to 3 (of a logarithm)")
        for name in ("drift_period_s", "drift_step_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"distortion: {name} is {getattr(self, name)}; expected seconds")
        for gpu_type, factor in self.of_type:
            if not 0.0 < factor < math.inf:
                raise UsageError(f"distortion: factor of {gpu_type} is {factor}; expected above 0")

    @property
    def none(self) -> bool:
        """Whether it changes nothing."""
        return not (self.noise or self.bias or self.drift or self.of_type)

    def rates(self, rates: JobRates, job_id: str = "", at_s: float = 0.0) -> JobRates:
        """Return the distorted rates of one job at one moment; the same object for the same."""
        if self.none:
            return rates
        step = math.floor(at_s / self.drift_step_s) if self.drift else 0
        return _distorted(self, rates, job_id, step)

    def factors(self, rates: JobRates, job_id: str = "", at_s: float = 0.0) -> Mapping[str, float]:
        """Return the factor on each type's micro-batch time."""
        step = math.floor(at_s / self.drift_step_s) if self.drift else 0
        return _factors(self, rates.model, tuple(rates.microbatch_s), job_id, step)


@lru_cache(maxsize=65536)
def _distorted(distortion: Distortion, rates: JobRates, job_id: str, step: int) -> JobRates:
    return rates.scaled(_factors(distortion, rates.model, tuple(rates.microbatch_s), job_id, step))


def _factors(
    distortion: Distortion, model: str, gpu_types: tuple[str, ...], job_id: str, step: int
) -> dict[str, float]:
    known = dict(distortion.of_type)
    found: dict[str, float] = {}
    for gpu_type in gpu_types:
        log = 0.0
        if distortion.noise:
            log += distortion.noise * _normal(distortion.seed, "noise", job_id, gpu_type)
        if distortion.bias:
            log += distortion.bias * _normal(distortion.seed, "bias", model, gpu_type)
        if distortion.drift:
            phase, _ = _uniform(distortion.seed, "drift", job_id, gpu_type)
            turns = step * distortion.drift_step_s / distortion.drift_period_s + phase
            log += distortion.drift * math.sin(2.0 * math.pi * turns)
        found[gpu_type] = known.get(gpu_type, 1.0) * math.exp(log)
    return found


def _uniform(*key: object) -> tuple[float, float]:
    """Two numbers in (0, 1] that are a function of the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    high, low = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    return (high + 1) / 2.0**64, (low + 1) / 2.0**64


def _normal(*key: object) -> float:
    """A standard normal variate that is a function of the key alone (Box-Muller)."""
    u1, u2 = _uniform(*key)
    return math.sqrt(-2.0 * math.log(u1)) * math.cos(2.0 * math.pi * u2)
