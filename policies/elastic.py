"""Elastic jobs in the driver: what they may hold, and where their logical workers sit by default.

An elastic job (:class:`traces.job.Elastic`) runs on any number of GPUs between its bounds, of one
type, or of several if it may mix them. Its hosts' CPUs and memory go with the GPUs it holds: each
GPU takes an equal share of what the whole gang asked for, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from policies.rates import rates_of, reference_s
from traces import Allocation, Elastic, Job, Profile, Request, UsageError, WorkerMap, Workload
from traces.profile import JobRates
from traces.workermap import Gpu

if TYPE_CHECKING:
    from policies.free import FreeGpus
    from policies.model import Model


@lru_cache(maxsize=65_536)
def sized(request: Request, num_gpus: int) -> Request:
    """The request of an elastic job for so many GPUs instead of its gang."""
    if num_gpus == request.num_gpus:
        return request
    each = request.num_gpus
    return replace(
        request,
        num_gpus=num_gpus,
        cpu_milli=-(-request.cpu_milli // each) * num_gpus,
        memory_mib=-(-request.memory_mib // each) * num_gpus,
    )


@lru_cache(maxsize=65_536)
def on_type(request: Request, gpu_type: str, num_gpus: int) -> Request:
    """The request of an elastic job for so many more GPUs of one type."""
    return replace(sized(request, num_gpus), gpu_types=(gpu_type,))


def pools_held(allocation: Allocation, free: FreeGpus) -> tuple[int, ...]:
    """GPUs of an allocation by pool (index into ``free.pools``)."""
    counts = [0] * len(free.pools)
    for node, mask in allocation.shares:
        counts[free.pool_of[node]] += mask.bit_count()
    return tuple(counts)


def even(elastic: Elastic, gpus: Sequence[Gpu]) -> WorkerMap:
    """The default worker map: as even as can be, the first devices holding one more.

    Devices in excess of the logical workers hold none and are not in the map.
    """
    used = gpus[: elastic.num_workers]
    share, rest = divmod(elastic.num_workers, len(used))
    counts = tuple(share + (i < rest) for i in range(len(used)))
    return WorkerMap(tuple((gpu.node, gpu.gpu) for gpu in used), counts)


def fault_of_size(elastic: Elastic, count: int) -> str | None:
    """Say why an elastic job cannot run on so many GPUs, or return None if it can."""
    if count < elastic.least_gpus:
        return f"is given {count} GPUs; it runs on at least {elastic.least_gpus} (min_gpus)"
    if count > elastic.max_gpus:
        return f"is given {count} GPUs; it may use at most {elastic.max_gpus} (max_gpus)"
    return None


def timed(workload: Workload, profile: Profile) -> Workload:
    """The same jobs, with the run time that follows from their steps where none is given.

    An elastic job with ``total_steps`` and no ``duration_s`` takes as many reference step times
    (:func:`policies.rates.reference_s`). Raises ``DataError`` and :class:`UsageError` for jobs
    that the profile does not know.
    """
    table = workload.table
    missing = table["max_gpus"].notna() & table["duration_s"].isna() & table["total_steps"].notna()
    if not missing.any():
        return workload
    found = table.copy()
    seconds = found["duration_s"].to_numpy(copy=True)
    for job in workload.jobs():
        if missing.iloc[job.rank]:
            assert job.elastic is not None
            assert job.elastic.total_steps is not None
            seconds[job.rank] = job.elastic.total_steps * reference_s(profile, job.elastic)
    found["duration_s"] = seconds
    note = (
        f"run times without one: total_steps x reference step time of the {profile.origin} profile"
    )
    source = replace(workload.source, notes=(*workload.source.notes, note))
    return Workload(found, source)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A class of elastic jobs: alike in all but the amount of work. Compared by identity.

    ``pools``: indices of those it may use (allowed, or any if it mixes, and known to the profile).
    ``rates``: believed times of its model on ``gpu_types``, the types of all pools.
    ``reference``: believed step time at rate 1. ``refused``: GPUs by pool that did not help a job.
    """

    elastic: Elastic
    pools: tuple[int, ...]
    gpu_types: tuple[str, ...]
    prices: tuple[float, ...]
    rates: JobRates
    reference: float
    refused: tuple[tuple[int, ...], ...] = ()

    @property
    def preferred(self) -> int:
        """The pool of its preferred type, or else the first that it may use."""
        wanted = self.elastic.preferred_type
        if wanted in self.gpu_types:
            return self.gpu_types.index(wanted)
        return self.pools[0]


class Kinds:
    """The classes of the jobs seen so far."""

    def __init__(self) -> None:
        self._known: dict[tuple[Elastic, tuple[str, ...]], Kind] = {}

    def of(self, job: Job, free: FreeGpus, model: Model) -> Kind:
        """Return the class of a job; raises ``DataError`` if the profile does not know it."""
        assert job.elastic is not None
        key = (replace(job.elastic, total_steps=None), job.request.gpu_types)
        kind = self._known.get(key)
        if kind is None:
            kind = self._known[key] = _kind(*key, free, model)
        return kind


def _kind(elastic: Elastic, allowed: tuple[str, ...], free: FreeGpus, model: Model) -> Kind:
    gpu_types = tuple(pool.gpu_type for pool in free.pools)
    if model.profile is None:
        rates = JobRates.plain({t: 1.0 / model.speeds.get(t, 1.0) for t in gpu_types})
        prices = tuple(model.speeds.get(t, 1.0) for t in gpu_types)
        reference = 1.0
    else:
        rates = rates_of(model.profile, elastic)
        prices = prices_of(model.profile, gpu_types)
        reference = reference_s(model.profile, elastic)
    if elastic.mixes_types or not allowed:
        pools = tuple(range(len(gpu_types)))
    else:
        pools = tuple(gpu_types.index(t) for t in allowed if t in gpu_types)
    pools = tuple(p for p in pools if gpu_types[p] in rates.microbatch_s)
    if not pools:
        wanted = "/".join(allowed) or "any type"
        raise UsageError(
            f"a job of {elastic.model} may use {wanted}, of which the cluster has none with times"
            f" in the profile; the cluster has {', '.join(gpu_types)}, the profile"
            f" {', '.join(rates.microbatch_s)}"
        )
    return Kind(elastic, pools, gpu_types, prices, rates, reference)


@lru_cache(maxsize=256)
def prices_of(profile: Profile, gpu_types: tuple[str, ...]) -> tuple[float, ...]:
    """The worth of a GPU of each type: its speed, averaged over models, the fastest being 1."""
    sums = [0.0] * len(gpu_types)
    number = [0] * len(gpu_types)
    for model in profile.models.values():
        for row in model.microbatch_s.values():
            least = min((row[t] for t in gpu_types if t in row), default=None)
            if least is None:
                continue
            for i, gpu_type in enumerate(gpu_types):
                if gpu_type in row:
                    sums[i] += least / row[gpu_type]
                    number[i] += 1
    return tuple(s / n if n else 1.0 for s, n in zip(sums, number, strict=True))
