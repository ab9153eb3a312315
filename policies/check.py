"""``check_policy``: the conformance suite for a policy author, in one line.

Small made-up workloads are run through the driver on an exact little world (rate 1, no costs).
At every decision the policy is asked more than the driver would ask it: twice, once more with
the jobs' true run times changed, and for a reason for every waiting job. What it must hold:

- ``pure``: planning, explaining and giving way change nothing in the view,
- ``repeatable``: the same view gives the same plan; the same workload gives the same run,
- ``valid``: devices exist, are free, are of an allowed type, and make up the whole gang,
- ``honest``: a plan and an order depend on estimates, never on ``job.job.duration_s``,
- ``reasons``: every waiting job has one, with a code and a text,
- ``order of rows``: permuting the rows of a trace changes nothing,
- ``lone job``: a job that has the cluster to itself runs,
- ``finishes``: every job ends, in a number of decisions that leaves no doubt.

A policy that sets the sizes of elastic jobs (``resizes``) is also given workloads in which most
jobs are elastic, with guaranteed GPUs, types that mix and an opportunistic class; ``valid`` then
means the bounds and types of each.

Left out: costs, failures, and how good the policy is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from policies.clock import Clock
from policies.contract import PlacementPolicy, Policy, Reason
from policies.driver import Driver
from policies.errors import PlanError, StarvationError
from policies.exactworld import ExactWorld
from policies.model import Model
from policies.plan import Plan
from policies.registry import make_placement, make_policy
from policies.state import JobState
from policies.view import ClusterView
from traces import Allocation, ClusterSpec, Job, TandemError, WorkerMap, Workload

CLUSTERS = ("3x4:v100", "3x4:v100:2,3x4:t4:2")
JOBS = 24
SPEEDS = {"t4": 0.5}
LONE_ELASTIC = {"num_workers": 4, "max_gpus": 4, "min_gpus": 1, "mixes_types": True}
DECISIONS = 5_000  # of one run; a sound policy needs a few per job
CHECKS = (
    "pure", "repeatable", "valid", "honest", "reasons", "order of rows", "lone job", "finishes"
)  # fmt: skip
# What a policy's own code may raise; anything else is not its fault.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SystemExit,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault: which check, and what was seen."""

    check: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What ``check_policy`` found; true if nothing."""

    policy: str
    placement: str
    decisions: int
    findings: tuple[Finding, ...] = ()

    def __bool__(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        failed = {finding.check for finding in self.findings}
        lines = [f"{self.policy} with placement {self.placement}: {self.decisions} decisions"]
        lines += [f"  {'FAILED' if check in failed else 'ok':>6}  {check}" for check in CHECKS]
        lines += [f"{finding.check}: {finding.fault}" for finding in self.findings]
        return "\n".join(lines)


def check_policy(
    policy: Policy | str,
    placement: PlacementPolicy | str = "count",
    *,
    virtual_clusters: tuple[str | None, ...] = ("a", "b"),
    seed: int = 0,
) -> CheckReport:
    """Hold a policy to the contract; see the module's page for what that means.

    The first fault of each check is reported. ``virtual_clusters``: those of the made-up jobs.
    Raises :class:`traces.UsageError` for names that do not exist.
    """
    subject = make_policy(policy) if isinstance(policy, str) else policy
    where = make_placement(placement) if isinstance(placement, str) else placement
    examination = _Examination(subject, where)
    for job in _lone_jobs(virtual_clusters):
        examination.lone(job)
        if subject.resizes:
            examination.lone(job | LONE_ELASTIC)
    for number, cluster in enumerate(CLUSTERS):
        table = _workload(np.random.default_rng([seed, number]), cluster, virtual_clusters)
        examination.runs(table, ClusterSpec.parse(cluster))
        if subject.resizes:
            made = _elastic(table, np.random.default_rng([seed, number, 1]))
            examination.runs(made, ClusterSpec.parse(cluster))
    return CheckReport(
        policy=subject.name or type(subject).__name__,
        placement=where.name or type(where).__name__,
        decisions=examination.decisions,
        findings=tuple(examination.findings.values()),
    )


class Halt(Exception):  # noqa: N818  (it ends a run; it is no error of anybody's)
    """Ends a run whose view can no longer be trusted."""


@dataclass
class _Examination:
    """One policy under examination."""

    policy: Policy
    placement: PlacementPolicy
    findings: dict[str, Finding] = field(default_factory=dict)
    decisions: int = 0

    def report(self, check: str, fault: str) -> None:
        """Keep the first fault of each check."""
        self.findings.setdefault(check, Finding(check=check, fault=fault))

    def lone(self, job: dict[str, object]) -> None:
        """A job alone on the cluster must run."""
        spec = ClusterSpec.parse(CLUSTERS[-1])
        self.run(Workload.from_jobs([job]), spec, check="lone job")

    def runs(self, table: pd.DataFrame, spec: ClusterSpec) -> None:
        """The same workload, again, and with its rows in another order."""
        first = self.run(Workload(table), spec, check="finishes")
        if first is None:
            return
        if self.run(Workload(table), spec, check="finishes", closely=False) != first:
            self.report("repeatable", "the same workload, run again, came out differently")
        shuffled = table.sample(frac=1.0, random_state=1)
        if self.run(Workload(shuffled), spec, check="finishes", closely=False) != first:
            self.report("order of rows", "permuting the rows of the trace changed the run")

    def run(
        self, workload: Workload, spec: ClusterSpec, *, check: str, closely: bool = True
    ) -> list[object] | None:
        """Run a workload; what happened, or None if it came to no good end."""
        clock, log = Clock(), _Log()
        backend = ExactWorld(clock)
        driver = Driver(
            clock=clock,
            workload=workload,
            spec=spec,
            policy=_watched(self.policy, lambda plan, view: self._plan(plan, view, closely)),
            placement=self.placement,
            backend=backend,
            log=log,
            model=Model(speeds=SPEEDS) if workload.elastic else None,
        )
        # An elastic job may have to do with one GPU for all of its logical workers.
        work_s = float((workload.table["duration_s"] * _slowest(workload.table)).sum())
        interval = self.policy.interval_s or 0.0
        begun = self.decisions
        self._limit = begun + DECISIONS
        try:
            driver.run(until_s=100.0 * (work_s + interval + 1.0))
        except Halt:
            return None
        except PlanError as error:
            self.report("valid", str(error))
            return None
        except StarvationError as error:
            self.report(check, str(error))
            return None
        except FAULTS as error:
            if isinstance(error, TandemError):
                raise
            self.report("valid", f"it raised {type(error).__name__}: {error}")
            return None
        if not driver.complete:
            self.report(
                check,
                f"at {clock.now:.12g} s, a hundred times the work there was,"
                f" {len(driver.view.waiting)} jobs still wait",
            )
            return None
        return log.rows

    def _plan(self, plan: Callable[[ClusterView], Plan], view: ClusterView, closely: bool) -> Plan:
        self.decisions += 1
        if self.decisions > self._limit:
            self.report("finishes", f"{DECISIONS} decisions at {view.now:.12g} s without an end")
            raise Halt
        if not closely:
            return plan(view)
        before = fingerprint(view)
        first = plan(view)
        self._same(view, before, "plan")
        again = plan(view)
        if list(first.changes.items()) != list(again.changes.items()):
            self.report(
                "repeatable", f"at {view.now:.12g} s the same view gave {first}, then {again}"
            )
        self._honest(plan, view, first)
        if self.decisions % 3 == 0:
            self._reasons(view)
            self._same(view, before, "explain")
            self.policy.give_way(view, 0, 2)
            self._same(view, before, "give_way")
        return first

    def _same(self, view: ClusterView, before: str, what: str) -> None:
        if fingerprint(view) != before:
            self.report("pure", f"{what}() changed the view at {view.now:.12g} s")
            raise Halt

    def _honest(self, plan: Callable[[ClusterView], Plan], view: ClusterView, first: Plan) -> None:
        """Change every job's hidden run time: nothing the policy says may change."""
        jobs = [*view.waiting, *view.running]
        said = [self._order(job, view.now) for job in jobs]
        truth = [job.job for job in jobs]
        for job in jobs:
            job.job = _lied_about(job.job)
            job.elastic = job.job.elastic
        other = plan(view)
        lied = [self._order(job, view.now) for job in jobs]
        for job, real in zip(jobs, truth, strict=True):
            job.job = real
            job.elastic = real.elastic
        if list(first.changes.items()) != list(other.changes.items()):
            self.report(
                "honest",
                f"at {view.now:.12g} s the plan depends on run times that a policy cannot know"
                " (read JobState.estimate_s, not job.duration_s)",
            )
        elif said != lied:
            self.report(
                "honest",
                f"at {view.now:.12g} s the order depends on run times that a policy cannot know",
            )

    def _order(self, job: JobState, now: float) -> str:
        running = self.policy.running_order(job, now) if job.running else None
        return repr((self.policy.order(job, now), running))

    def _reasons(self, view: ClusterView) -> None:
        for job in list(view.waiting):
            reason = self.policy.explain(view, job)
            if not isinstance(reason, Reason) or not reason.code or not reason.text:
                self.report("reasons", f"at {view.now:.12g} s {job} waits for {reason!r}")


