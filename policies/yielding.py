"""Who gives way to an online service: the jobs to which it costs least.

Jobs give way in this order, each only as far as it takes:

1. opportunistic elastic jobs shrink, down to the fewest GPUs they may have,
2. opportunistic jobs stop (they wait again; nothing fails), if no GPU is guaranteed to them,
3. guaranteed elastic jobs shrink, down to their guaranteed GPUs,
4. guaranteed elastic jobs stop, likewise.

A job is opportunistic if its ``priority`` says so, and guaranteed otherwise. Guaranteed GPUs
(``min_gpus``) and the GPUs of guaranteed rigid jobs are never taken: beyond that the service waits.

Within a step the fewest jobs are touched: of those that can give all that is wanted the one that
loses least progress, then who started or was resized last; else the one that can give most.

Pure functions of the view. EasyScale (SC'23) says that its jobs scale in for online services, not
which; the rule is ours, and a policy may have its own (``Policy.give_way``). Left out: shares of a
GPU (they stay), and where the service would like its GPUs to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from policies.inter.sizes import sizes_of
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView

OPPORTUNISTIC = "opportunistic"


@dataclass(slots=True)
class _Giving:
    """Who gives how many GPUs of a pool, so far, and who stops."""

    view: ClusterView
    pool: int
    wanted: int
    gives: dict[JobState, int] = field(default_factory=dict)
    stops: dict[JobState, bool] = field(default_factory=dict)

    def left(self, job: JobState) -> int:
        """GPUs of the pool that a job would still have."""
        if job in self.stops:
            return 0
        return _held(self.view, job, self.pool) - self.gives.get(job, 0)

    def spare(self, job: JobState) -> int:
        """GPUs of the pool by which an elastic job can still shrink."""
        assert job.elastic is not None
        total = sum(job.held) - self.gives.get(job, 0)
        return min(self.left(job), total - job.elastic.least_gpus)

    def loss(self, job: JobState, count: int) -> float:
        """Progress that is lost without ``count`` more GPUs, in GPUs at full speed."""
        if job.kind is None or job.elastic is None:
            return float(job.request.num_gpus)
        rate = sizes_of(job.kind).rate
        gone = self.gives.get(job, 0)
        lost = rate(self._held_without(job, gone)) - rate(self._held_without(job, gone + count))
        return lost * job.elastic.num_workers

    def _held_without(self, job: JobState, count: int) -> tuple[int, ...]:
        return tuple(n - count if p == self.pool else n for p, n in enumerate(job.held))

    def shrink(self, offers: Iterable[tuple[JobState, int]]) -> None:
        """Take from jobs that go on."""
        for job, count in self._asked(offers):
            self.gives[job] = self.gives.get(job, 0) + count

    def stop(self, offers: Iterable[tuple[JobState, int]]) -> None:
        """Take from jobs that stop."""
        for job, _ in self._asked(offers):
            self.stops[job] = True

    def _asked(self, offers: Iterable[tuple[JobState, int]]) -> Iterator[tuple[JobState, int]]:
        """The jobs to ask, best first, and how many GPUs of each are used."""
        if self.wanted <= 0:
            return
        open_offers = dict(offers)
        place = {job: at for at, job in enumerate(open_offers)}
        while self.wanted > 0 and open_offers:
            wanted = self.wanted
            enough = [job for job, count in open_offers.items() if count >= wanted]
            if enough:
                job = min(enough, key=lambda j: (self.loss(j, wanted), open_offers[j], -place[j]))
            else:
                job = max(open_offers, key=lambda j: (open_offers[j], place[j]))
            count = min(open_offers.pop(job), wanted)
            self.wanted -= count
            yield job, count

    def plan(self) -> Draft:
        """The plan in which they do."""
        draft = self.view.draft()
        for job in self.stops:
            draft.stop(job)
        for job, count in self.gives.items():
            if job not in self.stops and not draft.resize(job, self._held_without(job, count)):
                draft.stop(job)  # what is left of it has no place, though it had one
        return draft


def give_way(
    view: ClusterView, pool: int, count: int, order: Iterable[JobState] | None = None
) -> Draft:
    """Return a plan by which jobs leave ``count`` GPUs of a pool, or as many as may be taken.

    With ``order``, who comes first gives first, and as much as is needed: elastic jobs down to what
    is guaranteed to them, rigid ones as a whole, if opportunistic. Without, as this file says.
    """
    giving = _Giving(view, pool, count - view.free.pools[pool].free)
    if order is not None:
        _in_order(giving, order)
        return giving.plan()
    for late in (True, False):
        elastic = [job for job in view.elastic.values() if _late(job) == late]
        giving.shrink((job, n) for job in elastic if (n := giving.spare(job)) > 0)
        whole = [job for job in view.running.members.values() if _may_stop(job, late=late)]
        giving.stop((job, n) for job in whole if (n := giving.left(job)) > 0)
    return giving.plan()


def _in_order(giving: _Giving, order: Iterable[JobState]) -> None:
    for job in order:
        late = _late(job)
        if giving.wanted <= 0:
            return
        if job.elastic is not None and giving.spare(job) >= min(giving.wanted, giving.left(job)):
            giving.shrink([(job, min(giving.spare(job), giving.wanted))])
        elif _may_stop(job, late=late) and giving.left(job) > 0:
            giving.stop([(job, giving.left(job))])
        elif job.elastic is not None and giving.spare(job) > 0:
            giving.shrink([(job, giving.spare(job))])


def _late(job: JobState) -> bool:
    return job.job.priority == OPPORTUNISTIC


def _may_stop(job: JobState, *, late: bool) -> bool:
    """Whether a job that is opportunistic (``late``) or not may be stopped for a service."""
    if _late(job) != late or job.request.gpu_milli != 1000:
        return False
    return late if job.elastic is None else not job.elastic.min_gpus


def _held(view: ClusterView, job: JobState, pool: int) -> int:
    if job.elastic is not None:
        return job.held[pool] if job.held else 0
    assert job.allocation is not None
    pool_of = view.free.pool_of
    return sum(mask.bit_count() for node, mask in job.allocation.shares if pool_of[node] == pool)
