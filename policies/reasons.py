"""Why a job waits: asked of the policy itself, at any instant, in either world.

Planning is pure, so a question costs a plan or two and changes nothing: what would happen now;
what would happen if the job waited alone. From the answers follows whether the job lacks room or
stands behind others; the placement says whether the room is there but scattered; estimates of the
running jobs' ends, where the policy has them, say when there may be enough.

Codes: ``done``, ``running``, ``starting`` (the next decision starts it), ``round`` (it would start,
but decisions are made at set instants), ``not_enough_gpus``, ``fragmented`` (enough by count, no
place), ``host`` (CPUs or memory), ``behind`` (others go first), ``reserved`` (it would delay a
reservation), ``quota``, ``policy`` (it is not started though nothing seems in the way).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from policies.contract import Policy, Reason
from policies.state import DONE, RUNNING, JobState
from policies.subview import SubView, alone

if TYPE_CHECKING:
    from policies.view import ClusterView

WHOLE = 1000


def explain(policy: Policy, view: ClusterView, job: JobState) -> Reason:
    """Say why a job waits (or that it runs, or has ended)."""
    known = whereabouts(view, job)
    if known is not None:
        return known
    if policy.plan(view).changes.get(job) is not None:
        return _starting(policy, view)
    by_itself = SubView(view, policy=policy, shapes=[alone(job)])
    if policy.plan(by_itself).changes.get(job) is not None:
        return behind(policy, view, job)
    return lacking(policy, view, job)


def whereabouts(view: ClusterView, job: JobState) -> Reason | None:
    """The reason of a job that does not wait; None if it does."""
    if job.phase == DONE:
        return Reason(code="done", text=f"it ended at {job.since_s:.12g} s")
    if job.phase == RUNNING:
        assert job.allocation is not None
        names = [view.spec.nodes[node].name for node, _ in job.allocation.shares]
        where = names[0] if len(names) == 1 else f"{len(names)} nodes ({names[0]}, ...)"
        return Reason(
            code="running",
            text=f"it runs on {where} since {job.since_s:.12g} s",
            facts={"since_s": job.since_s, "nodes": names},
        )
    return None


def _starting(policy: Policy, view: ClusterView) -> Reason:
    interval = policy.interval_s
    if interval is not None and view.now % interval:
        next_s = (view.now // interval + 1) * interval
        return Reason(
            code="round",
            text=f"decisions are made every {interval:g} s; the next at {next_s:.12g} s starts it",
            facts={"next_s": next_s, "interval_s": interval},
        )
    return Reason(code="starting", text="the next decision starts it")


def behind(policy: Policy, view: ClusterView, job: JobState) -> Reason:
    """Alone it would start: others go first."""
    ahead = view.waiting.ahead_of(job)
    first = view.waiting.first()
    facts: dict[str, Any] = {"ahead": ahead}
    if not ahead or first is None or first is job:
        return Reason(
            code="behind",
            text="it is first in line, and others that fit are served before it",
            facts=facts,
        )
    facts |= {"first": first.job_id, "first_needs": str(first.request)}
    text = f"behind {ahead} job{'s' if ahead != 1 else ''} ({policy.ahead})"
    text += f"; first in line is {first.job_id}, which needs {first.request}"
    return Reason(code="behind", text=text, facts=facts)


def lacking(policy: Policy, view: ClusterView, job: JobState) -> Reason:
    """Even alone it would not start: too few GPUs, or none where it could go."""
    ahead = view.waiting.ahead_of(job)
    queue = f"; behind {ahead} job{'s' if ahead != 1 else ''} ({policy.ahead})" if ahead else ""
    reason = _room(policy, view, job)
    return Reason(
        code=reason.code, text=reason.text + queue, facts={**reason.facts, "ahead": ahead}
    )


def _room(policy: Policy, view: ClusterView, job: JobState) -> Reason:
    request, free = job.request, view.free
    pools = [free.pools[index] for index in job.shape.pools]
    types = "/".join(pool.gpu_type for pool in pools) or "/".join(request.gpu_types)
    if not pools and request.num_gpus:
        return Reason(
            code="not_enough_gpus",
            text=f"needs {request.num_gpus} {types}; this cluster has none",
            facts={"needs": request.num_gpus, "gpu_types": request.gpu_types, "free": 0},
        )
    most = max((pool.free for pool in pools), default=0)
    share = request.gpu_milli < WHOLE and any(pool.sharing for pool in pools)
    if most < request.num_gpus and not share:
        return _not_enough(policy, view, job, most, types)
    if view.placement.place(request, free) is None:
        return _fragmented(view, job, types)
    return Reason(
        code="policy",
        text=f"{request} are free and can be placed, but the policy does not start it",
        facts={"free": most, "policy": policy.name},
    )


def _not_enough(policy: Policy, view: ClusterView, job: JobState, most: int, types: str) -> Reason:
    need = job.request.num_gpus
    facts: dict[str, Any] = {
        "needs": need,
        "gpu_types": types,
        "free": most,
        "gpus_in_service": sum(view.free.pools[i].capacity for i in job.shape.pools),
    }
    text = f"needs {need} free {types}; {most} free"
    if not policy.needs_estimates:
        text += "; when more will be is unknown, as this policy has no estimates of run time"
        return Reason(code="not_enough_gpus", text=text, facts=facts)
    when_s = enough_at(view, job)
    facts["earliest_s"] = None if when_s == math.inf else when_s
    if when_s == math.inf:
        text += "; not enough even when all running jobs have ended"
    else:
        text += f", {need - most} more at {when_s:.12g} s at the earliest"
    return Reason(code="not_enough_gpus", text=text, facts=facts)


def enough_at(view: ClusterView, job: JobState) -> float:
    """When enough GPUs of one type are free by the estimated ends of running jobs; inf: never."""
    free = {index: view.free.pools[index].free * WHOLE for index in job.shape.pools}
    pool_of = view.free.pool_of
    soon = math.nextafter(view.now, math.inf)
    found = sorted((max(j.finish_estimate_s(), soon), j.rank, j) for j in view.running)
    for end_s, _, other in found:
        assert other.allocation is not None
        for node, mask in other.allocation.shares:
            if pool_of[node] in free:
                free[pool_of[node]] += mask.bit_count() * other.allocation.gpu_milli
                if free[pool_of[node]] >= job.shape.milli:
                    return end_s
    return math.inf


def _fragmented(view: ClusterView, job: JobState, types: str) -> Reason:
    """Enough by count, and no place: where the free GPUs lie, or what the hosts lack."""
    free, request = view.free, job.request
    nodes = []
    for index in job.shape.pools:
        pool = free.pools[index]
        bits = pool.at_least(1) if request.num_gpus else pool.nodes
        while bits:
            low = bits & -bits
            nodes.append(low.bit_length() - 1)
            bits ^= low
    counts = [free.mask[node].bit_count() for node in nodes]
    total, most = sum(counts), max(counts, default=0)
    facts = {
        "needs": request.num_gpus,
        "free": total,
        "nodes": len(nodes),
        "most_on_one_node": most,
    }
    whole = request.num_gpus and most >= request.num_gpus
    if free.limited and (whole or not request.num_gpus or request.gpu_milli < WHOLE):
        return Reason(
            code="host",
            text=f"GPUs for {request} are free, but on no node with {request.cpu_milli}/1000 CPUs"
            f" and {request.memory_mib} MiB of memory left for it",
            facts=facts | {"cpu_milli": request.cpu_milli, "memory_mib": request.memory_mib},
        )
    return Reason(
        code="fragmented",
        text=f"needs {request}; {total} {types} are free, but on {len(nodes)} nodes, at most {most}"
        f" on one, and the placement ({view.placement.name}) finds no place among them",
        facts=facts,
    )
