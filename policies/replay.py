"""A past moment of a run, from its run directory alone: the view that its policy had.

The log has every event in the order it was taken in, so the view is brought up by the same
transitions in the same order: what the world did, then what was due to change by itself, then what
was decided. Memory is a function of a job's own history and comes out as it was. A question to the
policy (``Policy.explain``) then answers as it would have at that moment.

What the log does not say is derived: work done from the intervals of the allocations table and the
run's checkpoint model; begin and rate of running jobs from the model the policy was told of. Left
out: a machine is taken to be gone for CPU jobs when its last GPU in service is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from math import isnan
from typing import NamedTuple

import pyarrow.compute as pc

from policies.contract import PlacementPolicy, Policy, Reason
from policies.estimates import estimator
from policies.model import model_of
from policies.registry import make_placement, make_policy
from policies.state import JobState
from policies.view import LiveView
from traces import Allocation, DataError, RunLog, UsageError, WorkerMap, Workload, load
from traces.cluster import mask_of

WORLD = {
    "submit",
    "finish",
    "fail",
    "give_up",
    "device_lost",
    "device_returned",
    "reject",
    "serving_demand",
    "device_lent",
    "device_given_back",
}


class Event(NamedTuple):
    """One row of the events table; ``rank`` -1 for device events."""

    time_s: float
    kind: str
    rank: int
    node: int
    mask: int


class Seat(NamedTuple):
    """A block of logical workers on a device."""

    first_rank: int
    workers: int
    node: int
    gpu: int


class Stay(NamedTuple):
    """One stay of a job on its devices."""

    start_s: float
    begin_s: float
    end_s: float
    rate: float
    reason: str
    allocation: Allocation
    seats: tuple[Seat, ...] = ()


@dataclass(frozen=True, slots=True)
class Losses:
    """The run's checkpoint model: what survives a stop (None: no periodic checkpoints)."""

    every_s: float | None
    on_preempt: bool

    def kept_s(self, done_s: float, reason: str) -> float:
        """Work that counts after a stay that ended so."""
        if reason != "fail" and (self.on_preempt or reason != "preempt"):
            return done_s
        return 0.0 if self.every_s is None else done_s // self.every_s * self.every_s


def view_at(run: RunLog, at_s: float) -> LiveView:
    """Return the view after everything that happened up to and including ``at_s``.

    Raises :class:`DataError` for a run whose record lacks its policy or whose tables disagree,
    and :class:`UsageError` for a moment after the end of the run.
    """
    return Replay(run).until(at_s)


def explain_at(run: RunLog, job_id: str, at_s: float | None = None) -> tuple[float, Reason]:
    """Say why a job of a run waits (runs, is done) at a moment: (the moment, the reason).

    Without ``at_s`` the moment is that of its submission, after the decision made then (or the end
    of a log that ends before). Codes beyond those of ``policies.reasons``: ``unsubmitted`` and
    ``rejected``. Raises :class:`UsageError` for a job that the run does not have, and as
    :func:`view_at`.
    """
    replay = Replay(run)
    rank = replay.ranks.get(job_id)
    if rank is None:
        some = islice(
            replay.ranks, 5000
        )  # of millions, a few are enough to show what ids look like
        near = get_close_matches(job_id, list(some)) or list(islice(replay.ranks, 3))
        raise UsageError(
            f"{run.path} has no job {job_id!r}; it has, for instance, {', '.join(near)}"
        )
    submit_s = float(replay.workload.table["submit_s"].iloc[rank])
    moment_s = min(submit_s, replay.end_s) if at_s is None else at_s
    view = replay.until(moment_s)
    job = replay.jobs.get(rank)
    if job is not None:
        return moment_s, replay.policy.explain(view, job)
    if moment_s < submit_s:
        return moment_s, Reason(
            code="unsubmitted",
            text=f"it is submitted at {submit_s:.12g} s",
            facts={"submit_s": submit_s},
        )
    if isnan(replay.workload.table["duration_s"].iloc[rank]):
        return moment_s, Reason(code="rejected", text="its run time is unknown")
    return moment_s, Reason(code="rejected", text="it fits nowhere on this cluster")


def policies_of(run: RunLog) -> tuple[Policy, PlacementPolicy]:
    """Return the run's policy and placement, made again from its record.

    Raises :class:`DataError` if the record has no text for them (they were given as objects).
    """
    texts = {}
    for key in ("policy", "placement"):
        described = run.record.get(key)
        text = described.get("spec") if isinstance(described, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"the record does not say how to make its {key} again",
                file=run.path / "run.json",
                column=f"{key}.spec",
                expected="a run of a named policy, such as 'tiresias:knob=2'",
            )
        texts[key] = text
    return make_policy(texts["policy"]), make_placement(texts["placement"])


