"""The driver: the one loop, for every world.

It takes events, keeps the view, asks the policy for a plan, has its transitions carried out
(``policies.transitions``) and writes the log. It has no branch on which backend it has, and none on
a policy's name.

Everything that happens at one instant is taken in before one decision is made; the order of
kinds is that of the clock's priorities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import simpy

from policies.books import (
    IS_FAILED,
    IS_FINISHED,
    IS_REJECTED,
    IS_RUNNING,
    IS_WAITING,
    Recorder,
)
from policies.clock import ARRIVAL, DECIDE, END, TIMER, Clock, Moment
from policies.contract import Backend, PlacementPolicy, Policy, Stint
from policies.errors import PolicyError, StarvationError
from policies.estimates import estimator
from policies.lending import Lender, ServingDemand
from policies.model import Model
from policies.plan import Plan
from policies.sampling import Fragmented, samples
from policies.state import JobState
from policies.transitions import END_OPEN, Assign, Transitions
from traces import ClusterSpec, Job, UsageError, Workload
from traces.runlog import END_REASONS, EVENT_CODE

SUBMIT = EVENT_CODE["submit"]
FINISHED, FAILED, REJECTED = (EVENT_CODE[k] for k in ("finish", "fail", "reject"))
LOST, RETURNED = EVENT_CODE["device_lost"], EVENT_CODE["device_returned"]
GIVEN_UP = EVENT_CODE["give_up"]
END_FINISH, END_FAIL = (END_REASONS.index(r) for r in ("finish", "fail"))
# A round-based policy that starts nothing on an idle cluster for this many rounds is stuck.
IDLE_ROUNDS = 10_000


class Driver(Transitions):
    """Runs one workload on one backend under one policy.

    ``infeasible`` are the ranks of jobs that the cluster can never hold: they are rejected on
    arrival, and say so in the log. ``model`` is where the view's estimates of rates and costs
    come from. ``assign`` seats the logical workers of elastic jobs (default: evenly).
    ``fragmented(view)`` returns the fragmented GPUs by pool, for the samples taken every
    ``sample_s`` seconds. ``on_progress(driver)`` is called every few thousand decisions.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        workload: Workload,
        spec: ClusterSpec,
        policy: Policy,
        placement: PlacementPolicy,
        backend: Backend,
        log: Recorder,
        model: Model | None = None,
        assign: Assign | None = None,
        seed: int = 0,
        infeasible: Collection[int] = (),
        sample_s: float | None = None,
        fragmented: Fragmented | None = None,
        on_progress: Callable[[Driver], None] | None = None,
    ) -> None:
        super().__init__(
            workload=workload,
            spec=spec,
            policy=policy,
            placement=placement,
            backend=backend,
            log=log,
            model=model,
            assign=assign,
        )
        self.clock = clock
        self.complete = False
        self._infeasible = infeasible
        if policy.needs_estimates and policy.estimates == "none":
            raise UsageError(
                f"policy {policy.name}: it orders jobs by estimates of run time, and estimates is"
                " none; expected true, user or noisy:SIGMA"
            )
        self._estimate = estimator(policy.estimates, seed)
        self._sample_s = sample_s
        self._fragmented = fragmented
        self._on_progress = on_progress
        self._jobs: dict[int, JobState] = {}
        self._end = simpy.Event(clock)
        self._arrived = False
        self._deciding = False
        # One moment serves all decisions, and one all arrivals: there is never more than one ahead.
        self._decision, self._decisions = Moment(clock, None), (self._decide,)
        self._arrival, self._arrivals = Moment(clock, None), (self._take_in,)
        self._coming = workload.jobs()
        self._next_job: Job | None = None
        self.lender: Lender | None = None
        self._stopping = False
        self._interval_s = interval = policy.interval_s
        if interval is not None and not 0.0 < interval < math.inf:
            raise UsageError(f"policy {policy.name}: interval_s is {interval}; expected above 0")
        self._remembers = policy.remembers
        self._wake_s = float("inf")
        self._wake: Moment | None = None
        backend.attach(self)

    # The loop

    def run(self, until_s: float | None = None) -> None:
        """Run to the end of the workload, or to ``until_s``.

        Raises :class:`PlanError` for an impossible plan and :class:`StarvationError` when jobs
        wait that nothing will ever start. What a policy's own code raises passes through; see
        :func:`policies.errors.naming_the_policy`.
        """
        if len(self.workload) == 0:
            if until_s is not None:  # online services come and go without any job
                self.clock.at(until_s, END, lambda _: self._end.succeed(True))
                self.clock.run(until=self._end)
            self.complete = True
            return
        self._next_job = job = next(self._coming)
        self.clock.post(self._arrival, max(job.submit_s, self.clock.now), ARRIVAL, self._arrivals)
        if self._sample_s is not None:
            first_s = float(self.workload.table["submit_s"].iloc[0])
            log, measure = self.log, self._fragmented
            self.clock.process(
                samples(self.clock, self.view, log, measure, first_s, self._sample_s)
            )
        if until_s is not None:
            self.clock.at(until_s, END, lambda _: self._end.succeed(False))
        self.complete = bool(self.clock.run(until=self._end))

    def stop(self) -> None:
        """End the run at the next decision (safe to call from a signal handler)."""
        self._stopping = True

    def _take_in(self, _: Moment) -> None:
        """Take in the jobs that are submitted at this instant, and wait for the next."""
        view, log = self.view, self.log
        view.now = now = self.clock.now
        job = self._next_job
        while job is not None and job.submit_s <= now:
            rank = job.rank
            self.counts.submitted += 1
            log.event(now, SUBMIT, rank)
            if rank in self._infeasible:
                self.outcomes.status[rank] = IS_REJECTED
                self.counts.rejected += 1
                log.event(now, REJECTED, rank)
            else:
                self._jobs[rank] = view.submit(job, self._estimate(job))
                if not self._deciding:
                    self._ask()
            job = next(self._coming, None)
        self._next_job = job
        if job is not None:
            self.clock.post(self._arrival, job.submit_s, ARRIVAL, self._arrivals)
            return
        self._arrived = True
        if not self._jobs:
            self._end.succeed(True)

    def wake(self) -> None:
        """Ask for a decision now, though nothing has happened: a wish to stop is then noticed."""
        if not self._deciding:
            self._ask()

    def _ask(self) -> None:
        """See to it that a decision is made at this instant, or at the end of this round."""
        self._deciding = True
        interval = self._interval_s
        if interval is None:
            clock = self.clock
            clock.post(self._decision, clock.now, DECIDE, self._decisions)
        else:
            self.clock.at(_round_at(self.clock.now, interval), DECIDE, self._decide)

    def _decide(self, _: Moment) -> None:
        self._deciding = False
        if self._stopping:
            self._end.succeed(False)
            return
        view = self.view
        view.now = self.clock.now
        counts = self.counts
        counts.decisions += 1
        remembers = self._remembers
        if remembers:
            view.settle()
        if self.lender is not None and self.lender.short:
            self.lender.serve()
        plan = self.policy.plan(view)
        if not isinstance(plan, Plan):
            raise PolicyError(self.policy, view.now, f"plan() returned {plan!r}, which is no Plan")
        if plan.changes:
            self._apply(plan)
            counts.idle_rounds = 0
        if remembers:
            self._set_wake()
        if not view.running.members and self._jobs:
            self._check_stuck()
        if self._interval_s is not None and self._jobs and not self._deciding:
            self._next_round()
        if self._on_progress is not None and counts.decisions & 4095 == 0:
            self._on_progress(self)

    def _next_round(self) -> None:
        interval = self._interval_s
        assert interval is not None
        self._deciding = True
        after = math.nextafter(self.clock.now, math.inf)
        self.clock.at(_round_at(after, interval), DECIDE, self._decide)

    def _set_wake(self) -> None:
        """Wake up when the place of some job changes by itself."""
        due = self.view.next_change_s()
        if due == self._wake_s:
            return
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._wake_s = due
        if due != float("inf"):
            self._wake = self.clock.at(due, TIMER, self._woken)

    def _woken(self, _: Moment) -> None:
        self._wake = None
        self._wake_s = float("inf")
        if not self._deciding:
            self._ask()

    def _check_stuck(self) -> None:
        """Nothing runs although jobs wait: an error if nothing can ever change that."""
        if not self._arrived or not self.backend.quiet() or self._wake_s != float("inf"):
            return
        if self.lender is not None and self.lender.lingering:
            return
        if self._interval_s is not None:
            self.counts.idle_rounds += 1
            if self.counts.idle_rounds < IDLE_ROUNDS:
                return
        raise StarvationError(self.policy, self.view)

    # Events of the world

    def job_finished(self, rank: int, stint: Stint) -> None:
        """A job's work is done."""
        job = self._jobs.pop(rank)
        view = self.view
        view.now = now = self.clock.now
        self._leave(job, stint, END_FINISH)
        view.finish(job)
        outcomes = self.outcomes
        outcomes.finish_s[rank] = now
        outcomes.jct_s[rank] = now - job.job.submit_s
        outcomes.status[rank] = IS_FINISHED
        self._record(job)
        self.counts.finished += 1
        self.log.event(now, FINISHED, rank)
        self._after_an_end()

    def job_failed(self, rank: int, stint: Stint, reason: str) -> None:
        """A job failed for good: it is over, and what it held is free."""
        job = self._jobs.pop(rank)
        self.view.now = now = self.clock.now
        self._leave(job, stint, END_FAIL)
        self.view.give_up(job)
        self.outcomes.status[rank] = IS_FAILED
        self._record(job)
        self.counts.given_up += 1
        self.log.event(now, GIVEN_UP, rank, reason)
        self._after_an_end()

    def _after_an_end(self) -> None:
        if not self._jobs and self._arrived:
            self._end.succeed(True)
        elif not self._deciding:
            self._ask()
        elif self.lender is not None and self._interval_s is not None:
            self.lender.serve()  # it need not wait for the next round

    def devices_lost(self, node: int, mask: int, detail: str, *, host: bool = False) -> None:
        """GPUs fail or are taken away; jobs on them stop and wait again."""
        view = self.view
        view.now = now = self.clock.now
        for job in list(view.running):
            assert job.allocation is not None
            if any(n == node and (m & mask or (host and not m)) for n, m in job.allocation.shares):
                stint = self.backend.stop(job, failed=True)
                self._leave(job, stint, END_FAIL)
                view.stop(job, stint.done_s, "fail")
                self.counts.failures += 1
                self.log.event(now, FAILED, job.rank)
                self._efforts.failed(job, now)
        lender = self.lender
        lent = 0 if lender is None else lender.lose(node, mask)
        view.withdraw(node, mask & ~lent, host=host)
        self.log.device_event(now, LOST, node, mask, detail)
        if lender is not None and lent:
            lender.replace()
        if not self._deciding:
            self._ask()

    def devices_returned(self, node: int, mask: int, detail: str, *, host: bool = False) -> None:
        """GPUs are back."""
        self.view.now = now = self.clock.now
        self.view.restore(node, mask, host=host)
        self.log.device_event(now, RETURNED, node, mask, detail)
        if not self._deciding:
            self._ask()

    def serving_demand(self, demand: ServingDemand) -> None:
        """An online service needs another number of GPUs."""
        self.view.now = self.clock.now
        if self.lender is None:
            self.lender = Lender(
                self.clock,
                self.view,
                self.policy,
                self.log,
                self._apply,
                self._ask_once,
                self.backend.hand_over_s,
            )
        self.lender.demand(demand)
        self._ask_once()

    def device_ready(self, node: int, gpu: int) -> None:
        """A device that the service was lent can be used from now on."""
        self.view.now = self.clock.now
        if self.lender is not None:
            self.lender.used((node, gpu))

    def _ask_once(self) -> None:
        if not self._deciding:
            self._ask()

    # Books

    def _record(self, job: JobState) -> None:
        outcomes, rank = self.outcomes, job.rank
        if job.first_start_s is not None:
            outcomes.start_s[rank] = job.first_start_s
        outcomes.queueing_s[rank] = job.waited_s
        if job.preemptions or job.migrations or job.failures or job.resizes:
            outcomes.preemptions[rank] = job.preemptions
            outcomes.migrations[rank] = job.migrations
            outcomes.resizes[rank] = job.resizes
            outcomes.failures[rank] = job.failures
        outcomes.service_gpu_s[rank] = job.served_gpu_s

    def close(self) -> None:
        """Enter what is still open (an interrupted run, or one that was told to stop)."""
        now = self.clock.now
        self.view.now = now
        if self.lender is not None:
            self.lender.close()
        for rank, job in self._jobs.items():
            self._record(job)
            self.outcomes.status[rank] = IS_RUNNING if job.running else IS_WAITING
            self.outcomes.queueing_s[rank] = job.waiting_s(now)
            self.outcomes.service_gpu_s[rank] = job.attained_gpu_s(now)
            if job.running:
                self._leave(job, self.backend.stop(job, failed=False), END_OPEN)


def _round_at(time_s: float, interval_s: float) -> float:
    """The first multiple of the interval that is not before ``time_s``, as floats have it."""
    rounds = time_s // interval_s
    while rounds * interval_s < time_s:
        rounds += 1
    return rounds * interval_s
