"""Devices lent to an online service: it gets what it needs at once, and training gives way.

The service's demand is a number of GPUs of one type that changes with time. What it owns leaves
the free index. When the demand rises it takes, in this order: devices it gave back a moment ago and
that nobody has had since, idle devices, and devices that jobs give up (``policies.yielding``). It
can use those when the job has left them: after its step in flight and its change of size, at the
latest after the time that it may take to leave. What is still missing it gets before anybody else,
as soon as something is free. When the demand falls devices stay unused for a while, so that a
demand that rises again at once disturbs nobody; then training gets them back.

Source: EasyScale (SC'23), section 5.3 (elastic training beside serving: scale-in in seconds, refill
within minutes). Left out: which machine a service prefers, its own load on a device, and
the step in flight that is lost where a device is taken before the job has left it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.books import NAN, Recorder
from policies.clock import CAPACITY, Clock
from policies.placement.count import take_lowest
from policies.plan import Plan
from policies.view import LiveView
from traces.cluster import gpus_of
from traces.runlog import EVENT_CODE, LOAN_SOURCES, NEVER_LENT

if TYPE_CHECKING:
    from policies.contract import Policy

DEMAND, LENT, GIVEN_BACK = (
    EVENT_CODE[k] for k in ("serving_demand", "device_lent", "device_given_back")
)
LINGERING, IDLE, RECLAIMED = (LOAN_SOURCES.index(s) for s in ("lingering", "idle", "reclaimed"))

Device = tuple[int, int]
"""(node index, GPU index)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingDemand:
    """From now on the service needs so many GPUs of a type.

    ``give_way_s``: how long a job may take to leave a device; after that it is taken from it.
    ``linger_s``: how long a device that
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
    """Keeps the service's devices of one run.

    ``apply`` carries out a plan, ``ask`` sees to a decision; ``hand_over_s(job, stops=...)`` is how
    long the world says that a job takes to leave (``Backend.hand_over_s``).
    """

    def __init__(
        self,
        clock: Clock,
        view: LiveView,
        policy: Policy,
        log: Recorder,
        apply: Callable[[Plan], None],
        ask: Callable[[], None],
        hand_over_s: Callable[..., float],
    ) -> None:
        self.clock = clock
        self.view = view
        self.policy = policy
        self.log = log
        self._apply = apply
        self._ask = ask
        self._hand_over_s = hand_over_s
        pools = len(view.free.pools)
        self.owned: list[dict[Device, _Loan]] = [{} for _ in range(pools)]
        self.missing: list[deque[float]] = [deque() for _ in range(pools)]
        # Until when they stay unused, and when the job that had them has left them.
        self._lingering: list[dict[Device, tuple[float, float]]] = [{} for _ in range(pools)]
        self._latest: list[ServingDemand | None] = [None] * pools

    def held(self) -> dict[Device, bool]:
        """The service's devices: whether it needs each (False: it stays unused for a while)."""
        found: dict[Device, bool] = {}
        for owned, lingering in zip(self.owned, self._lingering, strict=True):
            found |= dict.fromkeys(lingering, False) | dict.fromkeys(owned, True)
        return found

    def used(self, device: Device) -> None:
        """A world in which only time can tell says that a device can be used, now."""
        now = self.view.now
        for owned, lingering in zip(self.owned, self._lingering, strict=True):
            if device in owned:
                owned[device].ready_s = max(now, owned[device].asked_s)
            elif device in lingering:
                lingering[device] = (lingering[device][0], now)

    @property
    def short(self) -> bool:
        """Whether the service waits for devices."""
        return any(self.missing)

    @property
    def lingering(self) -> bool:
        """Whether devices will come back to training by themselves."""
        return any(self._lingering)

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

    def _take(self, pool: int, left_s: Mapping[Device, float] | None = None) -> None:
        """Lend what is there: first what lingers, then what is free.

        ``left_s``: devices that jobs have just given up, and in how many seconds they leave them.
        """
        view, missing, lingering = self.view, self.missing[pool], self._lingering[pool]
        while missing and lingering:
            device, (_, left_at_s) = lingering.popitem()
            self._own(pool, device, max(view.now, left_at_s), LINGERING)
        free = view.free.pools[pool]
        count = min(len(missing), free.free)
        if not count:
            return
        latest = self._latest[pool]
        most_s = 0.0 if latest is None else latest.give_way_s
        source = IDLE if left_s is None else RECLAIMED
        for node, mask in take_lowest(free, view.free, count):
            view.withdraw(node, mask)
            self.log.device_event(view.now, LENT, node, mask, LOAN_SOURCES[source])
            for gpu in gpus_of(mask):
                wait_s = 0.0 if left_s is None else left_s.get((node, gpu), 0.0)
                if wait_s < float("inf"):  # else only time can tell, and ``used`` will
                    wait_s = min(wait_s, most_s)
                self._own(pool, (node, gpu), view.now + wait_s, source)

    def _own(self, pool: int, device: Device, ready_s: float, source: int) -> None:
        self.owned[pool][device] = _Loan(self.missing[pool].popleft(), ready_s, source)

    def _reclaim(self, pool: int) -> None:
        """Have jobs give way, and lend what they leave."""
        view = self.view
        plan = self.policy.give_way(view, pool, len(self.missing[pool]))
        left_s: dict[Device, float] = {}
        for job, goes_on in plan.changes.items():
            if job.allocation is None:
                continue  # the driver will say that it holds nothing
            wait_s = self._hand_over_s(job, stops=goes_on is None)
            for node, mask in job.allocation.shares:
                left_s.update(((node, gpu), wait_s) for gpu in gpus_of(mask))
        if plan.changes:
            self._apply(plan)
        self._take(pool, left_s)

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
            ready_s = self._close(pool, device)
            self._lingering[pool][device] = (self.view.now + latest.linger_s, ready_s)
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
        for (node, gpu), (until_s, _) in list(self._lingering[pool].items()):
            if until_s <= now:
                del self._lingering[pool][node, gpu]
                masks[node] = masks.get(node, 0) | 1 << gpu
        for node in sorted(masks):
            view.restore(node, masks[node])
            self.log.device_event(now, GIVEN_BACK, node, masks[node], None)
        if masks:
            self._ask()

    def _close(self, pool: int, device: Device) -> float:
        """End a loan; when it could be used."""
        loan = self.owned[pool].pop(device)
        end_s = self.view.now
        ready_s = loan.ready_s if loan.ready_s <= end_s else NAN  # it never could be used
        self.log.loan(pool, *device, loan.asked_s, ready_s, end_s, loan.source)
        return loan.ready_s
