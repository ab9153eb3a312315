"""The jobs in the order a policy declares: waiting jobs by shape, running jobs, due instants.

Jobs that ask for the same thing (a *shape*: request and group) wait in one sorted queue, because
what does not fit one of them fits none of them at that instant. A decision therefore looks at the
heads of a few shapes, however long the backlog is. Entries are ``(key, rank, job)``; ranks are
unique, so jobs are never compared.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace, merge
from typing import Any

from policies.ordered import Ordered
from policies.state import JobState
from traces import Request

Entry = tuple[Any, int, JobState]


class Shape:
    """Jobs that are alike to a placement: their request, their group, and those that wait."""

    __slots__ = (
        "countable",
        "gpus",
        "group",
        "milli",
        "num_gpus",
        "pools",
        "request",
        "waiting",
        "whole",
    )

    def __init__(self, request: Request, group: str | None, pools: tuple[int, ...]) -> None:
        self.request = request
        self.group = group
        self.num_gpus = request.num_gpus
        self.gpus = request.gpus
        self.milli = request.num_gpus * request.gpu_milli
        self.whole = request.num_gpus > 0 and request.gpu_milli == 1000
        # Whether it fits is a matter of counting one pool's free GPUs (if placement is by count).
        self.countable = self.whole and len(pools) == 1 and not request.single_node
        self.pools = pools  # indices of the pools it may run in
        self.waiting = Ordered()

    def __repr__(self) -> str:
        of = "" if self.group is None else f" of {self.group}"
        return f"<{self.request}{of}: {len(self.waiting)} waiting>"


class WaitingJobs:
    """Waiting jobs in the policy's order."""

    __slots__ = ("_count", "_heads", "_milli", "shapes")

    def __init__(self) -> None:
        self.shapes: list[Shape] = []  # those with somebody waiting, in order of first need
        self._count = 0
        self._milli = 0
        self._heads: list[Entry] = []  # the first of each shape, in order

    @classmethod
    def of(cls, shapes: Iterable[Shape]) -> WaitingJobs:
        """Return the jobs of some shapes, to be read only: the queues stay those of the shapes."""
        some = cls()
        some.shapes = list(shapes)
        some._heads = sorted(s.waiting[0] for s in some.shapes)
        some._count = sum(len(s.waiting) for s in some.shapes)
        some._milli = sum(len(s.waiting) * s.milli for s in some.shapes)
        return some

    def __len__(self) -> int:
        return self._count

    @property
    def gpus(self) -> float:
        """GPUs asked for by all of them (shares as fractions)."""
        return self._milli / 1000

    def __iter__(self) -> Iterator[JobState]:
        """All waiting jobs in order."""
        shapes = self.shapes
        if len(shapes) == 1:
            return (entry[2] for entry in shapes[0].waiting)
        return (entry[2] for entry in merge(*(s.waiting for s in shapes)))

    def first(self) -> JobState | None:
        """The first job in order, or None."""
        return self._heads[0][2] if self._heads else None

    def after(self, job: JobState) -> JobState | None:
        """The next waiting job in order behind this one, which waits too, or None."""
        before = job.entry
        assert before is not None
        best: Entry | None = None
        for head in self._heads:
            if best is not None and best < head:
                break
            entry = head
            if not before < head:
                waiting = head[2].shape.waiting
                place = bisect_right(waiting.items, before, waiting.head)
                if place == len(waiting.items):
                    continue
                entry = waiting.items[place]
            if best is None or entry < best:
                best = entry
        return None if best is None else best[2]

    def walk(self) -> Walk:
        """Iterate in order with the possibility to leave a shape out from here on."""
        return Walk(self.shapes)

    def ahead_of(self, job: JobState) -> int:
        """How many waiting jobs come before this one."""
        assert job.entry is not None
        return sum(shape.waiting.bisect_left(job.entry) for shape in self.shapes)

    def add(self, job: JobState, key: Any) -> None:
        """Enter a job under its key."""
        shape = job.shape
        waiting = shape.waiting
        items = waiting.items
        job.entry = entry = (key, job.rank, job)
        if len(items) == waiting.head:
            self.shapes.append(shape)
            items.append(entry)
            insort(self._heads, entry)
        elif items[-1] < entry:
            items.append(entry)
        else:
            head = items[waiting.head]
            waiting.add(entry)
            if entry < head:
                self._replace(head, entry)
        self._count += 1
        self._milli += shape.milli

    def remove(self, job: JobState) -> None:
        """Take a job out."""
        shape = job.shape
        waiting = shape.waiting
        entry = job.entry
        assert entry is not None
        head = waiting.items[waiting.head]
        waiting.remove(entry)
        if len(waiting.items) == waiting.head:
            self._replace(head, None)
            self.shapes.remove(shape)
        elif head is entry:
            self._replace(head, waiting.items[waiting.head])
        job.entry = None
        self._count -= 1
        self._milli -= shape.milli

    def _replace(self, old: Entry, new: Entry | None) -> None:
        """The first of a shape is another, or there is none."""
        heads = self._heads
        del heads[0 if heads[0] is old else bisect_left(heads, old)]
        if new is not None:
            insort(heads, new)


