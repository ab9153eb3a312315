"""EASY backfill: the head of the line holds a reservation; later jobs may pass if they respect it.

After Lifka's EASY (ANL/IBM SP, 1995), as Mu'alem and Feitelson (2001) describe it. Jobs start in
order of submission while they fit. The first that does not fit, the *head*, gets a reservation:
the earliest instant (the *shadow time*) at which it fits if running jobs end at their estimated
ends. A later job starts now if it ends by the shadow time, or if the head still finds its GPUs at
the shadow time without those the later job would hold.

Where a request fits by count (``Placement.by_count``, whole GPUs, no host limits) the reservation
is a number of GPUs of one type, the arithmetic is exact, and a decision costs one pass over the
running jobs up to the shadow time. Otherwise actual devices are reserved: running jobs are
released on a scratch index in order of their estimated ends until the placement finds room.

Left out: costs of starting and slower GPU types are not in the estimate of a job that has not
started, so where the world charges them a backfilled job may end later than was thought.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import merge
from typing import ClassVar

from policies.contract import Policy, Reason
from policies.estimates import estimator
from policies.free import FreeGpus
from policies.plan import Draft
from policies.queues import Entry, Walk
from policies.state import JobState
from policies.view import ClusterView
from traces import Allocation, UsageError

INFINITY = math.inf


@dataclass(frozen=True, kw_only=True)
class Easy(Policy):
    """First in, first out, with a reservation for the head of the line alone.

    ``estimates``: see ``policies.estimates``; not ``none``. ``depth``: how many waiting jobs behind
    the head are looked at in one decision, those of a kind that cannot fit now not counted.
    """

    estimates: str = "true"
    depth: int = 1000
    name: ClassVar[str] = "easy"
    orders_running: ClassVar[bool] = True
    needs_estimates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_backfill("easy", self.estimates, self.depth)

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Order: submission, then job id; the first job that does not fit holds a reservation.",
            "A later job passes it only if that does not delay the reservation.",
            f"At most {self.depth} jobs behind the head are looked at in one decision.",
            f"Estimates of run time: {self.estimates}; a job that outruns its estimate is taken to"
            " end at any moment.",
            "Nothing is preempted.",
        )

    def running_order(self, job: JobState, now: float) -> float:
        """Estimated end."""
        return job.finish_estimate_s()

    def explain(self, view: ClusterView, job: JobState) -> Reason:
        """Name the reservation a job would delay, where it fits and may not start."""
        reason = Policy.explain(self, view, job)
        draft = view.draft()
        head = next((j for j in view.waiting if not draft.start(j)), None)
        if reason.code != "behind" or head is None or head is job:
            return reason
        return delaying(reason, view, job, head, reserve(view, draft, head).shadow_s)

    def plan(self, view: ClusterView) -> Draft:
        """Start in order; reserve for the first misfit; let others pass who do not delay it."""
        draft = view.draft()
        head: JobState | None = None
        for job in view.waiting.walk():
            if not draft.start(job):
                head = job
                break
        if head is not None and self.depth:
            reservation = reserve(view, draft, head)
            for job in _behind(view, draft, head, self.depth):
                reservation.backfill(job)
        return draft


def check_backfill(name: str, estimates: str, depth: int) -> None:
    """Raise :class:`UsageError` for parameters that no backfill can use."""
    estimator(estimates, 0)
    if estimates == "none":
        raise UsageError(f"{name}: estimates is 'none'; backfill needs true, user or noisy:SIGMA")
    if depth < 0:
        raise UsageError(f"{name}: depth is {depth}; expected 0 or more waiting jobs")


def delaying(
    reason: Reason, view: ClusterView, job: JobState, other: JobState, reserved_s: float
) -> Reason:
    """The reason of a job that fits, but would take what is reserved for another."""
    left_s = job.remaining_s(view.now)
    when = "" if reserved_s == INFINITY else f" at {reserved_s:.12g} s"
    return Reason(
        code="reserved",
        text=f"it may take {left_s:.12g} s more and would delay {other.job_id} ({other.request}),"
        f" which has a reservation{when}; {reason.facts['ahead']} jobs are ahead of it",
        facts={
            **reason.facts,
            "for": other.job_id,
            "reserved_s": None if reserved_s == INFINITY else reserved_s,
            "estimate_left_s": left_s,
        },
    )


def ends(view: ClusterView, started: Draft | None = None) -> Iterator[tuple[float, JobState]]:
    """Yield (estimated end, job) of all jobs on devices, earliest first.

    Jobs started in the draft are included; one that has outrun its estimate ends just after now.
    """
    now = view.now
    soon = math.nextafter(now, INFINITY)
    fresh = [] if started is None else [j for j, a in started.changes.items() if a is not None]
    if not fresh and view.running.order is not None:
        for end_s, _, job in view.running.order:
            yield max(end_s, soon), job
        return
    later = sorted((max(now + j.remaining_s(now), soon), j.rank, j) for j in fresh)
    order: Iterable[Entry] = (
        view.running.order
        if view.running.order is not None
        else sorted((j.finish_estimate_s(), j.rank, j) for j in view.running)
    )
    for end_s, _, job in merge(order, later):
        yield max(end_s, soon), job


def counts(view: ClusterView, job: JobState) -> bool:
    """Whether a job fits by the number of free GPUs of a type alone."""
    request = job.request
    return (
        view.placement.by_count
        and not view.free.limited
        and request.gpu_milli == 1000
        and request.num_gpus > 0
        and not request.single_node
    )


def reserve(view: ClusterView, draft: Draft, head: JobState) -> CountReservation | Reservation:
    """Find the shadow time of ``head``, and what it will hold then."""
    if counts(view, head):
        free = [pool.free for pool in draft.free.pools]
        taken = _release_by_count(view, draft, head, free)
        if taken is not None:
            return CountReservation(view, draft, head, *taken)
    return Reservation(view, draft, head)


def _release_by_count(
    view: ClusterView, draft: Draft, head: JobState, free: list[int]
) -> tuple[float, int, int] | None:
    """Let jobs end in order until the head fits: (shadow time, its pool, GPUs to spare there).

    None if some of the GPUs are shared: then counting is not exact. An infinite shadow time: it
    would not fit even if everything ended.
    """
    if any(pool.sharing for pool in draft.free.pools):
        return None
    pool_of = draft.free.pool_of
    pools, need = head.shape.pools, head.shape.num_gpus
    shadow_s, found = INFINITY, -1
    for end_s, job in ends(view, draft):
        if found >= 0 and end_s > shadow_s:
            break
        allocation = draft.changes.get(job, job.allocation)
        assert allocation is not None
        index = pool_of[allocation.shares[0][0]]
        if index < 0:
            continue  # a CPU job on a node without GPUs
        free[index] += job.shape.num_gpus
        if found < 0 and index in pools and free[index] >= need:
            shadow_s, found = end_s, index
    if found < 0:
        return INFINITY, -1, 0
    found = next(index for index in pools if free[index] >= need)
    return shadow_s, found, free[found] - need


def _behind(view: ClusterView, draft: Draft, head: JobState, depth: int) -> Iterator[JobState]:
    """Waiting jobs after the head, in order, up to ``depth``; kinds that cannot fit left out."""
    fitting = [shape for shape in view.waiting.shapes if draft.enough(shape)]
    if not fitting:
        return
    walk = Walk(fitting, after=head.entry)
    left = depth
    for job in walk:
        if not draft.enough(job.shape):
            walk.skip_shape()
            continue
        if not left:
            return
        left -= 1
        yield job


class CountReservation:
    """The head's GPUs at the shadow time, as a number of one type."""

    def __init__(
        self,
        view: ClusterView,
        draft: Draft,
        head: JobState,
        shadow_s: float,
        pool: int,
        spare: int,
    ) -> None:
        self.view = view
        self.draft = draft
        self.head = head
        self.shadow_s = shadow_s
        self.pool = pool
        self.spare = spare

    def backfill(self, job: JobState) -> bool:
        """Start a job now if that does not delay the head."""
        view, draft = self.view, self.draft
        short = view.now + job.remaining_s(view.now) <= self.shadow_s
        if short:
            return draft.start(job)
        if not counts(view, job):
            return self._elsewhere(job)
        for index in job.shape.pools:
            need = job.shape.num_gpus
            room = draft.free.pools[index].free
            if index == self.pool:
                room = min(room, self.spare)
            if room >= need:
                return self._start_on(job, index)
        return False

    def _start_on(self, job: JobState, index: int) -> bool:
        if len(job.shape.pools) == 1:
            started = self.draft.start(job)
        else:
            gpu_type = self.draft.free.pools[index].gpu_type
            allocation = place_on(self.view, job, self.draft.free, gpu_type)
            started = allocation is not None
            if allocation is not None:
                self.draft.put(job, allocation)
        if started and index == self.pool:
            self.spare -= job.shape.num_gpus
        return started

    def _elsewhere(self, job: JobState) -> bool:
        """A long job that does not fit by count: charge a whole GPU for a share of one."""
        draft = self.draft
        if not draft.start(job):
            return False
        allocation = draft.changes[job]
        assert allocation is not None
        if draft.free.pool_of[allocation.shares[0][0]] == self.pool:
            if self.spare < job.shape.num_gpus:
                draft.stop(job)
                return False
            self.spare -= job.shape.num_gpus
        return True


