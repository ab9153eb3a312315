"""The modelled world: jobs progress as piecewise-linear functions of simulated time.

A running job has a rate; its completion is one event, computed exactly, not approached in ticks.
Costs of starting, restoring, saving and migrating hold the devices without progress, every time.
A job that is told to leave or to move may go on to its next step boundary, which others wait for.
What a job loses when it stops depends on the checkpoint model. Truth lives here: the driver's view
has estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.clock import FINISH, Clock, Moment
from policies.contract import Listener
from policies.model import Model
from policies.rates import reference_s
from policies.state import JobState
from traces import Allocation, ClusterSpec, UsageError
from traces.cluster import gpus_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What survives when a job stops.

    ``every_s``: periodic checkpoints after that much progress (seconds of work, counted from the
    job's start of work); None: none. ``on_preempt``: a preempted job saves its state first and
    loses nothing; otherwise it falls back to its last periodic checkpoint, as after a failure.
    """

    every_s: float | None = None
    on_preempt: bool = True

    def __post_init__(self) -> None:
        if self.every_s is not None and not 0.0 < self.every_s < float("inf"):
            raise UsageError(f"checkpoint interval is {self.every_s}; expected seconds above 0")

    def kept_s(self, done_s: float) -> float:
        """Work that survives without warning, of ``done_s`` done."""
        if self.every_s is None:
            return 0.0
        return done_s // self.every_s * self.every_s


class SimulatedStint(Moment):
    """One stay of a job on its devices (see ``policies.contract.Stint``); the event of its end.

    ``saved_s``: work that a checkpoint holds whatever happens.
    """

    lost_s = 0.0

    def __init__(
        self,
        clock: Clock,
        rank: int,
        done_s: float,
        begin_s: float,
        rate: float,
        saved_s: float,
    ) -> None:
        # Not through super(): a run makes one per start.
        self.env = clock
        self.rank = rank
        self.done_s = done_s
        self.begin_s = begin_s
        self.rate = rate
        self.saved_s = saved_s


