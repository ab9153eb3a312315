"""From the sizes that elastic jobs should have to a plan: who gives back first, then who takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policies.inter.sizes import Counts
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView


def room_of(view: ClusterView) -> list[int]:
    """GPUs by pool that elastic jobs may share: the free ones and those they hold."""
    room = [pool.free for pool in view.free.pools]
    for job in view.elastic.values():
        for pool, count in enumerate(job.held):
            room[pool] += count
    return room


def carry_out(
    view: ClusterView,
    sizes: Sequence[tuple[JobState, Counts]],
    gangs: Iterable[JobState] = (),
) -> Draft:
    """Return the plan that gives jobs these GPUs by pool (none: stop it) and starts these gangs."""
    draft = view.draft()
    for job, counts in sizes:
        if job.running:
            less = tuple(map(min, job.held, counts))
            if not any(less):
                draft.stop(job)
            elif less != job.held:
                draft.resize(job, less)
    for job in gangs:
        draft.start(job)
    for job, counts in sizes:
        if any(counts):
            draft.resize(job, counts)
    return draft