class Walk:
    """A pass over waiting jobs in order; ``skip_shape()`` leaves out all jobs like the last one.

    Draws jobs one by one from the heads of the shapes, so a pass costs what it visits. ``after``:
    begin behind this entry.
    """

    __slots__ = ("_heap", "_last")

    def __init__(self, shapes: list[Shape], after: Entry | None = None) -> None:
        if after is None:
            self._heap: list[tuple[Entry, Shape, int]] = [
                (s.waiting.items[s.waiting.head], s, 0) for s in shapes
            ]
        else:
            places = [(s, s.waiting.bisect_right(after)) for s in shapes]
            self._heap = [(s.waiting[i], s, i) for s, i in places if i < len(s.waiting)]
        heapify(self._heap)
        self._last = False

    def __iter__(self) -> Iterator[JobState]:
        return self

    def __next__(self) -> JobState:
        heap = self._heap
        if self._last:
            _, shape, position = heap[0]
            position += 1
            queue = shape.waiting
            place = queue.head + position
            if place < len(queue.items):
                heapreplace(heap, (queue.items[place], shape, position))
            else:
                heappop(heap)
            self._last = False
        if not heap:
            raise StopIteration
        self._last = True
        return heap[0][0][2]

    def skip_shape(self) -> None:
        """Leave out the shape of the job last returned."""
        if self._last:
            heappop(self._heap)
            self._last = False


class RunningJobs:
    """Running jobs: in the order the policy declares for them, else in order of their start."""

    __slots__ = ("_milli", "members", "order")

    def __init__(self, *, ordered: bool) -> None:
        self.order = Ordered() if ordered else None
        self.members: dict[int, JobState] = {}
        self._milli = 0

    @classmethod
    def of(cls, jobs: Iterable[JobState], whole: RunningJobs) -> RunningJobs:
        """Return some of the jobs of ``whole``, given in its order; to be read only."""
        some = cls(ordered=whole.order is not None)
        some.members = {job.rank: job for job in jobs}
        if some.order is not None:
            some.order.items = [job.entry for job in some.members.values()]
        some._milli = sum(job.shape.milli for job in some.members.values())
        return some

    def __len__(self) -> int:
        return len(self.members)

    @property
    def gpus(self) -> float:
        """GPUs held by all of them (shares as fractions)."""
        return self._milli / 1000

    def __iter__(self) -> Iterator[JobState]:
        """Running jobs, first in order first."""
        if self.order is None:
            return iter(self.members.values())
        return (entry[2] for entry in self.order)

    def __reversed__(self) -> Iterator[JobState]:
        """Running jobs, last in order first."""
        if self.order is None:
            return reversed(self.members.values())
        return (entry[2] for entry in reversed(self.order))

    def add(self, job: JobState, key: Any) -> None:
        """Enter a job under its key (ignored where no order is declared)."""
        self.members[job.rank] = job
        if self.order is not None:
            job.entry = entry = (key, job.rank, job)
            self.order.add(entry)
        self._milli += job.shape.milli

    def remove(self, job: JobState) -> None:
        """Take a job out."""
        del self.members[job.rank]
        if self.order is not None:
            self.order.remove(job.entry)
            job.entry = None
        self._milli -= job.shape.milli


class DueTimes:
    """Instants at which a job's place in the order changes by itself; stale ones are skipped."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, JobState]] = []

    def set(self, job: JobState, time_s: float) -> None:
        """Remember that ``job`` changes at ``time_s`` (infinity: never)."""
        job.due = time_s
        if time_s != float("inf"):
            heappush(self._heap, (time_s, job.rank, job))

    def next_s(self) -> float:
        """The earliest instant at which some job changes, or infinity."""
        heap = self._heap
        while heap and heap[0][2].due != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else float("inf")

    def pop(self, now: float) -> Iterator[JobState]:
        """Yield the jobs that change at or before ``now``."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            time_s, _, job = heappop(heap)
            if job.due == time_s:
                job.due = float("inf")
                yield job
