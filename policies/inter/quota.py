"""Quota by virtual cluster, around any other policy.

Each virtual cluster (VC) has a number of GPUs of every type, in proportion to its share; an inner
policy serves the jobs of each VC by itself, on what its quota leaves, as production clusters do
(Jeon et al., ATC 2019, on Philly's virtual clusters). Quotas are whole GPUs by the method of the
largest remainder, type by type, so they add up to the cluster.

With ``borrow`` what no owner asks for is lent: the first in line of a VC may run beyond its quota
on GPUs that no other VC has both quota and waiting jobs for. When an owner's jobs want them back,
borrowers are preempted, last started first (``reclaim=true``), or the owner waits until they end.

Left out: hierarchies of VCs, and what lies outside a VC's sight: a reservation made by an inner
policy (EASY) foresees the ends of its own VC's jobs only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from policies.contract import Policy, Reason
from policies.errors import PlanError
from policies.placement.within import Within, WithinByCount
from policies.plan import Draft
from policies.queues import Shape
from policies.registry import make_policy
from policies.state import JobState
from policies.subview import SubView
from policies.view import ClusterView
from traces import Allocation, ClusterSpec, Job, UsageError

NONE = "-"  # the VC of jobs without one
EQUAL = "equal"
_MIRRORED = ("orders_running", "remembers", "needs_estimates", "learns", "ahead")


@dataclass(frozen=True, kw_only=True)
class Quota(Policy):
    """A quota per virtual cluster; inside each, an inner policy.

    ``inner``: its name, parameters as ``inner.NAME=value``. ``shares``: ``equal`` (among the VCs
    seen so far) or ``vcA=3;vcB=1`` (``-`` names jobs without a VC). ``borrow``: lend idle quota.
    ``reclaim``: preempt borrowers when an owner wants its quota back.
    """

    inner: str = "fifo"
    shares: str = EQUAL
    borrow: bool = False
    reclaim: bool = True
    name: ClassVar[str] = "quota"

    def __post_init__(self) -> None:
        inner = self._inner
        if isinstance(inner, Quota):
            raise UsageError("quota: inner is 'quota'; expected a policy that has no quotas itself")
        _ = self._weights
        for attribute in _MIRRORED:  # the view keeps what the inner policy wants kept
            object.__setattr__(self, attribute, getattr(inner, attribute))

    @cached_property
    def _inner(self) -> Policy:
        return make_policy(self.inner)

    @cached_property
    def _weights(self) -> Mapping[str, float] | None:
        return None if self.shares == EQUAL else parse_shares(self.shares)

    # What the inner policy declares

    @property
    def interval_s(self) -> float | None:
        """The inner policy's."""
        return self._inner.interval_s

    @property
    def estimates(self) -> str:
        """The inner policy's."""
        return self._inner.estimates

    def order(self, job: JobState, now: float) -> Any:
        """The inner policy's."""
        return self._inner.order(job, now)

    def running_order(self, job: JobState, now: float) -> Any:
        """The inner policy's."""
        return self._inner.running_order(job, now)

    def remember(self, job: JobState, now: float, event: str) -> Any:
        """The inner policy's."""
        return self._inner.remember(job, now, event)

    def changes_at(self, job: JobState, now: float) -> float:
        """The inner policy's."""
        return self._inner.changes_at(job, now)

    def learn(self, sizes_gpu_s: Sequence[float]) -> Any:
        """The inner policy's: all VCs together."""
        return self._inner.learn(sizes_gpu_s)

    def group(self, job: Job) -> str:
        """The virtual cluster.

        Raises :class:`UsageError` for one that has no share and may not borrow either.
        """
        vc = job.vc or NONE
        weights = self._weights
        if weights is not None and not weights.get(vc) and not self.borrow:
            raise UsageError(
                f"quota: job {job.job_id} is of virtual cluster {vc!r}, which has no share in"
                f" shares={self.shares!r}; give it one, or let it borrow (borrow=true)"
            )
        return vc

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        shares = (
            "equal shares among the virtual clusters seen so far"
            if self._weights is None
            else "shares " + ", ".join(f"{vc} {w:g}" for vc, w in self._weights.items())
        )
        if not self.borrow:
            idle = "Idle quota is not lent."
        elif self.reclaim:
            idle = (
                "Idle quota is lent to the first in line; when its owner asks, borrowers are"
                " preempted, last started first."
            )
        else:
            idle = "Idle quota is lent to the first in line; its owner waits until borrowers end."
        return (
            f"Quotas: whole GPUs of each type by largest remainder, {shares}.",
            idle,
            "Jobs without a virtual cluster have one of their own ('-').",
            f"Inside each virtual cluster: {self.inner}.",
            *self._inner.says(),
        )

    # Planning

    def quotas(self, view: ClusterView) -> dict[str, tuple[int, ...]]:
        """GPUs per virtual cluster and pool, VCs in order of name."""
        if self._weights is None:
            weights = dict.fromkeys(sorted({s.group or NONE for s in view.shapes}), 1.0)
        else:
            weights = {**dict.fromkeys(sorted({s.group or NONE for s in view.shapes}), 0.0)}
            weights = dict(sorted({**weights, **self._weights}.items()))
        totals = gpus_by_pool(view.spec)
        columns = [largest_remainder(total, weights) for total in totals]
        return {vc: tuple(column[vc] for column in columns) for vc in weights}

    def plan(self, view: ClusterView) -> Draft:
        """Serve each virtual cluster within its quota, then lend what is idle."""
        books = Books(self, view)
        stopped: list[JobState] = []
        if self.borrow and self.reclaim:
            stopped = books.call_in()
        for vc in books.tenants:
            if books.tenants[vc].shapes:
                books.serve(vc, self._inner)
        for job in reversed(stopped):  # first started first
            books.keep(job)
        if self.borrow:
            books.lend()
        return books.draft

    def explain(self, view: ClusterView, job: JobState) -> Reason:
        """Say whether the quota is in the way; else ask the inner policy."""
        from policies.reasons import explain, whereabouts  # noqa: PLC0415  (reasons read us)

        known = whereabouts(view, job)
        if known is not None:
            return known
        vc = job.shape.group or NONE
        books = Books(self, view)
        blocked = books.over_quota(job)
        if blocked is not None:
            return blocked
        return explain(self._inner, books.facade(vc, self._inner), job)