class SimulatedCluster:
    """A backend in simulated time. ``model`` is the truth about rates and costs."""

    def __init__(
        self,
        clock: Clock,
        spec: ClusterSpec,
        model: Model | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.clock = clock
        self.spec = spec
        self.model = model or Model()
        self.checkpoints = checkpoints or Checkpoints()
        self._uniform = self.model.uniform
        costs = self.model.costs
        self._plain = self._uniform and not (costs.start_s or costs.restore_s or costs.save_s)
        self._stints: dict[int, SimulatedStint] = {}
        self._done: dict[int, float] = {}  # work that jobs which wait again have kept
        self._saving: dict[tuple[int, int], float] = {}  # GPU -> when the last job has left it
        self._listener: Listener | None = None
        self._finishing = (self._finish,)  # what every stint calls at its end
        self.returning = 0  # devices that are out of service and will come back

    def attach(self, listener: Listener) -> None:
        """Name the driver."""
        self._listener = listener

    @property
    def listener(self) -> Listener:
        """The driver that hears of events."""
        assert self._listener is not None, "attach a driver first"
        return self._listener

    def start(self, job: JobState, allocation: Allocation) -> None:
        """Run a job on devices that are free."""
        rank = job.rank
        done_s = self._done.pop(rank, 0.0) if self._done else 0.0
        if self._plain and job.elastic is None:
            # Nothing to wait or pay for: a run starts most of its jobs this way.
            clock = self.clock
            now = clock.now
            stint = self._stints[rank] = SimulatedStint(clock, rank, done_s, now, 1.0, done_s)
            end_s = now + (job.job.duration_s - done_s)
            clock.post(stint, end_s, FINISH, self._finishing)
            return
        self._begin(job, allocation, done_s, done_s, self.model.start_cost_s(job))

    def stop(self, job: JobState, *, failed: bool) -> SimulatedStint:
        """Take a job off its devices; what it keeps is up to the checkpoint model."""
        stint = self._close(job)
        saves = not failed and self.checkpoints.on_preempt
        if not saves:
            # What it restarted from is a checkpoint too, whatever the period.
            kept = max(stint.saved_s, self.checkpoints.kept_s(stint.done_s))
            stint.lost_s = stint.done_s - kept
            stint.done_s = kept
        drain_s, drained_s = (0.0, 0.0) if failed else self._drain(job, stint)
        held_s = drain_s + (self.model.costs.save_s if saves else 0.0)
        if held_s and job.allocation is not None:
            self._hold(job.allocation, self.clock.now + held_s)
        self._done[job.rank] = stint.done_s + (drained_s if saves else 0.0)
        return stint

    def move(self, job: JobState, allocation: Allocation) -> SimulatedStint:
        """Let a running job go on on other devices."""
        stint = self._close(job)
        drain_s, drained_s = self._drain(job, stint)
        done_s, cost_s = stint.done_s + drained_s, self.model.move_cost_s(job)
        self._begin(job, allocation, done_s, stint.saved_s, cost_s, drain_s=drain_s)
        if drain_s and job.allocation is not None:
            self._hold(job.allocation, self._stints[job.rank].begin_s)
        return stint

    def _drain(self, job: JobState, stint: SimulatedStint) -> tuple[float, float]:
        """How long a job goes on where it is after its stay has ended, and what it does meanwhile.

        It does not end there. The driver is told of its work when it stops the next time, as the
        view of a real backend, too, is a step behind.
        """
        steps, profile = self.model.costs.drain_steps, self.model.profile
        if not steps or profile is None or job.elastic is None or self.clock.now <= stint.begin_s:
            return 0.0, 0.0
        step_work_s = reference_s(profile, job.elastic)
        work_s = min(steps * step_work_s, max(0.0, job.job.duration_s - stint.done_s - 1e-9))
        return work_s / stint.rate, work_s

    def _hold(self, allocation: Allocation, until_s: float) -> None:
        """Nobody begins on these devices before."""
        for node, mask in allocation.shares:
            for gpu in gpus_of(mask):
                self._saving[node, gpu] = until_s

    def hand_over_s(self, job: JobState, *, stops: bool) -> float:
        """Seconds until a job has left devices it gives up: its step in flight, and the change.

        The step can be told with a profile only; without one it takes no time.
        """
        stint = self._stints[job.rank]
        if not stops:
            change_s = self.model.move_cost_s(job)
        else:
            change_s = self.model.costs.save_s if self.checkpoints.on_preempt else 0.0
        profile, elastic, now = self.model.profile, job.elastic, self.clock.now
        if profile is None or elastic is None or now <= stint.begin_s:
            return change_s
        step_s = reference_s(profile, elastic) / stint.rate
        return change_s + step_s - (now - stint.begin_s) % step_s

    def step_s(self, job: JobState) -> float | None:
        """Seconds of a global step in this stay, as soon as it has begun; needs a profile."""
        stint, profile = self._stints[job.rank], self.model.profile
        if profile is None or job.elastic is None or self.clock.now <= stint.begin_s:
            return None
        return reference_s(profile, job.elastic) / stint.rate

    def quiet(self) -> bool:
        """Whether no device will come back."""
        return self.returning == 0

    def _begin(
        self,
        job: JobState,
        allocation: Allocation,
        done_s: float,
        saved_s: float,
        cost_s: float,
        *,
        drain_s: float = 0.0,
    ) -> None:
        now = self.clock.now
        ready_s = now + drain_s
        if self._saving:
            ready_s = max(ready_s, self._ready_s(allocation))
        begin_s = ready_s + cost_s
        if job.elastic is not None:
            rate = self.model.elastic_rate(job, allocation, self.spec, now)
        else:
            rate = 1.0 if self._uniform else self.model.rate(allocation, self.spec)
        stint = SimulatedStint(self.clock, job.rank, done_s, begin_s, rate, saved_s)
        self._stints[job.rank] = stint
        end_s = begin_s + (job.job.duration_s - done_s) / rate
        self.clock.post(stint, end_s, FINISH, self._finishing)

    def _ready_s(self, allocation: Allocation) -> float:
        """When what ran there before has left the last of these devices."""
        now = self.clock.now
        ready_s = now
        for node, mask in allocation.shares:
            for gpu in gpus_of(mask):
                until = self._saving.get((node, gpu), now)
                if until <= now:
                    self._saving.pop((node, gpu), None)
                ready_s = max(ready_s, until)
        return ready_s

    def _close(self, job: JobState) -> SimulatedStint:
        stint = self._stints.pop(job.rank)
        stint.callbacks = []  # cancelled
        now = self.clock.now
        if now > stint.begin_s:
            stint.done_s += (now - stint.begin_s) * stint.rate
        return stint

    def _finish(self, stint: SimulatedStint) -> None:
        """A stay ends because the job's work is done (the clock calls this)."""
        del self._stints[stint.rank]
        assert self._listener is not None
        self._listener.job_finished(stint.rank, stint)
