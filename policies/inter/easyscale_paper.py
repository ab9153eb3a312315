"""EasyScale's inter-job scheduler as its artifact behaves: rounds, growth by proposals, no way back.

Every round (60 s in the artifact) each waiting job, in order of submission, starts on its first plan
if that fits; then the growths that all running jobs propose are accepted by gain, one a job, while
GPUs last (``policies.intra.artifact``). Jobs never shrink and keep what they have.

A job's plan depends on how it grew, so what the view remembers of a job is the sequence of GPU
counts it has held since its last start; the plan is worked out from that.

Source: EasyScale (SC'23), Algorithm 1, and github.com/sUntvoOk/EasyScale_info_for_SC23.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from policies.intra import artifact
from policies.intra.artifact import Counts, Plan, Quirks
from policies.plan import Draft
from policies.rates import rates_of
from policies.state import JobState
from policies.view import ClusterView
from traces import Elastic, Profile, UsageError

Path = tuple[Counts, ...]
"""GPUs of each type a job has held since its last start, one entry per start or resize."""


def seconds_of(profile: Profile | None, elastic: Elastic, gpu_types: Sequence[str]) -> tuple[float, ...]:
    """Seconds of one micro-batch on each GPU type.

    Raises ``DataError`` for a type or model the profile lacks, :class:`UsageError` without one.
    """
    if profile is None:
        raise UsageError(
            "policy easyscale, version paper: it plans with the times of a profile; give one"
            " (--profile FILE)"
        )
    rates = rates_of(profile, elastic)
    return tuple(rates.seconds(t) for t in gpu_types)


@lru_cache(maxsize=65_536)
def plans_of(
    seconds: tuple[float, ...], max_p: int, capacity: Counts, only: int | None, quirks: Quirks
) -> tuple[Plan, ...]:
    """All plans of a job, the fastest first; ``only``: the one type it is held to."""
    found = artifact.plans(seconds, max_p, capacity, quirks)
    return found if only is None else artifact.on_type(found, only)


@lru_cache(maxsize=65_536)
def plan_after(found: tuple[Plan, ...], path: Path, quirks: Quirks) -> Plan:
    """The plan of a job that has held these GPUs, one after the other."""
    plan = artifact.first(found, quirks)
    if plan.placement != path[0]:
        plan = _best(found, path[0])
    for held in path[1:]:
        growths = artifact.proposals(found, plan, quirks)
        plan = next((g.plan for g in growths if g.plan.placement == held), _best(found, held))
    return plan


def _best(found: Sequence[Plan], held: Counts) -> Plan:
    """The fastest plan that these GPUs can carry out (the world may have taken some away)."""
    for plan in found:
        if all(n <= h for n, h in zip(plan.placement, held, strict=True)):
            return plan._replace(placement=held)
    raise UsageError(f"policy easyscale, version paper: no plan for {held} GPUs")


def held_to(elastic: Elastic, gpu_types: Sequence[str], *, mixing: bool) -> int | None:
    """The position of the one type a job is held to; None if it may mix."""
    if mixing and elastic.mixes_types:
        return None
    if elastic.preferred_type not in gpu_types:
        raise UsageError(
            f"policy easyscale, version paper: a job that may not mix types prefers"
            f" {elastic.preferred_type}, which the cluster does not have"
        )
    return list(gpu_types).index(elastic.preferred_type or "")


def plan_round(view: ClusterView, quirks: Quirks, *, mixing: bool) -> Draft:
    """Decide one round."""
    draft = view.draft()
    gpu_types = [pool.gpu_type for pool in view.free.pools]
    capacity = tuple(view.spec.gpus_by_type().values())

    def plans(job: JobState) -> tuple[Plan, ...]:
        elastic = job.elastic
        if elastic is None:
            raise UsageError(
                f"policy easyscale, version paper: job {job.job_id} is rigid; make it elastic"
                " (--elastic RULE)"
            )
        seconds = seconds_of(view.model.profile, elastic, gpu_types)
        only = held_to(elastic, gpu_types, mixing=mixing)
        return plans_of(seconds, elastic.num_workers, capacity, only, quirks)

    waiting = sorted(view.waiting, key=lambda job: job.rank)
    running = sorted(view.running, key=lambda job: job.rank)
    known = [plans(job) for job in running]
    started, grown = artifact.decide(
        [plans(job) for job in waiting],
        [(f, plan_after(f, job.memory, quirks)) for f, job in zip(known, running, strict=True)],
        [pool.free for pool in view.free.pools],
        quirks,
    )
    for index, plan in started.items():
        draft.resize(waiting[index], plan.placement)
    for index, plan in grown.items():
        job = running[index]
        # A job that keeps GPUs without a logical worker may come to more than it may hold.
        if job.elastic is not None and sum(plan.placement) <= job.elastic.max_gpus:
            draft.resize(job, plan.placement)
    return draft
