"""What a workload asks of a cluster: load per pool of GPU types, and demand over time.

A job that allows several GPU types loads none of them in particular. So load is told per *pool*:
a set of types that some job asks for. The jobs that must run inside a pool (all their types are in
it) offer it their GPU-seconds over its GPUs times the span from first to last submission; no
policy can keep up where that is above 1 (Hall's condition, taken over time). Left out: CPU, memory
and whole-node shapes, which can only make it worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.cluster import ClusterSpec
from traces.scale import gpu_seconds, span_s
from traces.steps import Steps
from traces.workload import Workload

_MOST_POOLS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """The load that jobs confined to ``gpu_types`` offer its ``num_gpus`` GPUs.

    ``jobs`` are those with a known run time; ``load`` is a fraction of the pool's GPUs.
    """

    gpu_types: tuple[str, ...]
    num_gpus: int
    jobs: int
    load: float


def pool_loads(workload: Workload, spec: ClusterSpec) -> tuple[PoolLoad, ...]:
    """Return the load of each pool, the whole cluster last.

    Empty where load means nothing: no GPUs, or all jobs at one instant. Jobs that no type of the
    inventory can serve are left out. Beyond 200 different sets of types only single types and the
    whole cluster are told.
    """
    span = span_s(workload)
    if span <= 0 or not spec.num_gpus:
        return ()
    capacity = spec.gpus_by_type()
    everything = frozenset(capacity)
    seconds = gpu_seconds(workload)
    known = ~np.isnan(seconds)
    count = len(workload.requests)
    by_request = np.bincount(workload.request_of[known], seconds[known], minlength=count)
    jobs_of = np.bincount(workload.request_of[known], minlength=count)
    work: dict[frozenset[str], float] = {}
    jobs: dict[frozenset[str], int] = {}
    for i, request in enumerate(workload.requests):
        types = everything & frozenset(request.gpu_types) if request.gpu_types else everything
        if types and request.num_gpus:
            work[types] = work.get(types, 0.0) + float(by_request[i])
            jobs[types] = jobs.get(types, 0) + int(jobs_of[i])
    pools = {p for p in work if len(work) <= _MOST_POOLS or len(p) == 1} | {everything}
    loads = []
    for pool in sorted(pools, key=lambda p: (len(p), sorted(p))):
        inside = [types for types in work if types <= pool]
        gpus = sum(capacity[t] for t in pool)
        loads.append(
            PoolLoad(
                gpu_types=tuple(t for t in capacity if t in pool),
                num_gpus=gpus,
                jobs=sum(jobs[types] for types in inside),
                load=sum(work[types] for types in inside) / (gpus * span),
            )
        )
    return tuple(loads)


def demand_over_time(workload: Workload, *, recorded: bool = False) -> Steps:
    """Milli-GPUs in use if no job ever waited: each from its submission for its run time.

    ``recorded=True`` takes the recorded start instead, where there is one. A job that outlived the
    trace and has no run time counts to the last recorded instant; other jobs without one are left
    out.
    """
    table = workload.table
    submit = table["submit_s"].to_numpy(dtype=np.float64)
    start = table["start_s"].to_numpy(dtype=np.float64)
    start = np.where(np.isnan(start), submit, start)
    duration = table["duration_s"].to_numpy(dtype=np.float64)
    begin = start if recorded else submit
    last = float(np.nanmax(np.concatenate([submit, start, start + duration]), initial=-np.inf))
    open_end = np.where(table["right_censored"].to_numpy(dtype=bool), last, begin)
    end = np.where(np.isnan(duration), open_end, begin + duration)
    height = (table["num_gpus"] * table["gpu_milli"]).to_numpy(dtype=np.int64)
    return Steps.of_intervals(begin, end, height)
