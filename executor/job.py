"""One job as the agent sees it: a state machine that no call of waits in.

Commands say what is wanted (a worker map, a step to pause at, a checkpoint, to stop); messages of
workers say what is. Whenever both differ the job runs a script: it changes devices, finishes, or
leaves (``executor.scripts``). If a worker dies meanwhile, the script is begun again with those that
live. Before a running job is paused for a rescale its newcomers have built their task, so the pause
is short.

Leaves out: which jobs there are and who holds which lane (``executor.agent``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from executor import events as e
from executor import messages as m
from executor import scripts
from executor.crew import Watch
from executor.devices import DeviceLane
from executor.jobspec import JobSpec
from executor.jobstate import JobState
from executor.pool import Handle, Place, WorkerPool
from executor.runner import Ending, Runner, Script
from traces.workermap import WorkerMap

_ATTACH_S = 120.0  # building a task may mean importing torch and making data


class Job:
    """The state machine. The agent calls it with messages, deaths and the time."""

    def __init__(
        self,
        spec: JobSpec,
        lanes: Mapping[Place, DeviceLane],
        pool: WorkerPool,
        address: str,
        *,
        emit: Callable[[e.Event], None],
        clock: Callable[[], float],
        may_run: Callable[[Job], bool],
    ) -> None:
        self.spec = spec
        self._lanes, self._may_run = lanes, may_run
        self._state = JobState(spec, lanes, pool, address, emit=emit, clock=clock)
        self._wanted, self._crew = self._state.wanted, self._state.crew
        self._diary, self._trouble = self._state.diary, self._state.trouble
        self._watch, self._builders = Watch(clock), Watch(clock)
        self._runner = Runner()
        self._mode: Literal["standing", "running", "pausing", "script"] = "standing"
        self._run_number = 0
        self._ran = -1  # the generation that was told to run last
        self._paused: set[Handle] = set()

    # Commands.

    def rescale(self, worker_map: WorkerMap) -> None:
        """Want another worker map. Raises ExecutorError if it does not hold all ranks."""
        self._wanted.rescale(worker_map, self._lanes)
        self._diary.commanded()
        self.go()

    def pause_at(self, step: int) -> None:
        """Want to stand still after ``step`` steps, or to go on if that is later than now."""
        self._wanted.pause_at = min(step, self.spec.steps)
        if self._mode == "running" and self._wanted.pause_at <= self.step:
            self._pause()
        self.go()

    def checkpoint(self) -> None:
        """Want a checkpoint at the next step boundary."""
        self._wanted.save = True
        self.go()

    def stop(self, *, checkpoint: bool) -> None:
        """Want to leave all devices, with or without a checkpoint."""
        self._wanted.stop = checkpoint
        self.go()

    def lose(self, gpu: Place, lane: DeviceLane) -> None:
        """A lane is gone: its worker too; the other devices take its ranks over."""
        self._wanted.lose(gpu)
        for handle in [h for h in self.handles if h.lane is lane]:
            self.gone(handle, "the lane was lost")
        self.go()

    # What the agent asks.

    @property
    def step(self) -> int:
        """How many steps are committed."""
        return self._state.step

    @property
    def loss(self) -> float:
        """That of the last step; not a number before the first."""
        return self._state.loss

    @property
    def map(self) -> WorkerMap | None:
        """Where the job runs; None before it does."""
        return self._state.map

    @property
    def over(self) -> bool:
        """Whether the job has left all devices for good."""
        return self._state.over

    @property
    def members(self) -> Mapping[Place, Handle]:
        """The workers of the generation, by device in the order of ranks."""
        return self._crew.members

    @property
    def handles(self) -> list[Handle]:
        """All workers of the job."""
        return self._crew.handles

    @property
    def standing(self) -> bool:
        """Whether the job does nothing and wants nothing done."""
        return self.over or (self._mode == "standing" and not self._state.unlike)

    def claims(self) -> set[Place]:
        """Lanes on which the job has, or wants to have, logical workers."""
        wanted = set() if self._wanted.map is None else set(self._wanted.map.gpus)
        return set() if self.over else wanted | set(self.members)

    # What happened.

    def hear(self, handle: Handle, news: Any) -> None:
        """Take in a message of one of our workers."""
        if isinstance(news, m.Pong):
            self._watch.pong(handle, news)
            self._builders.pong(handle, news)
            return
        self._watch.heard()
        if isinstance(news, m.Reply):
            self._hear_reply(handle, news)
        elif isinstance(news, m.Fired):
            if news.fault in self._state.faults:
                self._state.faults.remove(news.fault)
        elif isinstance(news, m.Saved):
            self._diary.tell(e.Checkpointed, step=news.step, path=news.path, reason=news.error)
        elif isinstance(news, m.Progress):
            if handle in self.members.values() and self.map is not None:
                self._progress(handle, news, self.map)
        elif isinstance(news, m.Broke):
            if news.generation == self._ran:
                self._hear_break(handle, news)
        elif news.generation == self._state.generation:
            self._hear_pause(handle, news)

    def gone(self, handle: Handle, reason: str) -> None:
        """A worker died, hangs, or its lane was lost: bury it, and recover if it mattered."""
        if handle not in self.handles:
            return
        self._bury(handle, reason)
        self._ended(self._runner.go_on())
        if self._trouble.broken and self._mode in {"running", "pausing"}:
            self._restart()
        self.go()

    def tick(self) -> None:
        """Look whether somebody hangs; who trains is no sign that a newcomer still builds."""
        limit_s = self.spec.habits.deadline_s
        building = [h for h in self._runner.asked if h not in self._crew.attached]
        others = [h for h in self.handles if h not in building]
        if not (self._mode in {"running", "pausing"} or set(others) & set(self._runner.asked)):
            others = []
        for watch, handles, most_s in (
            (self._watch, others, limit_s),
            (self._builders, building, max(limit_s, _ATTACH_S)),
        ):
            if self.over or not handles:
                watch.rest()
                continue
            for handle, what in watch.hung(handles, most_s):
                self.gone(handle, what)

    def _hear_reply(self, handle: Handle, reply: m.Reply) -> None:
        if not self._runner.answered(handle, reply):
            return
        if self._crew.is_new(handle) and self._trouble.failure is None:
            self._state.built(handle, reply)
        self._ended(self._runner.go_on())
        self.go()

    def _progress(self, handle: Handle, news: m.Progress, worker_map: WorkerMap) -> None:
        report = news.report
        device = next(i for i, h in self._devices(worker_map).items() if h is handle)
        if device == 0:
            if news.generation == self._state.generation:
                as_wanted = worker_map == self._wanted.map
                self._diary.first_step(report.step, worker_map, as_wanted=as_wanted)
            self._state.step_done(report)
            paused_at = self._wanted.pause_at
            if paused_at <= report.step < self.spec.steps and self._mode == "running":
                self._pause()
        if news.digests:
            digests = dict(news.digests)
            self._diary.tell(e.Digested, step=report.step, device=device, digests=digests)

    def _hear_pause(self, handle: Handle, news: m.Paused) -> None:
        self._paused.add(handle)
        if self._paused == set(self.members.values()) and self._mode != "script":
            self._mode, self._state.step = "standing", news.step
            self._diary.stands()
            self.go()

    def _hear_break(self, handle: Handle, news: m.Broke) -> None:
        """The first ends the generation; who says why may come after who only lost a peer.

        All come before what their worker answers to the survey that follows.
        """
        assert self.map is not None
        if self._mode == "script":
            self._trouble.broke(handle, news, self._devices(self.map))
            return
        self._state.mark_broken(news.text)
        self._abandon()
        self._trouble.broke(handle, news, self._devices(self.map))
        self._restart()

    def _devices(self, worker_map: WorkerMap) -> dict[int, Handle]:
        """Members that live, by the number of their device."""
        members = self.members
        return {i: members[gpu] for i, gpu in enumerate(worker_map.gpus) if gpu in members}

    def _bury(self, handle: Handle, reason: str) -> None:
        lost_member = False
        for gpu, was_member in self._crew.bury(handle):
            self._diary.tell(e.LaneLost, gpu=gpu, reason=reason)
            if was_member and not self._runner.leaving:
                lost_member = True
                self._state.mark_broken(reason)
        self._runner.disturb(handle)
        if lost_member or self._mode == "script":  # who trains does not wait for a newcomer
            self._abandon()

    def _abandon(self) -> None:
        """Tell everybody that waiting for the others of this generation is in vain."""
        for handle in self.handles:
            handle.say(m.Abandon(generation=self._state.generation))

    # The machine.

    def go(self) -> None:
        """Do what is next, if anything is."""
        wanted = self._wanted
        if self.over or self._mode in {"script", "pausing"}:
            return
        failed = self._trouble.failure is not None
        if self._mode == "running":
            # Who trains hears of nothing else before it is paused.
            if failed or (self._state.unlike and self._newcomers_ready()):
                self._pause()
        elif failed:
            self._begin(scripts.fail(self._state))
        elif self._state.unlike:
            self._begin(scripts.change(self._state))
        elif wanted.map is not None and self.members:
            if self.step >= self.spec.steps:
                self._begin(scripts.finish(self._state))
            elif self.step < wanted.pause_at and self._may_run(self):
                self._run()

    def _newcomers_ready(self) -> bool:
        """Have the devices of the wanted map build their task while the job still runs."""
        for handle, request in self._state.newcomers().items():
            self._builders.heard()
            self._runner.ask(handle, request)
        return self._wanted.stop is not None or self._wanted.map is None or self._crew.ready

    def _run(self) -> None:
        self._mode, self._ran = "running", self._state.generation
        self._paused.clear()
        self._run_number += 1
        self._watch.heard()
        self._diary.runs()
        order = m.Run(
            generation=self._state.generation, until=self._wanted.pause_at, number=self._run_number
        )
        for handle in self.members.values():
            handle.say(order)

    def _pause(self) -> None:
        self._mode = "pausing"
        for handle in self.members.values():
            handle.say(m.Pause(number=self._run_number))

    def _begin(self, script: Script) -> None:
        self._mode = "script"
        self._watch.heard()
        self._builders.heard()
        self._ended(self._runner.begin(script))

    def _ended(self, ending: Ending | None) -> None:
        """Do what the end of a script means, if it has ended."""
        if ending is None or self.over:
            return
        self._mode = "standing"
        if ending.how == "done":
            self._bury_blamed()
            self.go()
            return
        if ending.how == "failed":
            self._trouble.failure = ending.text
        elif ending.how == "refused":
            self._trouble.refused(self.step, ending.text)
            self._trouble.broken = True
            if self._wanted.save:  # but once: a disk that refuses does not stop the job
                self._state.not_saved(self.step, ending.text)
        self._restart()

    def _restart(self) -> None:
        """What is known has changed: begin the change of devices again, with who is left."""
        if self._mode == "script":
            self._runner.disturb()
        elif self._trouble.failure is not None:
            self._begin(scripts.fail(self._state))
        elif self._wanted.map is not None or self._wanted.stop is not None:
            self._begin(scripts.change(self._state))
        else:
            self._mode = "standing"

    def _bury_blamed(self) -> None:
        blamed, self._trouble.blamed = self._trouble.blamed, {}
        for handle, why in blamed.items():
            if handle in self.handles:
                self._bury(handle, why)
