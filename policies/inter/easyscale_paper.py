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
from policies.intra.artifact import Counts, Growth, Plan, Quirks
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


class Jobs(NamedTuple):
    """A class of jobs in one cluster, under some quirks: what all that is worked out depends on."""

    kind: Class
    capacity: Counts
    quirks: Quirks


@lru_cache(maxsize=65_536)
def plan_after(jobs: Jobs, path: Path) -> Plan:
    """The plan of a job that has held these GPUs, one after the other."""
    found = plans_of(*jobs)
    if len(path) == 1:
        plan = artifact.first(found, jobs.quirks)
        return plan if plan.placement == path[0] else _best(found, path[0])
    growths = growths_after(jobs, path[:-1])
    held = path[-1]
    return next((g.plan for g in growths if g.plan.placement == held), _best(found, held))


@lru_cache(maxsize=65_536)
def growths_after(jobs: Jobs, path: Path) -> tuple[Growth, ...]:
    """What such a job proposes next. What would be more than it may hold is left out."""
    growths = artifact.proposals(plans_of(*jobs), plan_after(jobs, path), jobs.quirks)
    # A job that keeps GPUs without a logical worker may come to more than it may hold.
    return tuple(g for g in growths if sum(g.plan.placement) <= jobs.kind.most)


def _best(found: Sequence[Plan], held: Counts) -> Plan:
    """The fastest plan that these GPUs can carry out (the world may have taken some away)."""
    for plan in found:
        if all(n <= h for n, h in zip(plan.placement, held, strict=True)):
            return plan._replace(placement=held)
    raise UsageError(f"policy easyscale, version paper: no plan for {held} GPUs")


def plan_round(view: ClusterView, quirks: Quirks, *, mixing: bool) -> Draft:
    """Decide one round. Rigid jobs, which the artifact does not know, start first if they fit."""
    draft = view.draft()
    if not any(pool.free or pool.share_milli for pool in view.free.pools):
        return draft  # nobody can start or grow
    waiting: list[JobState] = []
    for job in sorted(view.waiting, key=_rank):
        if job.elastic is None:
            draft.start(job)
        else:
            waiting.append(job)
    running = sorted(view.elastic.values(), key=_rank)
    capacity = tuple(view.spec.gpus_by_type().values())
    left = [pool.free for pool in draft.free.pools]
    firsts = _firsts(waiting, quirks, capacity, mixing=mixing)
    for index, plan in artifact.start([plan for _, plan in firsts], left).items():
        draft.resize(firsts[index][0], plan.placement)
    proposed = []
    for job in running:
        assert job.kind is not None
        jobs = Jobs(Class.of(job.kind, mixing=mixing), capacity, quirks)
        proposed.append(growths_after(jobs, job.memory))
    for index, plan in artifact.accept(proposed, left).items():
        draft.resize(running[index], plan.placement)
    return draft


def _firsts(
    waiting: Sequence[JobState], quirks: Quirks, capacity: Counts, *, mixing: bool
) -> list[tuple[JobState, Plan]]:
    """The first plan of each waiting job that has any."""
    known: dict[Kind, Plan | None] = {}
    firsts = []
    for job in waiting:
        kind = job.kind
        assert kind is not None
        if kind not in known:
            found = plans_of(Class.of(kind, mixing=mixing), capacity, quirks)
            known[kind] = artifact.first(found, quirks) if found else None
        plan = known[kind]
        if plan is not None:
            firsts.append((job, plan))
    return firsts


def _rank(job: JobState) -> int:
    return job.rank
