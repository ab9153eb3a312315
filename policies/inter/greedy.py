"""Serve jobs in order of priority: the engine under every priority policy.

``admit`` starts waiting jobs in order and stops none. ``preempt`` gives the cluster to the jobs
that come first in the order, running or waiting: it is the greedy pass "walk all jobs in order,
keep or start what still fits, skip what does not", done without walking all jobs.

Why that is possible. Between two decisions a running job only moves forward in the order (or its
change is an event), so those that run would be chosen again unless something ahead of them
changed. Jobs of one shape fit or do not fit together, so only the first of each shape can be the
next to enter. With ``free`` GPUs unused, a waiting job at place ``h`` of the order finds
``free + (GPUs of running jobs after h)``. The first shape head that finds enough enters; while
``free`` is negative, the first running job that no longer fits leaves; both are found from the low
end of the running order, so a decision costs about what it changes.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from operator import itemgetter
from typing import Any

from policies.contract import Policy
from policies.plan import Draft
from policies.queues import Entry, Shape, Walk
from policies.state import JobState
from policies.view import ClusterView


def admit(view: ClusterView, draft: Draft, *, blocks: bool) -> None:
    """Start waiting jobs in order; at a misfit stop (``blocks``) or pass on to the next."""
    if blocks:
        waiting = view.waiting
        job = waiting.first()
        while job is not None and draft.start(job):
            job = waiting.after(job)
        return
    fitting = [shape for shape in view.waiting.shapes if draft.enough(shape)]
    if not fitting:
        return
    walk = Walk(fitting)
    for job in walk:
        if not draft.start(job):
            walk.skip_shape()


def preempt(policy: Policy, view: ClusterView, draft: Draft) -> None:
    """Give the cluster to the first in order, stopping running jobs that come later.

    Exact by count where placement is by count and every shape has one pool; otherwise devices
    are looked for on scratch indices (see :func:`_preempt_by_place`).
    """
    if not view.waiting:
        return
    shapes = view.waiting.shapes
    if _by_count(view, shapes):
        if len(view.free.pools) == 1:
            _Pass(policy, view, draft, 0, shapes).run()
            return
        for pool in sorted({shape.pools[0] for shape in shapes}):
            here = [shape for shape in shapes if shape.pools[0] == pool]
            _Pass(policy, view, draft, pool, here).run()
        return
    _preempt_by_place(policy, view, draft)


def _by_count(view: ClusterView, shapes: list[Shape]) -> bool:
    """Whether counting wholly free GPUs decides what fits, now and after any running job ends."""
    free = view.free
    if not view.placement.by_count or free.limited:
        return False
    for shape in shapes:
        if not shape.countable:
            return False
    for pool in free.pools:
        if pool.sharing:
            return False
    return True


class Tail:
    """Running jobs from the last in order upward, with their keys at this instant.

    ``entries`` holds those looked at so far; ``more()`` adds the next, or says there is none.
    """

    __slots__ = ("_head", "_items", "_now", "_order", "_place", "_pool", "_pool_of", "entries")

    def __init__(self, policy: Policy, view: ClusterView, pool: int | None) -> None:
        self.entries: list[Entry] = []
        self._now, self._order, self._pool_of = view.now, policy.order, view.free.pool_of
        self._pool = None if len(view.free.pools) == 1 else pool
        queue = view.running.order
        if queue is not None and (view.steady or not policy.orders_by_work):
            self._items, self._head = queue.items, queue.head
        else:
            order, now = self._order, self._now
            self._items, self._head = sorted((order(j, now), j.rank, j) for j in view.running), 0
        self._place = len(self._items)

    def more(self) -> bool:
        """Look at one more."""
        while self._place > self._head:
            self._place -= 1
            job: JobState = self._items[self._place][2]
            if self._pool is not None:
                assert job.allocation is not None
                if self._pool_of[job.allocation.shares[0][0]] != self._pool:
                    continue
            self.entries.append((self._order(job, self._now), job.rank, job))
            return True
        return False

    def at(self, position: int) -> Entry | None:
        """The ``position``-th from the end, or None."""
        while position >= len(self.entries):
            if not self.more():
                return None
        return self.entries[position]


class _Pass:
    """One exact greedy pass over one pool, by count.

    ``rivals`` are the shapes whose next job may still enter: ``[entry, GPUs, shape, place in its
    waiting.items]``.
    Once the next of a shape has found too little it stays out, until somebody leaves behind it.
    """

    __slots__ = ("draft", "entered", "free", "rivals", "shapes", "tail")

    def __init__(
        self, policy: Policy, view: ClusterView, draft: Draft, pool: int, shapes: list[Shape]
    ) -> None:
        self.draft = draft
        # Running elastic jobs hold fewer or more GPUs than they asked for: what leaves is `gpus`.
        self.free: float = draft.free.pools[pool].free
        self.tail = Tail(policy, view, pool)
        self.entered: list[JobState] = []
        self.shapes = shapes
        self.rivals: list[list[Any]] = []
        last, free = self.tail.at(0), self.free
        for shape in shapes:
            waiting = shape.waiting
            entry = waiting.items[waiting.head]
            if free >= shape.num_gpus or (
                last is not None and entry < last and self._finds_room(entry, shape.num_gpus)
            ):
                self.rivals.append([entry, shape.num_gpus, shape, waiting.head])

    def run(self) -> None:
        """Find who enters and who leaves, then tell the draft."""
        while self.rivals or self.free < 0:
            leaver = self._leaver() if self.free < 0 else None
            rival = self._first_rival(leaver)
            if rival is not None:
                self._enter(rival)
            elif leaver is not None:
                self._leave(leaver)
        for job in self.entered:
            started = self.draft.start(job)
            assert started, f"{job} was counted in but found no devices"

    def _finds_room(self, entry: Entry, num_gpus: int) -> bool:
        """Whether free GPUs and those of running jobs behind ``entry`` are enough."""
        room = self.free
        if room >= num_gpus:
            return True
        tail = self.tail
        for lower in tail.entries:
            if lower < entry:
                return False
            room += lower[2].gpus
            if room >= num_gpus:
                return True
        while tail.more():
            lower = tail.entries[-1]
            if lower < entry:
                return False
            room += lower[2].gpus
            if room >= num_gpus:
                return True
        return False

    def _leaver(self) -> int:
        """Position in the tail of the first running job in order that no longer fits."""
        free, tail = self.free, self.tail
        for position, entry in enumerate(tail.entries):
            free += entry[2].gpus
            if free >= 0:
                return position
        while free < 0:
            more = tail.more()
            assert more, "more GPUs entered than there are"
            free += tail.entries[-1][2].gpus
        return len(tail.entries) - 1

    def _first_rival(self, leaver: int | None) -> list[Any] | None:
        """The first in order among those that still find room, if it comes before ``leaver``."""
        free = self.free
        rivals = [r for r in self.rivals if free >= r[1] or self._finds_room(r[0], r[1])]
        self.rivals = rivals
        if not rivals:
            return None
        first = min(rivals, key=itemgetter(0)) if len(rivals) > 1 else rivals[0]
        if leaver is not None and self.tail.entries[leaver] < first[0]:
            return None
        return first

    def _enter(self, rival: list[Any]) -> None:
        entry, num_gpus, shape, position = rival
        self.entered.append(entry[2])
        self.free -= num_gpus
        position += 1
        items = shape.waiting.items
        if position < len(items):
            rival[0], rival[3] = items[position], position
        else:
            self.rivals.remove(rival)

    def _leave(self, position: int) -> None:
        entry = self.tail.entries.pop(position)
        self.draft.stop(entry[2])
        free = self.free = self.free + entry[2].gpus
        # Whoever comes before it has been passed over for good; behind it there is room again.
        self.rivals = []
        last = self.tail.at(0)
        for shape in self.shapes:
            waiting = shape.waiting
            if free < shape.num_gpus and (last is None or last < entry):
                continue
            items = waiting.items
            behind = bisect_right(items, entry, waiting.head)
            if behind < len(items):
                self.rivals.append([items[behind], shape.num_gpus, shape, behind])


def _preempt_by_place(policy: Policy, view: ClusterView, draft: Draft) -> None:
    """Walk the order; for a job without room, stop jobs from the low end until it is placed.

    Those whose devices it did not take stay. Those it displaced are looked after when their own
    turn comes: they go elsewhere if there is room, and may take that of later ones as well.
    """
    tail = Tail(policy, view, None)
    displaced: list[Entry] = []
    walk = view.waiting.walk()
    for job in walk:
        entry = job.entry
        assert entry is not None
        while displaced and displaced[0] < entry:
            _seat(heappop(displaced), draft, tail, displaced)
        if not _seat(entry, draft, tail, displaced):
            walk.skip_shape()
    while displaced:
        _seat(heappop(displaced), draft, tail, displaced)


def _seat(entry: Entry, draft: Draft, tail: Tail, displaced: list[Entry]) -> bool:
    """Start a job, if need be in the place of later ones, which are then displaced."""
    if draft.start(entry[2]):
        return True
    victims = _make_room(entry, draft, tail)
    if victims is None:
        return False
    for victim in victims:
        heappush(displaced, victim)
    return True


def _make_room(entry: Entry, draft: Draft, tail: Tail) -> list[Entry] | None:
    """Start a job in the place of later ones; those stopped, or None if that does not help."""
    job = entry[2]
    pools, pool_of = job.shape.pools, draft.free.pool_of
    victims: list[Entry] = []
    position = 0
    started = False
    while not started:
        lower = tail.at(position)
        if lower is None or lower < entry:
            break
        position += 1
        held: Any = lower[2].allocation
        if pool_of[held.shares[0][0]] in pools or job.request.num_gpus == 0:
            draft.stop(lower[2])
            victims.append(lower)
            started = draft.start(job)
    gone = [v for v in reversed(victims) if not draft.keep(v[2])]  # first in order first
    if not started:
        assert not gone
        return None
    for victim in gone:
        tail.entries.remove(victim)
    return gone
