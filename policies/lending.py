"""Devices lent to an online service: it gets what it needs at once, and training gives way.

The service's demand is a number of GPUs of one type that changes with time. What it owns leaves
the free index. When the demand rises it takes, in this order: devices it gave back a moment ago and
that nobody has had since, idle devices, and devices that jobs give up (:func:`give_way`), which it
can use after the time that a job may take to leave. What is still missing it gets before anybody
else, as soon as something is free. When the demand falls devices stay unused for a while, so that a
demand that rises again at once disturbs nobody; then training gets them back.

Source: EasyScale (SC'23), section 5.3 (elastic training beside serving: scale-in in seconds, refill
within minutes). Left out: which machine a service prefers, and its own load on a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import filterfalse
from typing import TYPE_CHECKING

from policies.books import NAN, Recorder
from policies.clock import CAPACITY, Clock
from policies.placement.count import take_lowest
from policies.plan import Draft, Plan
from policies.state import JobState
from policies.view import ClusterView, LiveView
from traces.cluster import gpus_of
from traces.runlog import EVENT_CODE, LOAN_SOURCES, NEVER_LENT

if TYPE_CHECKING:
    from policies.contract import Policy

DEMAND, LENT, GIVEN_BACK = (
    EVENT_CODE[k] for k in ("serving_demand", "device_lent", "device_given_back")
)
LINGERING, IDLE, RECLAIMED = (LOAN_SOURCES.index(s) for s in ("lingering", "idle", "reclaimed"))
OPPORTUNISTIC = "opportunistic"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingDemand:
    """From now on the service needs so many GPUs of a type.

    ``give_way_s``: how long a job may take to leave a device. ``linger_s``: how long a device that
    the service no longer needs stays unused before training gets it back.
    """

    gpu_type: str
    gpus: int
    give_way_s: float = 0.0
    linger_s: float = 0.0


@dataclass(slots=True)
class _Loan:
    """One device of the service: when it was asked for, when it could be used, where it is from."""

    asked_s: float
    ready_s: float
    source: int


class Lender:
    """Keeps the service's devices of one run. ``apply`` carries out a plan, ``ask`` a decision."""

    def __init__(
        self,
        clock: Clock,
        view: LiveView,
        policy: Policy,
        log: Recorder,
        apply: Callable[[Plan], None],
        ask: Callable[[], None],
    ) -> None:
        self.clock = clock
        self.view = view
        self.policy = policy
        self.log = log
        self._apply = apply
        self._ask = ask
        pools = len(view.free.pools)
        self.owned: list[dict[tuple[int, int], _Loan]] = [{} for _ in range(pools)]
        self.missing: list[deque[float]] = [deque() for _ in range(pools)]
        self._lingering: list[dict[tuple[int, int], float]] = [{} for _ in range(pools)]
        self._latest: list[ServingDemand | None] = [None] * pools

    @property
    def short(self) -> bool:
        """Whether the service waits for devices."""
        return any(self.missing)

    def demand(self, demand: ServingDemand) -> None:
        """Take in a new demand."""
        view = self.view
        pool = next(p.index for p in view.free.pools if p.gpu_type == demand.gpu_type)
        self._latest[pool] = demand
        text = f"{demand.gpus} {demand.gpu_type}"
        self.log.device_event(view.now, DEMAND, -1, 0, text)
        more = demand.gpus - len(self.owned[pool]) - len(self.missing[pool])
        if more > 0:
            self.missing[pool].extend([view.now] * more)
            self._take(pool)
            if self.missing[pool]:
                self._reclaim(pool)
        elif more < 0:
            self._let_go(pool, -more)

    def serve(self) -> None:
        """Give the service what has become free, before anybody else."""
        for pool, missing in enumerate(self.missing):
            if missing:
                self._take(pool)

    def lose(self, node: int, mask: int) -> int:
        """Devices fail: the service asks for others. Return those it had of them (a mask)."""
        pool = self.view.free.pool_of[node]
        if pool < 0:
            return 0
        had = 0
        for gpu in gpus_of(mask):
            if (node, gpu) in self.owned[pool]:
                self._close(pool, (node, gpu))
                self.missing[pool].append(self.view.now)
                had |= 1 << gpu
            elif self._lingering[pool].pop((node, gpu), None) is not None:
                had |= 1 << gpu
        return had

    def replace(self) -> None:
        """After a loss: take what is free, and have jobs give way for the rest."""
        for pool, missing in enumerate(self.missing):
            if missing:
                self._take(pool)
            if missing:
                self._reclaim(pool)

    def close(self) -> None:
        """Write what is still open at the end of the run."""
        for pool, owned in enumerate(self.owned):
            for device in list(owned):
                self._close(pool, device)
            self._cancel(pool, len(self.missing[pool]))

    # Taking

    def _take(self, pool: int, source: int = IDLE) -> None:
        """Lend what is there: first what lingers, then what is free."""
        view, missing, lingering = self.view, self.missing[pool], self._lingering[pool]
        while missing and lingering:
            device, _ = lingering.popitem()
            self._own(pool, device, view.now, LINGERING)
        free = view.free.pools[pool]
        count = min(len(missing), free.free)
        if not count:
            return
        latest = self._latest[pool]
        wait_s = latest.give_way_s if latest is not None and source == RECLAIMED else 0.0
        for node, mask in take_lowest(free, view.free, count):
            view.withdraw(node, mask)
            self.log.device_event(view.now, LENT, node, mask, LOAN_SOURCES[source])
            for gpu in gpus_of(mask):
                self._own(pool, (node, gpu), view.now + wait_s, source)

    def _own(self, pool: int, device: tuple[int, int], ready_s: float, source: int) -> None:
        self.owned[pool][device] = _Loan(self.missing[pool].popleft(), ready_s, source)

    def _reclaim(self, pool: int) -> None:
        """Have jobs give way, and lend what they leave."""
        plan = self.policy.give_way(self.view, pool, len(self.missing[pool]))
        if plan.changes:
            self._apply(plan)
        self._take(pool, RECLAIMED)

    # Giving back

    def _let_go(self, pool: int, count: int) -> None:
        """The demand has fallen: first who waits is sent away, then devices are given back."""
        count -= self._cancel(pool, count)
        if not count:
            return
        latest = self._latest[pool]
        assert latest is not None
        for _ in range(count):
            device = next(reversed(self.owned[pool]))
            self._close(pool, device)
            self._lingering[pool][device] = self.view.now + latest.linger_s
        if latest.linger_s:
            self.clock.at(self.view.now + latest.linger_s, CAPACITY, lambda _: self._refill(pool))
        else:
            self._refill(pool)

    def _cancel(self, pool: int, count: int) -> int:
        """Those that waited longest in vain are of no more use: the latest asked go first."""
        missing = self.missing[pool]
        gone = min(count, len(missing))
        for _ in range(gone):
            asked_s = missing.pop()
            self.log.loan(pool, -1, -1, asked_s, NAN, self.view.now, NEVER_LENT)
        return gone

    def _refill(self, pool: int) -> None:
        """Training gets back what has lingered long enough."""
        view = self.view
        view.now = now = self.clock.now
        masks: dict[int, int] = {}
        for (node, gpu), until_s in list(self._lingering[pool].items()):
            if until_s <= now:
                del self._lingering[pool][node, gpu]
                masks[node] = masks.get(node, 0) | 1 << gpu
        for node in sorted(masks):
            view.restore(node, masks[node])
            self.log.device_event(now, GIVEN_BACK, node, masks[node], None)
        if masks:
            self._ask()

    def _close(self, pool: int, device: tuple[int, int]) -> None:
        loan = self.owned[pool].pop(device)
        end_s = self.view.now
        ready_s = loan.ready_s if loan.ready_s <= end_s else NAN  # it never could be used
        self.log.loan(pool, *device, loan.asked_s, ready_s, end_s, loan.source)