def _watched(
    policy: Policy, ask: Callable[[Callable[[ClusterView], Plan], ClusterView], Plan]
) -> Policy:
    """The same policy, whose plans pass through ``ask``."""
    kind = type(policy)

    def plan(self: Policy, view: ClusterView) -> Plan:
        return ask(lambda some: kind.plan(self, some), view)

    twin = copy.copy(policy)
    object.__setattr__(twin, "__class__", type(kind.__name__, (kind,), {"plan": plan}))
    return twin


def fingerprint(view: ClusterView) -> str:
    """Everything a policy could change in a view, as text."""
    free = view.free
    jobs = [*view.waiting, *view.running]
    return repr(
        (
            view.now,
            [
                (j.rank, j.phase, j.entry and j.entry[:2], j.allocation, j.memory, j.lesson)
                for j in jobs
            ],
            [(j.done_s, j.since_s, j.served_gpu_s, j.estimate_s, j.due) for j in jobs],
            (len(view.waiting), len(view.running), view.finished),
            list(free.mask),
            list(free.shared),
            [(p.free, p.share_milli, p.capacity, p.levels) for p in free.pools],
        )
    )


def _lied_about(job: Job) -> Job:
    """The same job, with another hidden run time (longer or shorter, by its rank)."""
    factor = 7.0 if job.rank % 2 else 0.125
    elastic = job.elastic
    if elastic is not None and elastic.total_steps is not None:
        elastic = replace(elastic, total_steps=elastic.total_steps * factor)
    return job._replace(duration_s=(job.duration_s + 1.0) * factor, elastic=elastic)


