"""A world that follows a script: jobs run at exact rates on a clock that waits for nobody.

The same arithmetic as the simulator's, written anew and delivered as messages, as real workers
deliver them. Time is a number that ``wait`` moves forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from executor.clock import Message
from policies.clock import FINISH, Moment
from policies.contract import Listener
from policies.model import Model
from policies.state import JobState
from traces import Allocation, ClusterSpec


@dataclass(slots=True)
class ScriptedStint:
    """One stay of a job on its devices; ``ends_s`` is when its work is done."""

    rank: int
    begin_s: float
    rate: float
    done_s: float
    ends_s: float
    lost_s: float = 0.0


class ScriptedWorld:
    """Mailbox and backend in one. ``late_s``: messages come that much after what they tell.

    ``fails``: how much work (seconds) a job has done when it fails for good, by rank.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        model: Model,
        start_s: float,
        late_s: float = 0.0,
        fails: Mapping[int, float] | None = None,
    ) -> None:
        self._fails = dict(fails or {})
        self.spec = spec
        self.model = model
        self._late_s = late_s
        self._now_s = start_s
        self._number = count()
        self._coming: list[tuple[float, int, ScriptedStint]] = []
        self._stints: dict[int, ScriptedStint] = {}
        self._kept: dict[int, float] = {}
        self._listener: Listener | None = None
        self.returning = 0

    # The mailbox

    def now_s(self) -> float:
        return self._now_s

    def wait(self, until_s: float) -> Sequence[Message]:
        while self._coming and self._stints.get(self._coming[0][2].rank) is not self._coming[0][2]:
            heappop(self._coming)  # it was stopped before its end
        if not self._coming or self._coming[0][0] > until_s:
            self._now_s = max(self._now_s, until_s)
            return ()
        time_s, _, stint = heappop(self._coming)
        self._now_s = max(self._now_s, time_s)
        return (Message(time_s=time_s, kind=FINISH, call=self._finished, subject=stint),)

    def expecting(self) -> bool:
        return bool(self._stints)

    def _finished(self, moment: Moment) -> None:
        stint: ScriptedStint = moment.subject
        del self._stints[stint.rank]
        assert self._listener is not None
        if stint.rank in self._fails:
            self._listener.job_failed(stint.rank, stint, "its loss is no number")
        else:
            self._listener.job_finished(stint.rank, stint)

    # The backend

    @property
    def listener(self) -> Listener:
        assert self._listener is not None
        return self._listener

    def attach(self, listener: Listener) -> None:
        self._listener = listener

    def start(self, job: JobState, allocation: Allocation) -> None:
        kept_s = self._kept.pop(job.rank, 0.0)
        self._run(job, allocation, kept_s, self.model.start_cost_s(job))

    def stop(self, job: JobState, *, failed: bool) -> ScriptedStint:
        stint = self._stopped(job)
        self._kept[job.rank] = stint.done_s
        return stint

    def move(self, job: JobState, allocation: Allocation) -> ScriptedStint:
        stint = self._stopped(job)
        self._run(job, allocation, stint.done_s, self.model.move_cost_s(job))
        return stint

    def hand_over_s(self, job: JobState, *, stops: bool) -> float:
        return 0.0

    def quiet(self) -> bool:
        return self.returning == 0

    def _run(self, job: JobState, allocation: Allocation, done_s: float, cost_s: float) -> None:
        begin_s = self._now_s + cost_s
        if job.elastic is None:
            rate = self.model.rate(allocation, self.spec)
        else:
            rate = self.model.elastic_rate(job, allocation, self.spec)
        work_s = self._fails.get(job.rank, job.job.duration_s)
        ends_s = begin_s + (work_s - done_s) / rate
        stint = ScriptedStint(job.rank, begin_s, rate, done_s, ends_s)
        self._stints[job.rank] = stint
        heappush(self._coming, (ends_s + self._late_s, next(self._number), stint))

    def _stopped(self, job: JobState) -> ScriptedStint:
        stint = self._stints.pop(job.rank)
        stint.done_s += max(0.0, self._now_s - stint.begin_s) * stint.rate
        return stint
