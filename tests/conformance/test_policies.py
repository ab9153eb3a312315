"""Every registered policy with every placement; and policies broken on purpose, to be found out."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest

from policies import JobState, Policy, Reason
from policies.check import CHECKS, check_policy
from policies.plan import Draft, Plan
from policies.registry import PLACEMENTS, POLICIES
from policies.view import ClusterView
from traces import Allocation


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_registered_policies_conform(policy: str, placement: str) -> None:
    report = check_policy(policy, placement)
    assert report, str(report)


@pytest.mark.parametrize(
    "policy",
    [
        "easy:estimates=user,depth=3",
        "conservative:estimates=user",
        "conservative:estimates=noisy:1,depth=5",
        "sjf:blocks=true",
        "srtf:estimates=noisy:0.5",
        "tiresias:thresholds=20;60,knob=1",
        "las:quantum_gpu_s=10",
        "gittins:levels=10;30;90,min_history=3",
        "quota:inner=easy,borrow=true",
        "quota:inner=srtf,borrow=true,reclaim=false",
        "quota:inner=tiresias,inner.thresholds=20;60,shares=a=2;b=1,borrow=true",
        "quota:inner=gittins,inner.levels=10;30,inner.min_history=3,shares=a=1;b=1",
        "quota:inner=conservative,shares=a=1;b=1",
        "yarn-cs:round_s=10",
        "easyscale:estimates=true,margin=1,thrift=0",
        "easyscale:estimates=noisy:1,aging=0.1,round_s=7",
        "easyscale:types=preferred,prior_s=5,horizon_s=20",
        "easyscale:version=paper",
        "afs:estimates=noisy:1",
        "optimus:round_s=5,estimates=user",
        "static-share:share=0.1",
        "easyscale:version=paper,types=preferred,quirks=none,round_s=5",
    ],
)
def test_so_do_their_parameters(policy: str) -> None:
    report = check_policy(policy)
    assert report, str(report)


class Toy(Policy):
    """Best effort, to be broken in one place each."""

    name: ClassVar[str] = "toy"

    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        for job in view.waiting:
            draft.start(job)
        return draft


class RejectsEverything(Toy):
    def plan(self, view: ClusterView) -> Plan:
        return view.draft()


class OneAtATime(Toy):
    """Allowed: slow is not wrong."""

    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        first = view.waiting.first()
        if first is not None and not view.running:
            draft.start(first)
        return draft


class OverCommits(Toy):
    def plan(self, view: ClusterView) -> Plan:
        draft = Draft(view)
        for job in view.waiting:
            draft.changes[job] = Allocation(((0, (1 << job.request.num_gpus) - 1),))
        return draft


class SplitsGangs(Toy):
    def plan(self, view: ClusterView) -> Plan:
        plan = Plan()
        for job in view.waiting:
            mask = view.free.mask[0]
            if mask:
                plan.changes[job] = Allocation(((0, mask & -mask),))
            break
        return plan


class WrongType(Toy):
    def plan(self, view: ClusterView) -> Plan:
        plan = Plan()
        for job in view.waiting:
            for node, mask in enumerate(view.free.mask):
                low = [1 << i for i in range(4) if mask >> i & 1][: job.request.num_gpus]
                if len(low) == job.request.num_gpus:
                    plan.changes[job] = Allocation(((node, sum(low)),))
                    return plan
        return plan


class WritesTheView(Toy):
    def plan(self, view: ClusterView) -> Plan:
        for job in view.waiting:
            job.since_s += 1.0
        return super().plan(view)


class StartsOnTheLiveIndex(Toy):
    def plan(self, view: ClusterView) -> Plan:
        plan = Plan()
        for job in view.waiting:
            found = view.placement.place(job.request, view.free)
            if found is not None:
                view.free.take(found, job.request)
                plan.changes[job] = found
        return plan


class ReadsDurations(Toy):
    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        for job in sorted(view.waiting, key=lambda j: (j.job.duration_s, j.rank)):
            draft.start(job)
        return draft


class OrdersByDurations(Toy):
    def order(self, job: JobState, now: float) -> Any:
        return job.job.duration_s


class Random(Toy):
    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        jobs = list(view.waiting)
        random.shuffle(jobs)
        for job in jobs:
            draft.start(job)
        return draft


class HasNoReason(Toy):
    def explain(self, view: ClusterView, job: JobState) -> Reason:
        return Reason(code="", text="")


class Crashes(Toy):
    def plan(self, view: ClusterView) -> Plan:
        raise KeyError("queue")


class NeverSettles(Toy):
    """Wakes up again and again and does nothing."""

    remembers: ClassVar[bool] = True

    def remember(self, job: JobState, now: float, event: str) -> Any:
        return None

    def changes_at(self, job: JobState, now: float) -> float:
        return now + 1e-9


class Remembers:
    """Something outside the view that a policy must not have."""

    calls = 0


class KeepsState(Toy):
    def plan(self, view: ClusterView) -> Plan:
        Remembers.calls += 1
        draft = view.draft()
        for job in view.waiting:
            if (Remembers.calls // 40) % 2 or job.rank % 2:
                draft.start(job)
        return draft


@pytest.mark.parametrize(
    ("policy", "check", "words"),
    [
        (RejectsEverything(), "lone job", "starves 1 waiting jobs"),
        (RejectsEverything(), "finishes", "starves"),
        (OverCommits(), "valid", "is not free"),
        (SplitsGangs(), "valid", "its gang is"),
        (WrongType(), "valid", "it may use"),
        (WritesTheView(), "pure", "plan() changed the view"),
        (StartsOnTheLiveIndex(), "pure", "plan() changed the view"),
        (ReadsDurations(), "honest", "estimate_s"),
        (OrdersByDurations(), "honest", "order depends"),
        (Random(), "repeatable", "the same view gave"),
        (KeepsState(), "repeatable", "came out differently"),
        (HasNoReason(), "reasons", "waits for"),
        (Crashes(), "valid", "KeyError"),
        (NeverSettles(), "finishes", "decisions"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else None,
)
def test_what_is_broken_is_found(policy: Policy, check: str, words: str) -> None:
    report = check_policy(policy)
    assert not report
    found = {finding.check: finding.fault for finding in report.findings}
    assert words in found[check]
    assert set(found) <= set(CHECKS)
    assert f"FAILED  {check}" in str(report)


class Sizes(Toy):
    """Gives every elastic job what it is told to; to be broken."""

    resizes: ClassVar[bool] = True

    def size(self, job: JobState) -> int:
        assert job.elastic is not None
        return job.elastic.least_gpus

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        for job in view.waiting:
            if job.elastic is None:
                draft.start(job)
            else:
                pool = job.shape.pools[0]
                counts = [self.size(job) if p.index == pool else 0 for p in view.free.pools]
                draft.resize(job, counts)
        return draft


class TooFew(Sizes):
    def size(self, job: JobState) -> int:
        assert job.elastic is not None
        return max(1, job.elastic.min_gpus - 1)


class TooMany(Sizes):
    def size(self, job: JobState) -> int:
        assert job.elastic is not None
        return job.elastic.max_gpus + 1


class ReadsSteps(Sizes):
    def size(self, job: JobState) -> int:
        assert job.elastic is not None
        return job.elastic.max_gpus if job.job.duration_s > 25 else job.elastic.least_gpus


class StarvesElastic(Toy):
    resizes: ClassVar[bool] = True

    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        for job in view.waiting:
            if job.elastic is None:
                draft.start(job)
        return draft


@pytest.mark.parametrize(
    ("policy", "check", "words"),
    [
        (TooFew(), "valid", "at least 2"),
        (TooMany(), "valid", "at most"),
        (ReadsSteps(), "honest", "estimate_s"),
        (StarvesElastic(), "lone job", "starves"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else None,
)
def test_what_is_broken_for_elastic_jobs_is_found(policy: Policy, check: str, words: str) -> None:
    report = check_policy(policy)
    found = {finding.check: finding.fault for finding in report.findings}
    assert words in found[check]


@pytest.mark.parametrize("policy", [Toy(), OneAtATime(), Sizes()])
def test_what_is_simple_or_slow_is_not_broken(policy: Policy) -> None:
    report = check_policy(policy)
    assert report, str(report)
