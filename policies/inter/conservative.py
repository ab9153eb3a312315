"""Conservative backfill: every waiting job holds a reservation; nobody may push another's back.

As Mu'alem and Feitelson (2001) describe it. Waiting jobs are planned in order of submission, each
at the earliest instant at which its GPUs are free for the whole of its estimated run time, given
the running jobs' estimated ends and the reservations before it. A job starts when its reservation
is now.

A plan is a function of the view, so the reservations are not kept but made anew at every decision.
With exact estimates that changes nothing: they come out the same, event after event. When a job
ends early all jobs are moved up in order of submission (the *compression*); then a reservation can
come to lie later than before only because a job ahead of it took its place.

Where a request fits by count the free GPUs over time are one step function per GPU type
(:class:`Profile`); otherwise one scratch index per instant (:class:`DeviceCalendar`), which is
exact about devices and much slower: lower ``depth`` there. Left out: as in ``backfill``.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from policies.contract import Policy, Reason
from policies.free import FreeGpus
from policies.inter.backfill import check_backfill, counts, delaying, ends, place_on
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView
from traces import Allocation

INFINITY = math.inf


@dataclass(frozen=True, kw_only=True)
class Conservative(Policy):
    """First in, first out, with a reservation for every waiting job.

    ``estimates``: see ``policies.estimates``; not ``none``. ``depth``: how many waiting jobs hold
    reservations; those beyond wait as in FIFO.
    """

    estimates: str = "true"
    depth: int = 1000
    name: ClassVar[str] = "conservative"
    orders_running: ClassVar[bool] = True
    needs_estimates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_backfill("conservative", self.estimates, self.depth)

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Order: submission, then job id; every waiting job holds a reservation.",
            "A later job starts only if that moves no reservation of a job ahead.",
            "Reservations are planned anew, in order, at every decision.",
            f"The first {self.depth} waiting jobs are planned; those behind wait.",
            f"Estimates of run time: {self.estimates}; a job that outruns its estimate is taken to"
            " end at any moment.",
            "Nothing is preempted.",
        )

    def running_order(self, job: JobState, now: float) -> float:
        """Estimated end."""
        return job.finish_estimate_s()

    def explain(self, view: ClusterView, job: JobState) -> Reason:
        """Say when the job is to start, and that it may not start before those ahead."""
        reason = Policy.explain(self, view, job)
        if reason.code not in {"behind", "not_enough_gpus", "fragmented"}:
            return reason
        draft, booked = self.reservations(view, until=job)
        if job not in booked:
            ahead = view.waiting.ahead_of(job)
            return Reason(
                code="behind",
                text=f"behind {ahead} jobs ({self.ahead}); only the first {self.depth} are planned",
                facts={**reason.facts, "ahead": ahead, "depth": self.depth},
            )
        own_s = booked[job]
        own = None if own_s == INFINITY else own_s
        if reason.code == "behind":
            head = next(j for j in booked if j not in draft.changes)
            reason = delaying(reason, view, job, head, booked[head])
        text = reason.text + ("" if own is None else f"; its own reservation is at {own:g} s")
        return Reason(code=reason.code, text=text, facts={**reason.facts, "own_s": own})

    def plan(self, view: ClusterView) -> Draft:
        """Start the jobs whose reservation is now."""
        return self.reservations(view)[0]

    def reservations(
        self, view: ClusterView, until: JobState | None = None
    ) -> tuple[Draft, dict[JobState, float]]:
        """Return the plan, and the reserved instant (s) of each job that was planned.

        Planning stops behind the last job that may still start now; with ``until`` it goes on to
        that job.
        """
        draft = view.draft()
        booked: dict[JobState, float] = {}
        jobs = islice(view.waiting.walk(), self.depth)
        for head in jobs:  # nobody before it waits
            if not draft.start(head):
                break
            booked[head] = view.now
        else:
            return draft, booked
        if until is None and not any(draft.enough(shape) for shape in view.waiting.shapes):
            return draft, booked
        calendar = _calendar(view, draft)
        queue = [head, *jobs]
        last = len(queue) - 1
        for position, job in enumerate(queue):
            if until is None:
                while last >= position and not calendar.may_start(queue[last]):
                    last -= 1
                if last < position:
                    break
            booked[job] = calendar.book(job)
            if job is until:
                break
        return draft, booked


def _calendar(view: ClusterView, draft: Draft) -> Calendar | DeviceCalendar:
    plain = all(
        shape.waiting and counts(view, shape.waiting[0][2]) for shape in view.waiting.shapes
    )
    if plain and not any(pool.sharing for pool in draft.free.pools):
        return Calendar(view, draft)
    return DeviceCalendar(view, draft)


def _until(start_s: float, job: JobState, now: float) -> float:
    """Estimated end of a job that starts at ``start_s``, always after it."""
    return max(start_s + job.remaining_s(now), math.nextafter(start_s, INFINITY))


class Profile:
    """Free GPUs of one type over time: ``free[i]`` from ``times_s[i]`` to the next instant."""

    def __init__(self, now: float, free: int) -> None:
        self.times_s = [now]
        self.free = [free]
        self._first_s: dict[int, float] = {}  # by need: no room before this instant
        self._lasts_s: dict[int, float] = {}  # by need: the room there is now ends then

    def release(self, time_s: float, count: int) -> None:
        """``count`` GPUs become free at ``time_s``; instants in ascending order."""
        if time_s == self.times_s[-1]:
            self.free[-1] += count
        else:
            self.times_s.append(time_s)
            self.free.append(self.free[-1] + count)

    def earliest(self, need: int, job: JobState, now: float) -> float:
        """The first instant from which ``need`` GPUs stay free for the job's run; infinity: none.

        Room only shrinks as reservations are made, so a search begins where the last one for the
        same need first saw room.
        """
        times, free, last = self.times_s, self.free, len(self.times_s)
        start = bisect_left(times, self._first_s.get(need, times[0]))
        while start < last and free[start] < need:
            start += 1
        self._first_s[need] = times[start] if start < last else INFINITY
        left_s = job.remaining_s(now)
        while start < last:
            end_s = times[start] + left_s
            step = start + 1
            while step < last and times[step] < end_s and free[step] >= need:
                step += 1
            if step == last or times[step] >= end_s:
                return times[start]
            start = step + 1
            while start < last and free[start] < need:
                start += 1
        return INFINITY

    def lasts(self, need: int) -> float:
        """The instant at which there is first no room for ``need`` GPUs; infinity: never."""
        known = self._lasts_s.get(need)
        if known is None:
            short = (t for t, free in zip(self.times_s, self.free, strict=True) if free < need)
            known = self._lasts_s[need] = next(short, INFINITY)
        return known

    def take(self, start_s: float, end_s: float, count: int) -> None:
        """Reserve ``count`` GPUs over [start_s, end_s)."""
        self._lasts_s.clear()
        first = self._cut(start_s)
        for step in range(first, self._cut(end_s)):
            self.free[step] -= count

    def _cut(self, time_s: float) -> int:
        """Make ``time_s`` an instant of the profile; its position."""
        step = bisect_right(self.times_s, time_s) - 1
        if self.times_s[step] == time_s:
            return step
        self.times_s.insert(step + 1, time_s)
        self.free.insert(step + 1, self.free[step])
        return step + 1


class Calendar:
    """Reservations by count: one profile per GPU type."""

    def __init__(self, view: ClusterView, draft: Draft) -> None:
        self.view = view
        self.draft = draft
        self.profiles = [Profile(view.now, pool.free) for pool in draft.free.pools]
        pool_of = draft.free.pool_of
        for end_s, job in ends(view, draft):
            allocation = draft.changes.get(job, job.allocation)
            assert allocation is not None
            pool = pool_of[allocation.shares[0][0]]
            if pool >= 0:
                self.profiles[pool].release(end_s, job.shape.num_gpus)

    def may_start(self, job: JobState) -> bool:
        """Whether there is room for its whole run from now on (there will not be more)."""
        end_s, need = _until(self.view.now, job, self.view.now), job.shape.num_gpus
        return any(self.profiles[index].lasts(need) >= end_s for index in job.shape.pools)

    def book(self, job: JobState) -> float:
        """Reserve the earliest room for a job, and start it if that is now."""
        now, need = self.view.now, job.shape.num_gpus
        start_s, pool = INFINITY, -1
        for index in job.shape.pools:
            at_s = self.profiles[index].earliest(need, job, now)
            if at_s < start_s:
                start_s, pool = at_s, index
        if pool < 0:
            return INFINITY  # not even if everything ended; it reserves nothing
        self.profiles[pool].take(start_s, _until(start_s, job, now), need)
        if start_s == now:
            gpu_type = self.draft.free.pools[pool].gpu_type
            allocation = place_on(self.view, job, self.draft.free, gpu_type)
            assert allocation is not None, f"{job} was counted in but found no devices"
            self.draft.put(job, allocation)
        return start_s


class DeviceCalendar:
    """Reservations of actual devices: one scratch index per instant.

    A job takes the devices its placement picks at an instant if they stay free for the whole run;
    if they do not, the placement picks once more among those that do.
    """

    def __init__(self, view: ClusterView, draft: Draft) -> None:
        self.view = view
        self.draft = draft
        self.times_s = [view.now]
        self.free: list[FreeGpus] = [draft.free.fork()]
        for end_s, job in ends(view, draft):
            allocation = draft.changes.get(job, job.allocation)
            assert allocation is not None
            if end_s != self.times_s[-1]:
                self.times_s.append(end_s)
                self.free.append(self.free[-1].twin())
            self.free[-1].give(allocation, job.request)

    def may_start(self, job: JobState) -> bool:
        """Whether there are enough GPUs by count now (there will not be more)."""
        return self._enough(job, self.free[0])

    def book(self, job: JobState) -> float:
        """Reserve the earliest room for a job, and start it if that is now."""
        now = self.view.now
        for step, start_s in enumerate(self.times_s):
            if not self._enough(job, self.free[step]):
                continue
            end_s = _until(start_s, job, now)
            last = bisect_left(self.times_s, end_s)
            allocation = self._devices(job, step, last)
            if allocation is not None:
                if last == len(self.times_s) or self.times_s[last] != end_s:
                    self.times_s.insert(last, end_s)
                    self.free.insert(last, self.free[last - 1].twin())
                for index in self.free[step:last]:
                    index.take(allocation, job.request)
                if start_s == now:
                    self.draft.put(job, allocation)
                return start_s
        return INFINITY

    @staticmethod
    def _enough(job: JobState, free: FreeGpus) -> bool:
        if job.request.gpu_milli != 1000 or job.request.num_gpus == 0:
            return True
        return any(free.pools[i].free >= job.shape.num_gpus for i in job.shape.pools)

    def _devices(self, job: JobState, step: int, last: int) -> Allocation | None:
        """Devices that are free at all of these steps, or None."""
        place, request = self.view.placement.place, job.request
        found = place(request, self.free[step])
        if found is None or self._lasts(found, job, step, last):
            return found
        common = self.free[step].twin()
        for later in self.free[step + 1 : last]:
            for node in later.written():
                common_mask = common.mask[node]
                gone = common_mask & ~later.mask[node]
                if gone:
                    common.withdraw(node, gone)
        found = place(request, common)
        if found is not None and self._lasts(found, job, step, last):
            return found
        return None

    def _lasts(self, found: Allocation, job: JobState, step: int, last: int) -> bool:
        return all(f.missing(found, job.request) is None for f in self.free[step + 1 : last])
