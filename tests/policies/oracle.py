"""A slow simulator that is plainly right: the policies' definitions, and nothing clever.

At every instant at which anything can happen it takes in what ends, what arrives and who changes
queue, sorts all jobs, and walks down the list: what runs and still fits stays, what waits and fits
starts, the rest waits. Devices are counted, not named. All times are fractions, so nothing rounds.
Written from the definitions (Tiresias, NSDI 2019; shortest-first as in ``docs/policies``), not from
the code under test, which never sorts everything and never walks all jobs.

Left out: costs, rates, failures, shares of GPUs, jobs that may run on several types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

from traces import Workload

Rule = Literal["fifo", "best-effort", "sjf", "srtf", "srsf", "las", "tiresias"]


class Asked(NamedTuple):
    """One job as drawn: whole seconds, GPUs, and the pool it is pinned to."""

    submit_s: int
    duration_s: int
    gpus: int
    pool: int = 0


@dataclass(frozen=True, kw_only=True)
class Discipline:
    """What to do. ``limits`` end the queues of tiresias; las uses multiples of ``quantum``."""

    rule: Rule
    by_gpus: bool = False
    blocks: bool = False
    limits: tuple[int, ...] = ()
    knob: int = 0
    quantum: int = 1

    @property
    def stops(self) -> bool:
        """Whether it takes GPUs away from running jobs."""
        return self.rule in {"srtf", "srsf", "las", "tiresias"}


@dataclass
class Job:
    """One job and what happens to it."""

    rank: int
    asked: Asked
    left: Fraction
    running: bool = False
    since: Fraction = Fraction(0)  # last submission, start or stop
    started: Fraction | None = None
    finished: Fraction | None = None
    ran: Fraction = Fraction(0)
    waited: Fraction = Fraction(0)
    preemptions: int = 0
    queue: int = 0
    entered: Fraction = Fraction(0)  # into its place in the queue
    forgiven: Fraction = Fraction(0)  # seconds run before the counters were last zeroed


class Fate(NamedTuple):
    """What became of a job."""

    start_s: float
    finish_s: float
    queueing_s: float
    preemptions: int


@dataclass
class Oracle:
    """One run: ``pools`` GPUs by pool."""

    pools: Sequence[int]
    how: Discipline
    now: Fraction = Fraction(0)
    jobs: list[Job] = field(default_factory=list)

    def run(self, asked: Sequence[Asked]) -> list[Fate]:
        """Simulate to the end; the fates in the order of ``asked``, which is the order of ties."""
        ranks = sorted(range(len(asked)), key=lambda i: (asked[i].submit_s, i))
        future = [Job(r, asked[i], Fraction(asked[i].duration_s)) for r, i in enumerate(ranks)]
        done: list[Job] = []
        while future or self.jobs:
            self._pass_to(min([Fraction(j.asked.submit_s) for j in future[:1]] + self._instants()))
            for job in [j for j in self.jobs if j.running and j.left == 0]:
                job.finished = self.now
                self.jobs.remove(job)
                done.append(job)
            while future and future[0].asked.submit_s == self.now:
                job = future.pop(0)
                job.since = job.entered = self.now
                self.jobs.append(job)
            self._change_queues()
            self._decide()
        fates = {ranks[j.rank]: fate(j) for j in done}
        return [fates[i] for i in range(len(asked))]

    def _pass_to(self, then: Fraction) -> None:
        step = then - self.now
        for job in self.jobs:
            if job.running:
                job.left -= step
                job.ran += step
            else:
                job.waited += step
        self.now = then

    def _instants(self) -> list[Fraction]:
        """When something will happen by itself: an end, a limit, a promotion."""
        found = []
        for job in self.jobs:
            if job.running:
                found.append(self.now + job.left)
                limit = self._limit(job.queue)
                if limit is not None:
                    found.append(self.now + (limit - self._service(job)) / self._weight(job))
            elif self.how.knob and job.queue > 0:
                found.append(job.since + self.how.knob * (job.ran - job.forgiven))
        return [max(t, self.now) for t in found]

    def _weight(self, job: Job) -> int:
        return 1 if self.how.rule == "tiresias" and not self.how.by_gpus else job.asked.gpus

    def _service(self, job: Job) -> Fraction:
        return (job.ran - job.forgiven) * self._weight(job)

    def _limit(self, queue: int) -> int | None:
        if self.how.rule == "las":
            return (queue + 1) * self.how.quantum
        if self.how.rule == "tiresias" and queue < len(self.how.limits):
            return self.how.limits[queue]
        return None

    def _starved(self, job: Job) -> bool:
        if not self.how.knob or job.queue == 0:
            return False
        return self.now - job.since >= self.how.knob * (job.ran - job.forgiven)

    def _change_queues(self) -> None:
        for job in self.jobs:
            limit = self._limit(job.queue)
            if job.running and limit is not None and self._service(job) >= limit:
                job.queue += 1
                job.entered = self.now
            elif not job.running and self._starved(job):
                job.queue = 0
                job.forgiven = job.ran
                job.entered = self.now

    def _key(self, job: Job) -> tuple[Fraction | int, ...]:
        asked = job.asked
        match self.how.rule:
            case "fifo" | "best-effort":
                return (job.rank,)
            case "sjf":
                return (asked.duration_s * (asked.gpus if self.how.by_gpus else 1), job.rank)
            case "srtf":
                return (job.left, job.rank)
            case "srsf":
                return (job.left * asked.gpus, job.rank)
            case "las" | "tiresias":
                return (job.queue, 0 if job.running else 1, job.entered, job.rank)

    def _decide(self) -> None:
        free = list(self.pools)
        if not self.how.stops:
            for job in self.jobs:
                free[job.asked.pool] -= job.asked.gpus * job.running
        chosen = []
        for job in sorted(self.jobs, key=self._key):
            if job.running and not self.how.stops:
                continue
            if free[job.asked.pool] >= job.asked.gpus:
                free[job.asked.pool] -= job.asked.gpus
                chosen.append(job)
            elif self.how.blocks:
                break
        for job in self.jobs:
            if self.how.stops and job.running and job not in chosen:
                job.running = False
                job.since = job.entered = self.now
                job.preemptions += 1
        for job in chosen:
            if not job.running:
                job.running = True
                job.since = job.entered = self.now
                if job.started is None:
                    job.started = self.now


def fate(job: Job) -> Fate:
    """Return the outcome of a job that has ended."""
    assert job.started is not None
    assert job.finished is not None
    return Fate(float(job.started), float(job.finished), float(job.waited), job.preemptions)


def workload_of(asked: Sequence[Asked], types: Sequence[str] = ()) -> Workload:
    """Return the same jobs as a workload; ``types`` names the pools (none: any type will do)."""
    return Workload.from_jobs(
        [
            {
                "job_id": f"j{i}",
                "submit_s": job.submit_s,
                "duration_s": job.duration_s,
                "num_gpus": job.gpus,
                "gpu_type": types[job.pool] if types else None,
            }
            for i, job in enumerate(asked)
        ]
    )
