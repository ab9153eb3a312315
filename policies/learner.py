"""Learning in the loop: jobs report their step times, and are planned with what these teach.

EasyScale's companion module learns a job's rates from what its processes report, falls back to the
GPUs the job had when a growth did not help, and hands the new ones back (SC'23, section 3.3). What
is learned is a value (``policies.intra.learning.Memory``) that the view keeps per job
(``JobState.learned``). It decides the job's class (``JobState.kind``: rates, and GPUs it never
wants again), and of its next stays the worker map and the rate that the view believes. Where
another worker map on the same GPUs repays a change within ``horizon_s``, the job is seated anew.

A job reports once per stay, ``report_s`` after its progress begins. Left out: learning for one job
from another, later reports of the same stay (a drift within it), and replays of a learning run
(``tandem explain`` answers as if nothing had been learned).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from policies.clock import TIMER, Moment
from policies.contract import ReportingBackend
from policies.driver import Driver
from policies.elastic import Kind
from policies.intra.companion import Companion
from policies.intra.learning import Memory, Verdict, changed, learned, learned_profile
from policies.model import links_of
from policies.rates import rates_of, reference_s, step_time_of
from policies.state import RUNNING, JobState
from traces import Allocation, Elastic, Profile, UsageError, WorkerMap
from traces.workermap import devices_of

GRAIN = 0.02  # factors are rounded to this (of a logarithm), so that jobs share their classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Whether and how jobs are learned about: they report ``report_s`` into each stay.

    ``fallback``: a growth that did not help is undone. ``horizon_s``: seating a job anew must repay
    itself in that time.
    """

    report_s: float = 30.0
    fallback: bool = True
    horizon_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("report_s", "horizon_s"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise UsageError(f"learning: {name} is {value}; expected seconds above 0")


class LearningDriver(Driver):
    """A driver that learns; arguments beyond these as the driver's. Needs a believed profile."""

    def __init__(
        self, *, learning: Learning, companion: Companion, backend: ReportingBackend, **rest: Any
    ) -> None:
        super().__init__(backend=backend, **rest)
        profile = self._model.profile
        if profile is None:
            raise UsageError("learning needs a profile to correct; give one (--profile FILE)")
        self.learning = learning
        self.fallbacks = self.reseated = 0
        self._companion = companion
        self._world = backend
        self._believed: Profile = profile
        self._steps: dict[JobState, tuple[tuple[int, ...], float]] = {}  # GPUs by pool, step time
        self._kinds: dict[tuple[Kind, object], Kind] = {}
        self._plain: dict[JobState, Kind] = {}

    def _start(self, job: JobState, allocation: Allocation) -> None:
        super()._start(job, allocation)
        self._steps.pop(job, None)
        self._expect(job)

    def _arrive(self, job: JobState, allocation: Allocation, *, resized: bool) -> None:
        super()._arrive(job, allocation, resized=resized)
        before = self._steps.pop(job, None)
        if before is not None and resized:
            memory = job.learned or Memory()
            job.learned = changed(memory, self._named(before[0]), before[1], self._named(job.held))
        self._expect(job)

    def _seat(self, job: JobState, allocation: Allocation) -> None:
        if job.learned is None or job.elastic is None or job.elastic.model is None:
            super()._seat(job, allocation)
            return
        profile = learned_profile(self._believed, job.elastic.model, job.learned)
        gpus = devices_of(allocation, self.view.spec)
        job.worker_map = self._companion.assign(job.elastic, gpus, profile)

    def _rate(self, job: JobState, allocation: Allocation) -> float:
        if job.learned is None or job.elastic is None or job.worker_map is None:
            return super()._rate(job, allocation)
        step_s = self._step_s(job.elastic, job.learned, job.worker_map)
        return reference_s(self._believed, job.elastic) / step_s

    def _step_s(self, elastic: Elastic, memory: Memory, workers: WorkerMap) -> float:
        own, spec = rates_of(self._believed, elastic), self.view.spec
        rates, comm = learned(own, memory), links_of(workers, spec, own)
        return step_time_of(rates, workers.layout(spec), comm).total_s

    def _expect(self, job: JobState) -> None:
        """Let the job report in this stay, if it lasts."""
        if job.elastic is not None:
            due_s = job.begin_s + self.learning.report_s
            self.clock.at(due_s, TIMER, self._report, (job, job.allocation, job.begin_s))

    def _report(self, moment: Moment) -> None:
        job, allocation, begin_s = moment.subject
        if job.phase != RUNNING or job.allocation is not allocation or job.begin_s != begin_s:
            return  # it is elsewhere by now, and will report from there
        self.view.now = self.clock.now
        step_s = self._world.step_s(job)
        if step_s is None:
            return
        own, spec, workers = rates_of(self._believed, job.elastic), self.view.spec, job.worker_map
        memory = self._companion.observe(
            job.learned or Memory(),
            job.elastic,
            workers.layout(spec),
            step_s,
            self._believed,
            links_of(workers, spec, own),
        )
        verdict = self._companion.judge(memory, step_s)
        job.learned = memory if verdict is None else verdict.memory
        self._steps[job] = (job.held, step_s)
        news = self._set_kind(job)
        if verdict is not None and not verdict.helped and self.learning.fallback:
            self._fall_back(job, verdict)
        elif news:
            self._seat_anew(job)
        if news:  # what was believed already is no reason to decide anew
            self._ask_once()

    def _set_kind(self, job: JobState) -> bool:
        """Give the job the class of those that are as fast as it has turned out to be.

        True if that is another one than before.
        """
        assert job.kind is not None
        assert job.learned is not None
        plain = self._plain.setdefault(job, job.kind)
        steps = ((t, round(math.log(factor) / GRAIN)) for t, factor in job.learned.factors)
        factors = tuple((t, math.exp(GRAIN * step)) for t, step in steps if step)
        refused = tuple(
            tuple(dict(held).get(t, 0) for t in plain.gpu_types) for held in job.learned.refused
        )
        key = (plain, (factors, refused))
        kind = plain if not factors and not refused else self._kinds.get(key)
        if kind is None:
            rates = learned(plain.rates, Memory(factors=factors))
            kind = self._kinds[key] = replace(plain, rates=rates, refused=refused)
        news, job.kind = kind is not job.kind, kind
        return news

    def _fall_back(self, job: JobState, verdict: Verdict) -> None:
        """Give the job the GPUs back that it had, as far as they are free, and release the new."""
        counts = dict(verdict.back_to)
        draft = self.view.draft()
        if draft.resize(job, [counts.get(p.gpu_type, 0) for p in self.view.free.pools]):
            self.fallbacks += 1
            self._apply(draft)

    def _seat_anew(self, job: JobState) -> None:
        """Seat the job otherwise on the GPUs it has, if that is worth the pause."""
        seated, allocation = job.worker_map, job.allocation
        assert seated is not None
        assert allocation is not None
        assert job.elastic is not None
        assert job.learned is not None
        self._seat(job, allocation)
        better, job.worker_map = job.worker_map, seated
        assert better is not None
        if better == seated:
            return
        now_s = self._step_s(job.elastic, job.learned, seated)
        then_s = self._step_s(job.elastic, job.learned, better)
        span_s = self.learning.horizon_s
        if (span_s - self._model.costs.rescale_s) / then_s > span_s / now_s:
            self.reseated += 1
            self._arrive(job, allocation, resized=self._depart(job, allocation))

    def _named(self, held: tuple[int, ...]) -> dict[str, int]:
        return {p.gpu_type: n for p, n in zip(self.view.free.pools, held, strict=True) if n}