def _lone_jobs(virtual_clusters: tuple[str | None, ...]) -> Iterator[dict[str, object]]:
    for number, gpus in enumerate((1, 2, 4)):
        yield {
            "job_id": "lone",
            "submit_s": 5.0,
            "duration_s": 30.0,
            "estimate_s": 30.0,
            "num_gpus": gpus,
            "vc": virtual_clusters[number % len(virtual_clusters)],
        }


def _workload(
    rng: np.random.Generator, cluster: str, virtual_clusters: tuple[str | None, ...]
) -> pd.DataFrame:
    """Jobs that arrive faster than they can be served, many at the same instant."""
    types = ClusterSpec.parse(cluster).gpu_types
    durations = rng.integers(1, 60, JOBS).astype(float)
    allowed = [None, *types] if len(types) > 1 else [None]
    return pd.DataFrame(
        {
            "job_id": [f"job{i}" for i in range(JOBS)],
            "submit_s": np.sort(rng.integers(0, 40, JOBS)).astype(float),
            "duration_s": durations,
            "estimate_s": durations * rng.choice([0.5, 1.0, 2.0], JOBS),
            "num_gpus": rng.choice([1, 1, 2, 3, 4], JOBS),
            "gpu_type": [allowed[i] for i in rng.integers(0, len(allowed), JOBS)],
            "vc": [virtual_clusters[i] for i in rng.integers(0, len(virtual_clusters), JOBS)],
        }
    )


def _elastic(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same jobs, three in four of them elastic with up to twice as many logical workers."""
    count = len(table)
    elastic = rng.random(count) < 0.75
    gang = table["num_gpus"].to_numpy()
    workers = gang * rng.choice([1, 1, 2], count)
    least = np.minimum(gang, rng.choice([0, 0, 1, 2], count))
    numbers = {"num_workers": workers, "max_gpus": workers, "min_gpus": least}
    made = table.assign(
        **{k: pd.array(np.where(elastic, v, 0), dtype="Int64") for k, v in numbers.items()},
        mixes_types=elastic & (rng.random(count) < 0.5),
        priority=rng.choice(["guaranteed", "opportunistic"], count),
    )
    made.loc[~elastic, list(numbers)] = pd.NA
    return made


def _slowest(table: pd.DataFrame) -> pd.Series:
    """How many times as long a job takes on one GPU, at most."""
    if "num_workers" not in table:
        return pd.Series(1.0, index=table.index)
    return table["num_workers"].astype("Float64").fillna(1.0).astype(float)


class _Log:
    """What happened, by job id's rank: a recorder that keeps rows to compare."""

    def __init__(self) -> None:
        self.rows: list[object] = []

    def event(self, time_s: float, code: int, rank: int, detail: str | None = None) -> None:
        """Keep it."""
        self.rows.append((time_s, code, rank))

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        """There are none."""

    def allocation(
        self,
        rank: int,
        allocation: Allocation,
        start_s: float,
        begin_s: float,
        end_s: float,
        rate: float,
        reason: int,
        workers: WorkerMap | None = None,
    ) -> None:
        """Keep it."""
        self.rows.append((rank, allocation, start_s, end_s, reason))

    def loan(self, *values: object) -> None:
        """There are none."""

    def sample(self, *values: object) -> None:
        """There are none."""
