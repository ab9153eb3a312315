"""Elastic jobs that share the GPUs of one type each: the frame of AFS and Optimus.

Both add up shares GPU by GPU. A job of n logical workers is not faster on every number of GPUs: on
17 to 31 a job of 32 is as fast as on 16. So shares grow in steps, from one number that makes a
difference to the next, and what a step brings is taken per GPU. Each job is on one type: the one it
prefers, or else the one with most room per job that may use it.

Rigid jobs, which neither system has, start as gangs in order of submission, before the sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from policies.contract import Policy
from policies.inter.sizes import Step, sizes_of
from policies.inter.targets import carry_out, room_of
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView


class Sharer(NamedTuple):
    """An elastic job, the pool it is on, and the sizes that make a difference there."""

    job: JobState
    pool: int
    steps: tuple[Step, ...]
    left_s: float

    def rate(self, level: int) -> float:
        """Progress per second at a level; level 0 is nothing."""
        return self.steps[level - 1].rate if level else 0.0

    def gpus(self, level: int) -> int:
        """GPUs at a level."""
        return self.steps[level - 1].gpus if level else 0


@dataclass(frozen=True, kw_only=True)
class Shares(Policy):
    """Give every elastic job a level; a subclass says how (``levels``)."""

    estimates: str = "true"
    resizes: ClassVar[bool] = True
    needs_estimates: ClassVar[bool] = True

    def levels(self, sharers: Sequence[Sharer], room: list[int]) -> list[int]:
        """Return each job's level; takes what it gives from ``room``."""
        raise NotImplementedError

    def plan(self, view: ClusterView) -> Draft:
        """Share everything anew."""
        room = room_of(view)
        gangs = _gangs(view, room)
        sharers = _sharers(view, room)
        levels = self.levels(sharers, room)
        sizes = []
        for sharer, level in zip(sharers, levels, strict=True):
            counts = [0] * len(room)
            counts[sharer.pool] = sharer.gpus(level)
            job = sharer.job
            if any(counts) if not job.held else tuple(counts) != job.held:
                sizes.append((job, tuple(counts)))
        return carry_out(view, sizes, gangs)


def guaranteed(sharers: Sequence[Sharer], room: list[int]) -> list[int]:
    """Levels to begin with: running jobs with guaranteed GPUs keep the least they run on."""
    levels = [0] * len(sharers)
    for i, sharer in enumerate(sharers):
        elastic = sharer.job.elastic
        if elastic is not None and elastic.min_gpus and sharer.job.running and sharer.steps:
            raise_to(sharer, levels, i, 1, room)
    return levels


def raise_to(sharer: Sharer, levels: list[int], index: int, level: int, room: list[int]) -> bool:
    """Give a job a higher level if there is room for it."""
    more = sharer.gpus(level) - sharer.gpus(levels[index])
    if room[sharer.pool] < more:
        return False
    room[sharer.pool] -= more
    levels[index] = level
    return True


def _gangs(view: ClusterView, room: list[int]) -> list[JobState]:
    """Rigid jobs that start, in order; their GPUs are taken from the room."""
    gangs = []
    for job in view.waiting:
        if job.elastic is not None:
            continue
        count = max(1, job.request.num_gpus)
        pool = next((p for p in job.shape.pools if room[p] >= count), None)
        if pool is not None:
            room[pool] -= count
            gangs.append(job)
    return gangs


def _sharers(view: ClusterView, room: Sequence[int]) -> list[Sharer]:
    jobs = sorted(
        [*view.elastic.values(), *(j for j in view.waiting if j.elastic is not None)],
        key=lambda job: job.rank,
    )
    claims = [0] * len(room)
    found = []
    for job in jobs:
        kind = job.kind
        assert kind is not None
        if job.running:
            pool = max(range(len(room)), key=lambda p, held=job.held: held[p])  # type: ignore[misc]
        elif kind.elastic.preferred_type in kind.gpu_types:
            pool = kind.preferred
        else:
            pool = max(kind.pools, key=lambda p: (room[p] / (claims[p] + 1), -p))
        claims[pool] += 1
        steps = sizes_of(kind).steps(pool)
        left_s = max(job.remaining_s(view.now), 1.0)
        found.append(Sharer(job, pool, steps, left_s))
    return found
