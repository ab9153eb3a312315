"""EasyScale's inter-job scheduler, repaired: one pass in order, giving each job its size.

At every event the GPUs of all elastic jobs are given out anew, first to whoever is expected to need
least service. Per job the pass asks a table of its class (``policies.inter.sizes``) for the size
that is worth most within what is left, so nothing enumerates plans. What is repaired:

- a job starts at the size it is worth, not at one GPU, and grows and shrinks in any steps,
- a size is the cheapest set of GPUs that is as fast, so no GPU is held without a logical worker,
- a running job changes its size of its own accord only if that repays the change: progress at the
  new rate, less what the change costs, over the time it is expected to go on (at most a horizon),
- whoever starts may take GPUs from those who come after it, never from those before it,
- what is expected of a job grows with what it has had, and it moves up while it ages; guaranteed
  GPUs (minP) are set aside before anything else, and a part of the cluster (``reserve``) for the
  least that jobs run on which are older than ``patience`` times their work left, in order of
  submission. So nobody waits for ever, however many shorter jobs keep coming.

Order: the key ``left x workers / (1 + age / (aging x left))``, with ``left`` the expected work left
in seconds at rate 1: the estimate, if the policy has one, else ``prior_s`` plus what it has done.
The keys of running jobs are multiplied by ``margin``, so that only a clearly shorter job displaces
one. Opportunistic jobs (``priority``) come after all others.

Left out: where GPUs stand, and what a reduction costs on the links between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import le
from typing import NamedTuple

from policies.inter.sizes import Counts, Size, Sizes, sizes_of
from policies.inter.targets import carry_out, room_of
from policies.plan import Draft
from policies.state import RUNNING, JobState
from policies.view import ClusterView

OPPORTUNISTIC = "opportunistic"


class Weights(NamedTuple):
    """The parameters of the pass (see ``easyscale``)."""

    prior_s: float
    horizon_s: float
    thrift: float
    margin: float
    aging: float
    patience: float
    reserve: float
    estimates: bool
    preferred: bool


class Wait(NamedTuple):
    """What the key of a job needs that does not change while it waits, or between two changes.

    ``late``: of the opportunistic class. ``left_s``: work left when it began to wait, or began the
    stay it is in (without estimates: what was expected then).
    """

    late: bool
    workers: int
    left_s: float


Claim = tuple[bool, float, int, JobState]
"""The place of a job in line: opportunistic jobs last, then by key, then by submission."""


def wait_of(job: JobState, weights: Weights) -> Wait:
    """What to remember of a job that has ``done_s`` of its work done."""
    workers = job.request.num_gpus if job.elastic is None else job.elastic.num_workers
    left_s = weights.prior_s + job.done_s
    if weights.estimates:
        left_s = max(job.estimate_s - job.done_s, 1.0)
    return Wait(job.job.priority == OPPORTUNISTIC, workers, left_s)


def left_s(job: JobState, now: float, weights: Weights) -> float:
    """Expected work left, in seconds at rate 1."""
    if weights.estimates:
        return max(job.remaining_s(now), 1.0)
    return weights.prior_s + job.progress_s(now)


class Pass:
    """One decision over one view.

    ``room``: GPUs by pool that are not given out yet. ``idle``: how many of these nobody holds.
    ``floors``: guaranteed GPUs set aside for jobs that have not had their turn.
    """

    def __init__(self, view: ClusterView, weights: Weights) -> None:
        self.view = view
        self.weights = weights
        self.cost_s = view.model.costs.rescale_s
        self.room = room_of(view)
        self.idle = [pool.free for pool in view.free.pools]
        self.floors: dict[JobState, Counts] = {}
        self.given: list[tuple[JobState, Counts]] = []
        self.gangs: list[JobState] = []
        self.blocked: set[int] = set()  # pools in which an old gang waits for room
        self.old: list[JobState] = []  # those that have lost their patience

    def run(self) -> Draft:
        """Give out everything, and return what changes."""
        hungry = self._hungry()
        if self._plenty(hungry):
            return self._uncontested(hungry)
        waiting = self._waiting_line()
        line = self._running_line(self.view.elastic.values() if waiting else hungry)
        if waiting:
            self._set_aside(job for *_, job in sorted(c for c in line if _guaranteed(c[3])))
            line += waiting
            self._set_aside(sorted((c[3] for c in waiting if _guaranteed(c[3])), key=_rank))
            self._set_aside_for_old()
        else:
            self._keep(hungry)
        line.sort()
        left = len(waiting)
        for _, _, _, job in line:
            if job.phase == RUNNING:
                self._running(job, contested=left > 0)
                continue
            left -= 1
            if job.elastic is None:
                self._gang(job)
            elif any(self.room) or job in self.floors:
                self._waiting(job, contested=left > 0)
        return carry_out(self.view, self.given, self.gangs)

    def running_line(self) -> list[Claim]:
        """The running elastic jobs in order, first in line first."""
        return sorted(self._running_line(self.view.elastic.values()))

    def _waiting_line(self) -> list[Claim]:
        now, aging, patience = self.view.now, self.weights.aging, self.weights.patience
        line: list[Claim] = []
        for shape in self.view.waiting.shapes:  # in no order: the line is sorted
            for _, rank, job in shape.waiting:
                wait: Wait = job.memory
                late, workers, left = wait
                span = aging * left
                key = left * workers * span / (span + now - job.job.submit_s)
                if now - job.job.submit_s > patience * left:
                    self.old.append(job)
                    key = 0.0 if job.elastic is None else key  # a gang gets all or nothing
                line.append((late, key, rank, job))
        return line

    def _running_line(self, jobs: Iterable[JobState]) -> list[Claim]:
        now, aging, margin = self.view.now, self.weights.aging, self.weights.margin
        patience = self.weights.patience
        grows = -1.0 if self.weights.estimates else 1.0
        line: list[Claim] = []
        for job in jobs:
            wait: Wait = job.memory
            late, workers, left = wait
            if now > job.begin_s:
                left = max(left + grows * (now - job.begin_s) * job.rate, 1.0)
            span = aging * left
            key = margin * left * workers * span / (span + now - job.job.submit_s)
            if now - job.job.submit_s > patience * left:
                self.old.append(job)
            line.append((late, key, job.rank, job))
        return line

    def _hungry(self) -> list[JobState]:
        """The running jobs that could use more, or other, GPUs than they have."""
        preferred = self.weights.preferred
        return [
            job
            for job in self.view.elastic.values()
            if job.held != sizes_of(job.kind, preferred=preferred).full
        ]

    def _plenty(self, hungry: Sequence[JobState]) -> bool:
        """Whether everybody who waits or could use more finds what he can use among idle GPUs."""
        idle, preferred = self.idle.copy(), self.weights.preferred
        if len(self.view.waiting) > sum(idle):
            return False
        for job in (*self.view.waiting, *hungry):
            if job.kind is None:
                return False
            full = sizes_of(job.kind, preferred=preferred).full
            held = job.held or (0,) * len(full)
            for pool, count in enumerate(full):
                idle[pool] -= max(0, count - held[pool])
                if idle[pool] < 0:
                    return False
        return True

    def _uncontested(self, hungry: Sequence[JobState]) -> Draft:
        """There is plenty, so the order does not matter."""
        self._keep(hungry)
        for job in self.view.waiting:
            self._waiting(job, contested=False)
        for job in hungry:
            self._running(job, contested=False)
        return carry_out(self.view, self.given, self.gangs)

    def _keep(self, hungry: Sequence[JobState]) -> None:
        """Nobody loses anything: all but the hungry keep what they have."""
        room = [pool.free for pool in self.view.free.pools]
        for job in hungry:
            for pool, count in enumerate(job.held):
                room[pool] += count
        self.room = room

    def _set_aside(self, jobs: Iterable[JobState]) -> None:
        """Keep the guaranteed GPUs of these jobs out of the room of others, as far as it goes.

        Where nobody waits nobody loses anything, and there is no need to.
        """
        for job in jobs:
            floor = self._floor(job)
            if floor is not None:
                self.floors[job] = floor
                self._take(floor, job.held)

    def _set_aside_for_old(self) -> None:
        """A part of each pool is for the least that old jobs run on, in order of submission."""
        if not self.weights.reserve:
            return
        budget = [int(self.weights.reserve * room) for room in self.room]
        first = True
        for job in sorted(self.old, key=_rank):
            if job.elastic is None or job in self.floors:
                continue
            floor = self._floor(job)
            if floor is None:
                continue
            if first or all(n <= b for n, b in zip(floor, budget, strict=True)):
                self.floors[job] = floor
                self._take(floor, job.held)
                budget = [b - n for n, b in zip(floor, budget, strict=True)]
                first = False
            if not any(b > 0 for b in budget):
                return

    def _floor(self, job: JobState) -> Counts | None:
        """The least that a job runs on, of what it has or of what is there."""
        elastic, kind = job.elastic, job.kind
        assert elastic is not None
        assert kind is not None
        limits = tuple(map(min, job.held, self.room)) if job.held else tuple(self.room)
        return _least(elastic.least_gpus, limits, kind.pools, mixes=elastic.mixes_types)

    def _take(self, counts: Counts, held: Counts) -> None:
        room, idle = self.room, self.idle
        for pool, count in enumerate(counts):
            room[pool] -= count
            have = held[pool] if held else 0
            idle[pool] = max(0, min(room[pool], idle[pool] + min(0, have - count)))

    def _give(self, job: JobState, counts: Counts) -> None:
        room, idle, held = self.room, self.idle, job.held
        for pool, count in enumerate(counts):
            room[pool] -= count
            have = held[pool] if held else 0
            idle[pool] = max(0, min(room[pool], idle[pool] + have - count))
        if counts != held and (held or any(counts)):
            self.given.append((job, counts))

    def _limits(self, job: JobState) -> Counts:
        """What is left for a job, with what was set aside for it."""
        floor = self.floors.pop(job, None)
        if floor is not None:
            for pool, count in enumerate(floor):
                self.room[pool] += count
        return tuple(self.room)

    def _running(self, job: JobState, *, contested: bool) -> None:
        room, held = self._limits(job), job.held
        assert job.kind is not None
        sizes = sizes_of(job.kind, preferred=self.weights.preferred)
        thrift = self.weights.thrift if contested else 0.0
        best = sizes.best(tuple(map(_within, room, held, self.idle)), thrift)
        if best is None:
            self._give(job, (0,) * len(held))
            return
        whole = all(map(le, held, room))
        keeps = whole and (best.counts == held or not self._repays(job, sizes, best, thrift))
        self._give(job, held if keeps else best.counts)

    def _repays(self, job: JobState, sizes: Sizes, best: Size, thrift: float) -> bool:
        """Whether a change of size repays what it costs."""
        weight = thrift * sizes.density
        left = left_s(job, self.view.now, self.weights)
        span_s = min(left / best.rate, self.weights.horizon_s)
        if span_s <= self.cost_s:
            return False
        worth = best.rate * (1.0 - self.cost_s / span_s) - weight * best.price
        return worth > sizes.rate(job.held) - weight * sizes.price(job.held) + 1e-9

    def _waiting(self, job: JobState, *, contested: bool) -> None:
        room = self._limits(job)
        assert job.kind is not None
        sizes = sizes_of(job.kind, preferred=self.weights.preferred)
        best = sizes.best(room, self.weights.thrift if contested else 0.0)
        if best is not None:
            self._give(job, best.counts)

    def _gang(self, job: JobState) -> None:
        """A rigid job starts as a gang; what does not fit and is old keeps later ones back."""
        count = max(1, job.request.num_gpus) if job.shape.pools else 0
        for pool in job.shape.pools:
            if self.room[pool] >= count and pool not in self.blocked:
                self._take(tuple(count if p == pool else 0 for p in range(len(self.room))), ())
                self.gangs.append(job)
                return
        age = self.view.now - job.job.submit_s
        if age > self.weights.aging * left_s(job, self.view.now, self.weights):
            self.blocked.update(job.shape.pools)


def _guaranteed(job: JobState) -> bool:
    return job.elastic is not None and job.elastic.min_gpus > 0


def _rank(job: JobState) -> int:
    return job.rank


def _within(room: int, held: int, idle: int) -> int:
    """How many GPUs of a pool a running job may have: its own and idle ones, if there is room."""
    return room if room < held + idle else held + idle


def _least(least: int, limits: Counts, pools: tuple[int, ...], *, mixes: bool) -> Counts | None:
    """So many GPUs within the limits: of one pool if there are, else of several if it may mix."""
    roomy = max(pools, key=lambda pool: limits[pool], default=None)
    if roomy is None:
        return None
    counts = [0] * len(limits)
    if limits[roomy] >= least:
        counts[roomy] = least
        return tuple(counts)
    if not mixes:
        return None
    for pool in pools:
        counts[pool] = min(limits[pool], least - sum(counts))
    return tuple(counts) if sum(counts) >= least else None
