"""EasyScale's inter-job scheduler as its artifact behaves: rounds, proposals, no way back.

Every round (60 s in the artifact) each waiting job, in order of submission, starts on its first
plan if that fits; then the growths that all running jobs propose are accepted by gain, one a job,
while GPUs last (``policies.intra.artifact``). Jobs never shrink and keep what they have.

A job's plan depends on how it grew, so what the view remembers of a job is the sequence of GPU
counts it has held since its last start; the plan is worked out from that.

Source: EasyScale (SC'23), Algorithm 1, and github.com/sUntvoOk/EasyScale_info_for_SC23.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from policies.elastic import Kind
from policies.intra import artifact
from policies.intra.artifact import Counts, Plan, Quirks
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView
from traces import UsageError

Path = tuple[Counts, ...]
"""GPUs of each type a job has held since its last start, one entry per start or resize."""


class Class(NamedTuple):
    """Jobs that have the same plans: ``seconds`` of a micro-batch on each type, bounds of sizes.

    ``only``: the position of the one type they are held to, or None.
    """

    seconds: tuple[float, ...]
    workers: int
    least: int
    most: int
    only: int | None

    @classmethod
    def of(cls, kind: Kind, *, mixing: bool) -> Class:
        """The class of a job; raises ``DataError`` if the profile lacks one of the types."""
        elastic = kind.elastic
        only = None
        if not (mixing and elastic.mixes_types):
            only = kind.preferred
        seconds = tuple(kind.rates.seconds(t) for t in kind.gpu_types)
        return cls(seconds, elastic.num_workers, elastic.least_gpus, elastic.max_gpus, only)


@lru_cache(maxsize=65_536)
def plans_of(jobs: Class, capacity: Counts, quirks: Quirks) -> tuple[Plan, ...]:
    """All plans of a class within its bounds, the fastest first."""
    found: Sequence[Plan] = artifact.plans(jobs.seconds, jobs.workers, capacity, quirks)
    if jobs.only is not None:
        found = artifact.on_type(found, jobs.only)
    return tuple(p for p in found if jobs.least <= sum(p.placement) <= jobs.most)


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


def plan_round(view: ClusterView, quirks: Quirks, *, mixing: bool) -> Draft:
    """Decide one round. Rigid jobs, which the artifact does not know, start first if they fit."""
    draft = view.draft()
    waiting: list[JobState] = []
    for job in sorted(view.waiting, key=_rank):
        if job.elastic is None:
            draft.start(job)
        else:
            waiting.append(job)
    running = sorted(view.elastic.values(), key=_rank)
    capacity = tuple(view.spec.gpus_by_type().values())

    def plans(job: JobState) -> tuple[Plan, ...]:
        assert job.kind is not None
        return plans_of(Class.of(job.kind, mixing=mixing), capacity, quirks)

    waiting = [job for job in waiting if plans(job)]
    known = [plans(job) for job in running]
    started, grown = artifact.decide(
        [plans(job) for job in waiting],
        [(f, plan_after(f, job.memory, quirks)) for f, job in zip(known, running, strict=True)],
        [pool.free for pool in draft.free.pools],
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


def _rank(job: JobState) -> int:
    return job.rank