@dataclass(slots=True)
class Tenant:
    """One virtual cluster at one instant; thousandths of GPUs by pool."""

    quota_milli: list[int]
    used_milli: list[int]
    shapes: list[Shape] = field(default_factory=list)
    running: list[JobState] = field(default_factory=list)

    def left(self, pool: int) -> int:
        """Unused quota, 0 for a borrower."""
        return max(0, self.quota_milli[pool] - self.used_milli[pool])

    def over(self, pool: int) -> int:
        """What it has borrowed."""
        return max(0, self.used_milli[pool] - self.quota_milli[pool])

    def asks(self, pool: int, started: Mapping[JobState, object]) -> int:
        """How much of its unused quota its waiting jobs could use.

        A gang larger than the quota could not use it: it has to borrow itself.
        """
        left = self.left(pool)
        demand = 0
        for shape in self.shapes:
            if pool in shape.pools and shape.milli <= self.quota_milli[pool]:
                for entry in shape.waiting:
                    if demand >= left:
                        return left
                    if entry[2] not in started:
                        demand += shape.milli
        return min(left, demand)


class Books:
    """Who has what, in one decision."""

    def __init__(self, policy: Quota, view: ClusterView) -> None:
        self.policy = policy
        self.view = view
        self.draft = view.draft()
        self.pools = range(len(view.free.pools))
        self.tenants = {
            vc: Tenant([1000 * n for n in quota], [0] * len(quota))
            for vc, quota in policy.quotas(view).items()
        }
        for shape in view.waiting.shapes:
            self.tenants[shape.group or NONE].shapes.append(shape)
        for job in view.running:
            self.tenants[job.shape.group or NONE].running.append(job)
            assert job.allocation is not None
            self._charge(job, job.allocation, 1)

    def _charge(self, job: JobState, allocation: Allocation, sign: int) -> None:
        pool = self.view.free.pool_of[allocation.shares[0][0]]
        if pool >= 0:
            self.tenants[job.shape.group or NONE].used_milli[pool] += sign * job.shape.milli

    def facade(self, vc: str, inner: Policy, shown: Sequence[int] | None = None) -> SubView:
        """The cluster as a virtual cluster may use it: ``shown`` thousandths free by pool."""
        tenant = self.tenants[vc]
        if shown is None:
            shown = [tenant.left(pool) for pool in self.pools]
        free = self.draft.free.showing([milli // 1000 for milli in shown])
        hidden = tuple(
            pool.free * 1000 + pool.share_milli - milli
            for pool, milli in zip(free.pools, shown, strict=True)
        )
        kind = WithinByCount if self.view.placement.by_count else Within
        return SubView(
            self.view,
            policy=inner,
            placement=kind(inner=self.view.placement, hidden_milli=hidden),
            free=free,
            shapes=tenant.shapes,
            running=tenant.running,
        )

    def serve(self, vc: str, inner: Policy) -> None:
        """Let the inner policy plan for one virtual cluster, and enter its plan."""
        view, draft = self.view, self.draft
        changes = inner.plan(self.facade(vc, inner)).changes
        for job in changes:
            if job.running:
                assert job.allocation is not None
                self._charge(job, job.allocation, -1)
                draft.stop(job)
        for job, allocation in changes.items():
            if allocation is not None:
                fault = draft.free.missing(allocation, job.request)
                if fault is not None:
                    raise PlanError(inner, view, job, fault)
                self._enter(job, allocation)

    def _enter(self, job: JobState, allocation: Allocation) -> None:
        self.draft.put(job, allocation)
        self._charge(job, allocation, 1)

    def call_in(self) -> list[JobState]:
        """Stop borrowers, last started first, until owners could use their quotas."""
        stopped: list[JobState] = []
        for index in self.pools:
            pool = self.draft.free.pools[index]
            lack = sum(t.asks(index, {}) for t in self.tenants.values())
            lack -= pool.free * 1000 + pool.share_milli
            if lack <= 0:
                continue
            for job in self._borrowers(index):
                if lack <= 0:
                    break
                tenant = self.tenants[job.shape.group or NONE]
                if tenant.over(index):
                    assert job.allocation is not None
                    self._charge(job, job.allocation, -1)
                    tenant.running.remove(job)
                    self.draft.stop(job)
                    stopped.append(job)
                    lack -= job.shape.milli
        return stopped

    def _borrowers(self, index: int) -> list[JobState]:
        """Running jobs of those over quota in a pool, last started first."""
        pool_of = self.view.free.pool_of
        found = [
            job
            for tenant in self.tenants.values()
            if tenant.over(index)
            for job in tenant.running
            if job.allocation is not None and pool_of[job.allocation.shares[0][0]] == index
        ]
        return sorted(found, key=lambda job: (-job.since_s, -job.rank))

    def keep(self, job: JobState) -> None:
        """Leave a stopped borrower where it is after all, if nobody took its place.

        If somebody did, it goes on elsewhere within the quota that those in line have left.
        """
        if self.draft.keep(job):
            assert job.allocation is not None
            self._charge(job, job.allocation, 1)
            return
        facade = self.facade(job.shape.group or NONE, self.policy)
        allocation = facade.placement.place(job.request, facade.free)
        if allocation is not None:
            self._enter(job, allocation)

    def lend(self) -> None:
        """Let the first in line of each virtual cluster run on what nobody else asks for.

        On an idle cluster others' asking is nothing to wait for: their first in line cannot use
        what they ask for either, or it would run.
        """
        blocked: set[str | None] = set()
        idle = not self.view.running and not self.draft.changes
        walk = self.view.waiting.walk()
        for job in walk:
            group = job.shape.group
            if group not in blocked:
                if job in self.draft.changes or self._borrow(job, asked=not idle):
                    idle = False
                    continue
                blocked.add(group)
            walk.skip_shape()

    def _borrow(self, job: JobState, *, asked: bool) -> bool:
        """Start a job beyond its quota; ``asked``: leave what others ask for."""
        if not self.draft.enough(job.shape):
            return False
        vc = job.shape.group or NONE
        shown = [
            pool.free * 1000
            + pool.share_milli
            - sum(
                tenant.asks(index, self.draft.changes)
                for other, tenant in self.tenants.items()
                if asked and other != vc
            )
            for index, pool in enumerate(self.draft.free.pools)
        ]
        facade = self.facade(vc, self.policy, [max(0, milli) for milli in shown])
        allocation = facade.placement.place(job.request, facade.free)
        if allocation is None:
            return False
        self._enter(job, allocation)
        return True

    def over_quota(self, job: JobState) -> Reason | None:
        """The reason, if a job waits because of the quota: room would be there without it."""
        vc = job.shape.group or NONE
        tenant = self.tenants[vc]
        need, pools = job.shape.milli, job.shape.pools
        if not need or any(tenant.left(p) >= need for p in pools):
            return None
        types = [self.view.free.pools[p].gpu_type for p in pools]
        quota = sum(tenant.quota_milli[p] for p in pools) / 1000
        used = sum(tenant.used_milli[p] for p in pools) / 1000
        text = f"virtual cluster {vc!r} uses {used:g} of its quota of {quota:g} {'/'.join(types)}"
        text += f"; {job.shape.gpus:g} more would exceed it"
        never = all(tenant.quota_milli[p] < need for p in pools)
        if never and not self.policy.borrow:
            text = (
                f"virtual cluster {vc!r} has a quota of {quota:g} {'/'.join(types)};"
                f" {job.shape.gpus:g} on one type never fit"
            )
        return Reason(
            code="quota",
            text=text,
            facts={"vc": vc, "quota_gpus": quota, "used_gpus": used, "never": never},
        )


def parse_shares(text: str) -> dict[str, float]:
    """Read ``vcA=3;vcB=1``; raises :class:`UsageError` for anything else."""
    shares: dict[str, float] = {}
    for part in text.split(";"):
        vc, equals, weight = part.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not equals or not vc or not 0.0 <= value < float("inf") or vc in shares:
            raise UsageError(
                f"quota: shares is {text!r}; expected 'equal' or each virtual cluster once with a"
                " weight of 0 or more, such as vcA=3;vcB=1"
            )
        shares[vc] = value
    if not sum(shares.values()):
        raise UsageError(f"quota: shares is {text!r}; expected at least one weight above 0")
    return shares


def largest_remainder(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide ``total`` in proportion to weights; leftovers go by remainder, then by name."""
    whole = sum(weights.values())
    exact = {vc: total * weight / whole for vc, weight in weights.items()}
    found = {vc: int(value) for vc, value in exact.items()}
    by_remainder = sorted(exact, key=lambda vc: (found[vc] - exact[vc], vc))
    for vc in by_remainder[: total - sum(found.values())]:
        found[vc] += 1
    return found


def gpus_by_pool(spec: ClusterSpec) -> list[int]:
    """GPUs of each type in the inventory, in service or not."""
    return list(spec.gpus_by_type().values())