def give_way(
    view: ClusterView, pool: int, count: int, order: Iterable[JobState] | None = None
) -> Draft:
    """Return a plan by which jobs leave ``count`` GPUs of a pool, or as many as may be taken.

    Who comes first in ``order`` gives first, and as much as is needed: elastic jobs down to what is
    guaranteed to them (``min_gpus``), which nobody takes; rigid ones as a whole, if opportunistic.
    By default opportunistic jobs come first, and among equals who started or was resized last.
    """
    draft = view.draft()
    left = count - view.free.pools[pool].free
    if order is None:
        latest = list(reversed(view.running.members.values()))
        order = [*filter(_late, latest), *filterfalse(_late, latest)]
    for job in order:
        if left <= 0:
            break
        left -= _gives(view, draft, job, pool, left)
    return draft


def _late(job: JobState) -> bool:
    return job.job.priority == OPPORTUNISTIC


def _gives(view: ClusterView, draft: Draft, job: JobState, pool: int, wanted: int) -> int:
    """Take up to ``wanted`` GPUs of a pool from one job; how many it gave."""
    elastic = job.elastic
    if elastic is None:
        assert job.allocation is not None
        held = sum(
            mask.bit_count()
            for node, mask in job.allocation.shares
            if view.free.pool_of[node] == pool and job.allocation.gpu_milli == 1000
        )
        if held and _late(job):
            draft.stop(job)
            return held
        return 0
    held = job.held[pool]
    total = sum(job.held)
    gives = min(wanted, held, total - elastic.min_gpus)
    if gives <= 0:
        return 0
    left = total - gives
    counts = tuple(n - gives if p == pool else n for p, n in enumerate(job.held))
    if left < elastic.least_gpus or not draft.resize(job, counts):
        if elastic.min_gpus:
            return 0
        draft.stop(job)
        return held
    return gives
