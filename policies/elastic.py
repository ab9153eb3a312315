"""Elastic jobs in the driver: what they may hold, and where their logical workers sit by default.

An elastic job (:class:`traces.job.Elastic`) runs on any number of GPUs between its bounds, of one
type, or of several if it may mix them. Its hosts' CPUs and memory go with the GPUs it holds: each
GPU takes an equal share of what the whole gang asked for, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from policies.rates import rates_of, reference_s
from traces import Allocation, Elastic, Profile, Request, WorkerMap, Workload
from traces.workermap import Gpu

if TYPE_CHECKING:
    from policies.free import FreeGpus


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


def usable_pools(
    request: Request, elastic: Elastic, free: FreeGpus, profile: Profile | None
) -> tuple[int, ...]:
    """Indices of the pools an elastic job may use: allowed, or any if it mixes, and profiled.

    Raises ``DataError`` if the profile does not know its model and batch size.
    """
    pools = free.pools
    if not elastic.mixes_types and request.gpu_types:
        found = [p.index for t in request.gpu_types for p in pools if p.gpu_type == t]
    else:
        found = [p.index for p in pools]
    if profile is None:
        return tuple(found)
    known = rates_of(profile, elastic).microbatch_s
    return tuple(i for i in found if pools[i].gpu_type in known)