def place_on(view: ClusterView, job: JobState, free: FreeGpus, gpu_type: str) -> Allocation | None:
    """Ask the placement for devices of one type only."""
    return view.placement.place(replace(job.request, gpu_types=(gpu_type,)), free)


class Reservation:
    """The head's actual devices at the shadow time, on a scratch index of that instant."""

    def __init__(self, view: ClusterView, draft: Draft, head: JobState) -> None:
        self.view = view
        self.draft = draft
        self.head = head
        self.then = draft.free.fork()
        self.shadow_s, self.allocation = self._find()

    def _find(self) -> tuple[float, Allocation | None]:
        jobs = list(ends(self.view, self.draft))
        place, request = self.view.placement.place, self.head.request
        for position, (end_s, job) in enumerate(jobs):
            allocation = self.draft.changes.get(job, job.allocation)
            assert allocation is not None
            self.then.give(allocation, job.request)
            if position + 1 < len(jobs) and jobs[position + 1][0] == end_s:
                continue  # everything that ends at one instant is taken in first
            if self._enough():
                found = place(request, self.then)
                if found is not None:
                    return end_s, found
        return INFINITY, None

    def _enough(self) -> bool:
        request, pools = self.head.request, self.then.pools
        if request.gpu_milli != 1000 or request.num_gpus == 0:
            return True
        return any(pools[i].free >= request.num_gpus for i in self.head.shape.pools)

    def backfill(self, job: JobState) -> bool:
        """Start a job now if that does not delay the head."""
        now = self.view.now
        if now + job.remaining_s(now) <= self.shadow_s:
            return self.draft.start(job)
        place = self.view.placement.place
        found = place(job.request, self.draft.free)
        if found is None:
            return False
        return self._respects(job, found) or self._around(job)

    def _respects(self, job: JobState, found: Allocation) -> bool:
        """Start a job on these devices if the head still fits at the shadow time."""
        self.then.take(found, job.request)
        kept = self.view.placement.place(self.head.request, self.then)
        if kept is None:
            self.then.give(found, job.request)
            return False
        self.allocation = kept
        self.draft.put(job, found)
        return True

    def _around(self, job: JobState) -> bool:
        """Look for devices once more, without those that the head will have."""
        if self.allocation is None or self.allocation.gpu_milli != 1000:
            return False
        left = self.draft.free.fork()
        masks = left.mask
        for node, mask in self.allocation.shares:
            left.withdraw(node, mask & masks[node])
        found = self.view.placement.place(job.request, left)
        return found is not None and self._respects(job, found)
