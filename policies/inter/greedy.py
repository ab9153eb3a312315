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

from collections.abc import Iterable, Iterator
from typing import Any

from policies.contract import Policy
from policies.plan import Draft
from policies.queues import Entry, Shape, Walk
from policies.state import JobState
from policies.view import ClusterView


def admit(view: ClusterView, draft: Draft, *, blocks: bool) -> None:
    """Start waiting jobs in order; at a misfit stop (``blocks``) or pass on to the next."""
    if blocks:
        first = view.waiting.first()
        if first is None or not draft.start(first):
            return
        line = iter(view.waiting.walk())
        next(line)
        for job in line:
            if not draft.start(job):
                return
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
    if view.placement.by_count and not view.free.limited:
        by_pool: dict[int, list[Shape]] = {}
        for shape in view.waiting.shapes:
            request = shape.request
            if len(shape.pools) != 1 or request.gpu_milli != 1000 or request.single_node:
                break
            by_pool.setdefault(shape.pools[0], []).append(shape)
        else:
            for pool, shapes in by_pool.items():
                _Pass(policy, view, draft, pool, shapes).run()
            return
    _preempt_by_place(policy, view, draft)


class Tail:
    """Running jobs from the last in order upward, with their keys at this instant."""

    __slots__ = ("_more", "entries")

    def __init__(self, policy: Policy, view: ClusterView, pool: int | None) -> None:
        self.entries: list[Entry] = []
        self._more = self._upward(policy, view, pool)

    @staticmethod
    def _upward(policy: Policy, view: ClusterView, pool: int | None) -> Iterator[Entry]:
        now, pool_of, order = view.now, view.free.pool_of, policy.order
        if policy.orders_running:
            jobs: Iterator[JobState] = reversed(view.running)
            entries: Iterable[Entry] = ((order(job, now), job.rank, job) for job in jobs)
        else:
            entries = sorted(((order(j, now), j.rank, j) for j in view.running), reverse=True)
        for entry in entries:
            allocation = entry[2].allocation
            assert allocation is not None
            if pool is None or pool_of[allocation.shares[0][0]] == pool:
                yield entry

    def at(self, position: int) -> Entry | None:
        """The ``position``-th from the end, or None."""
        entries = self.entries
        while position >= len(entries):
            entry = next(self._more, None)
            if entry is None:
                return None
            entries.append(entry)
        return entries[position]


class _Pass:
    """One exact greedy pass over one pool, by count."""

    def __init__(
        self, policy: Policy, view: ClusterView, draft: Draft, pool: int, shapes: list[Shape]
    ) -> None:
        self.draft = draft
        self.free = draft.free.pools[pool].free
        self.tail = Tail(policy, view, pool)
        self.shapes = shapes
        self.next = [0] * len(shapes)  # position of each shape's first job not passed yet
        self.entered: list[JobState] = []

    def run(self) -> None:
        """Find who enters and who leaves, then tell the draft."""
        while True:
            leaver = self._leaver() if self.free < 0 else None
            index = self._enterer(leaver)
            if index is not None:
                shape = self.shapes[index]
                self.entered.append(shape.waiting[self.next[index]][2])
                self.next[index] += 1
                self.free -= shape.num_gpus
            elif leaver is not None:
                self._leave(leaver)
            else:
                break
        for job in self.entered:
            started = self.draft.start(job)
            assert started, f"{job} was counted in but found no devices"

    def _leaver(self) -> int:
        """Position in the tail of the first running job in order that no longer fits."""
        free, position = self.free, 0
        while True:
            entry = self.tail.at(position)
            assert entry is not None, "more GPUs entered than there are"
            free += entry[2].shape.num_gpus
            if free >= 0:
                return position
            position += 1

    def _enterer(self, leaver: int | None) -> int | None:
        """The shape whose next job is first in order among those that find enough GPUs."""
        best: Entry | None = None
        found = None
        if leaver is not None:
            best = self.tail.at(leaver)  # whoever enters must come before it
        for index, shape in enumerate(self.shapes):
            waiting = shape.waiting
            position = self.next[index]
            if position >= len(waiting):
                continue
            entry: Entry = waiting[position]
            if (best is None or entry < best) and self._finds_room(entry, shape.num_gpus):
                best, found = entry, index
        return found

    def _finds_room(self, entry: Entry, num_gpus: int) -> bool:
        room, position, tail = self.free, 0, self.tail
        while room < num_gpus:
            lower = tail.at(position)
            if lower is None or lower < entry:
                return False
            room += lower[2].shape.num_gpus
            position += 1
        return True

    def _leave(self, position: int) -> None:
        entry = self.tail.entries.pop(position)
        self.draft.stop(entry[2])
        self.free += entry[2].shape.num_gpus
        # Whoever comes before it in the order has been passed over for good.
        for index, shape in enumerate(self.shapes):
            self.next[index] = max(self.next[index], shape.waiting.bisect_right(entry))


def _preempt_by_place(policy: Policy, view: ClusterView, draft: Draft) -> None:
    """Walk the order; for a job without room, stop jobs from the low end until it is placed.

    Those whose devices it did not take stay, and those it displaced may go elsewhere.
    """
    tail = Tail(policy, view, None)
    displaced: list[Entry] = []
    walk = view.waiting.walk()
    for job in walk:
        if draft.start(job):
            continue
        victims = _make_room(job, draft, tail)
        if victims is None:
            walk.skip_shape()
        else:
            displaced.extend(victims)
    for _, _, job in sorted(displaced):
        draft.start(job)


def _make_room(job: JobState, draft: Draft, tail: Tail) -> list[Entry] | None:
    """Start a job in the place of later ones; those stopped, or None if that does not help."""
    assert job.entry is not None
    pools, pool_of = job.shape.pools, draft.free.pool_of
    victims: list[Entry] = []
    position = 0
    started = False
    while not started:
        lower = tail.at(position)
        if lower is None or lower < job.entry:
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
    for entry in gone:
        tail.entries.remove(entry)
    return gone