class Replay:
    """A run directory, opened for replay; :meth:`until` brings its view up."""

    def __init__(self, run: RunLog) -> None:
        self.run = run
        self.policy, placement = policies_of(run)
        self.spec = run.spec
        self.workload: Workload = load(run.path)
        model = model_of(run.record.get("believed") or run.record.get("model") or {})
        demand = self.workload.demand()
        self.view = LiveView(self.spec, self.policy, placement.prepare(demand), model)
        self.ranks = {job_id: i for i, job_id in enumerate(self.workload.table["job_id"])}
        self.jobs: dict[int, JobState] = {}
        record = run.record
        self.estimate = estimator(self.policy.estimates, int(record.get("seed") or 0))
        self.model = model
        checkpoints = record.get("checkpoints") or {}
        self.losses = Losses(checkpoints.get("every_s"), checkpoints.get("on_preempt", True))
        self.serving = [(1 << node.num_gpus) - 1 for node in self.spec.nodes]
        self.end_s = float((record.get("span") or {}).get("end_s", "inf"))
        self.decide_s = float("inf")  # when the next decision is due to events so far

    def until(self, at_s: float) -> LiveView:
        """Replay all events up to and including ``at_s``."""
        if not at_s <= self.end_s:
            raise UsageError(f"{at_s:.12g} s is after the end of the run ({self.end_s:.12g} s)")
        events = list(self._events(at_s))
        self.stays = self._stays(at_s)
        rejected = {e.rank for e in events if e.kind == "reject"}
        arrivals = iter(self.workload.jobs())
        position = 0
        while position < len(events):
            event = events[position]
            if event.kind in WORLD:
                self._decide(event.time_s, including=False)
                self.view.now = event.time_s
                if event.kind == "submit":
                    job = next(arrivals)
                    if event.rank not in rejected:
                        if job.rank != event.rank:
                            raise self._stray(
                                "job_id", job.job_id, "events", "the order of submission"
                            )
                        self.jobs[job.rank] = self.view.submit(job, self.estimate(job))
                self._happen(event)
                position += 1
                if event.rank not in rejected:
                    self.decide_s = min(self.decide_s, self._decision_s(event.time_s))
                continue
            self._decide(event.time_s, including=True)
            end = position
            while end < len(events) and events[end].kind not in WORLD:
                if events[end].time_s != event.time_s:
                    break
                end += 1
            self.view.now = event.time_s
            self._carry_out(events[position:end])
            position = end
        self._decide(at_s, including=True)
        self.view.now = max(at_s, self.view.now)
        return self.view

    def _decision_s(self, time_s: float) -> float:
        """When what happens at ``time_s`` is decided on."""
        interval = self.policy.interval_s
        return time_s if interval is None else -(-time_s // interval) * interval

    def _decide(self, limit_s: float, *, including: bool) -> None:
        """Let pass the decisions before ``limit_s``: what is due changes places then."""
        view = self.view
        while True:
            due_s = view.next_change_s()
            next_s = min(self.decide_s, due_s if due_s == float("inf") else self._decision_s(due_s))
            if next_s > limit_s or (next_s == limit_s and not including):
                return
            if next_s == float("inf"):
                return
            view.now = max(view.now, next_s)
            self.decide_s = float("inf")
            view.settle()

    def _happen(self, event: Event) -> None:
        """What the world did."""
        view = self.view
        if event.kind == "finish":
            job = self.jobs[event.rank]
            self._leave(job)
            view.finish(job)
        elif event.kind == "give_up":
            job = self.jobs[event.rank]
            self._leave(job)
            view.give_up(job)
        elif event.kind == "fail":
            job = self.jobs[event.rank]
            view.stop(job, self._leave(job), "fail")
        elif event.kind == "device_lost":
            before = self.serving[event.node]
            self.serving[event.node] = before & ~event.mask
            view.withdraw(event.node, event.mask, host=not self.serving[event.node])
        elif event.kind == "device_lent":
            view.withdraw(event.node, event.mask)
        elif event.kind == "device_given_back":
            view.restore(event.node, event.mask)
        elif event.kind == "device_returned":
            host = not self.serving[event.node]
            self.serving[event.node] |= event.mask
            view.restore(event.node, event.mask, host=host)

    def _carry_out(self, events: list[Event]) -> None:
        """What one decision did: first all who leave, then all who come, as the driver does."""
        view = self.view
        for event in events:
            job = self.jobs[event.rank]
            if event.kind == "preempt":
                view.stop(job, self._leave(job), "preempt")
        for event in events:
            if event.kind in ("migrate", "resize"):
                job = self.jobs[event.rank]
                view.release(job, self._leave(job))
        for event in events:
            if event.kind == "preempt":
                continue
            job = self.jobs[event.rank]
            stay = self._stay(job)
            allocation = stay.allocation
            if job.elastic is not None:
                job.worker_map = _worker_map(stay.seats)
                rate = self.model.elastic_rate(job, allocation, self.spec, view.now)
            else:
                rate = self.model.rate(allocation, self.spec)
            if event.kind == "start":
                begin_s = view.now + self.model.start_cost_s(job)
                view.start(job, allocation, begin_s, rate)
            else:
                begin_s = view.now + self.model.move_cost_s(job)
                view.move(job, allocation, begin_s, rate, event.kind)

    def _stay(self, job: JobState) -> Stay:
        """The stay a job begins now, or is in."""
        stays = self.stays[job.rank]
        if not stays:
            raise DataError(
                f"job {job.job_id} starts at {self.view.now:.12g} s and holds nothing",
                file=self.run.path / "allocations.parquet",
                expected="a row for every start in the events table",
            )
        return stays[0]

    def _leave(self, job: JobState) -> float:
        """Close a job's stay; the work that counts after it."""
        stay = self._stay(job)
        self.stays[job.rank].pop(0)
        done_s = job.done_s
        if stay.end_s > stay.begin_s:
            done_s += (stay.end_s - stay.begin_s) * stay.rate
        return self.losses.kept_s(done_s, stay.reason)

    # Reading the tables

    def _rank(self, job_id: str, table: str) -> int:
        rank = self.ranks.get(job_id)
        if rank is None:
            raise self._stray("job_id", job_id, table, "jobs.parquet")
        return rank

    def _stray(self, column: str, value: str, table: str, where: str) -> DataError:
        return DataError(
            f"a {column} that {where} does not have",
            file=self.run.path / f"{table}.parquet",
            column=column,
            value=value,
            expected="tables of one run",
        )

    def _events(self, at_s: float) -> Iterator[Event]:
        columns = self.run.arrow("events", ["time_s", "kind", "job_id", "node", "gpus"])
        columns = columns.filter(pc.less_equal(columns["time_s"], at_s))
        nodes = {node.name: i for i, node in enumerate(self.spec.nodes)}
        for time_s, kind, job_id, node, gpus in zip(
            *(column.to_pylist() for column in columns.columns), strict=True
        ):
            rank = -1 if job_id is None else self._rank(job_id, "events")
            yield Event(time_s, kind, rank, nodes.get(node, -1), mask_of(gpus or ()))

    def _stays(self, at_s: float) -> dict[int, list[Stay]]:
        """The stays of each job in order, those that began by ``at_s``."""
        names = ["job_id", "node", "gpus", "gpu_milli", "start_s", "begin_s", "end_s", "rate"]
        columns = self.run.arrow("allocations", [*names, "end_reason", "workers", "first_rank"])
        columns = columns.filter(pc.less_equal(columns["start_s"], at_s))
        nodes = {node.name: i for i, node in enumerate(self.spec.nodes)}
        stays: dict[int, list[Stay]] = defaultdict(list)
        for row in zip(*(column.to_pylist() for column in columns.columns), strict=True):
            job_id, name, gpus, milli, start_s, begin_s, end_s, rate, reason, workers, ranks = row
            own = stays[self._rank(job_id, "allocations")]
            if name not in nodes:
                raise self._stray("node", name, "allocations", "the cluster of run.json")
            share = (nodes[name], mask_of(gpus))
            seats = tuple(
                Seat(first, count, share[0], gpu)
                for first, count, gpu in zip(ranks or (), workers or (), gpus, strict=False)
                if count
            )
            last = own[-1] if own else None
            if (
                last is not None
                and (last.start_s, last.end_s, last.begin_s) == (start_s, end_s, begin_s)
                and last.allocation.shares[-1][0] < share[0]
            ):
                # A gang over several nodes has one row for each, in order of the nodes.
                shares = (*last.allocation.shares, share)
                whole = Allocation(shares, milli)
                own[-1] = last._replace(allocation=whole, seats=last.seats + seats)
            else:
                alone = Allocation((share,), milli)
                own.append(Stay(start_s, begin_s, end_s, rate, reason, alone, seats))
        return stays


def _worker_map(seats: tuple[Seat, ...]) -> WorkerMap:
    """The worker map of an elastic job: its blocks in rank order."""
    blocks = sorted(seats)
    return WorkerMap.of([(b.node, b.gpu) for b in blocks], [b.workers for b in blocks])
