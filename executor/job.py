"""One job as the agent sees it: a state machine that no call of waits in.

Commands say what is wanted (a worker map, a step to pause at, a checkpoint, to stop); messages of
workers say what is. Whenever both differ the job runs a *script*: a generator that yields requests
to workers and is resumed with their replies. A change of devices is always the same script, be it a
start, a rescale, a recovery or a resume from a checkpoint::

    survey      leave the generation; which step has each replica, which contexts are where
    decide      the latest step at which a replica and the contexts of all ranks live; else the
                last checkpoint; else the beginning
    save        if a checkpoint is wanted
    move        state from peers to newcomers (or from the file)
    leave       devices that are not in the map go back to the pool
    configure   contexts to their new owners, a new process group

If a worker dies meanwhile, the script is begun again with those that live. Before a running job is
paused for a rescale its newcomers have built their task, so the pause is short.

Leaves out: which jobs there are and who holds which lane (``executor.agent``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from executor import checkpoint as files
from executor import events as e
from executor import messages as m
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.faults import Fault
from executor.hashing import combined
from executor.levels import Agreement
from executor.pool import Handle, Place, WorkerPool
from executor.reduce import BUCKET_BYTES
from executor.replica import StepReport
from executor.shards import Kept, Reshuffle, Sharding, ShardMap, assigned, covering
from executor.task import TaskSpec
from traces.workermap import WorkerMap

_ATTACH_S = 120.0  # building a task may mean importing torch and making data
_PONG_S = 1.0
_MOST_DEATHS = 12  # at one step
_MOST_ERRORS = 2

# Over all jobs: a worker that served another job must not take its generations for ours.
_GENERATIONS = itertools.count(1)

Batch = Mapping[Handle, m.Request]
Replies = Mapping[Handle, m.Reply]
Script = Generator[Batch, Replies, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job: what is trained, for how many steps, and the habits beside it.

    ``resume``: begin from the last checkpoint in the folder, if there is one. ``faults`` are
    injected. ``agreement``: on a determinism level, with what the job's lanes have in common.
    ``sharding``: of the sparse tables; None: every device holds all rows. It changes no bit, and
    a checkpoint does not know of it.
    Raises ExecutorError for numbers out of range.
    """

    job_id: str
    task: TaskSpec
    num_workers: int
    steps: int
    habits: m.Habits = field(default_factory=m.Habits)
    bucket_bytes: int = BUCKET_BYTES
    resume: bool = False
    faults: tuple[Fault, ...] = ()
    agreement: Agreement | None = None
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        for name in ("num_workers", "steps"):
            if getattr(self, name) < 1:
                raise ExecutorError(
                    "bad number", where=f"job {self.job_id!r}, {name}", value=getattr(self, name)
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The step from which the job goes on, and where its contexts and state come from."""

    step: int
    contexts: Mapping[int, bytes] | None
    path: str | None = None
    holders: tuple[Handle, ...] = ()
    rows: Kept[Handle] | None = None


class Job:
    """The state machine. The agent calls it with messages, deaths and the time."""

    def __init__(
        self,
        spec: JobSpec,
        lanes: Mapping[Place, DeviceLane],
        pool: WorkerPool,
        address: tuple[str, int],
        *,
        emit: Callable[[e.Event], None],
        clock: Callable[[], float],
        may_run: Callable[[Job], bool],
    ) -> None:
        self.spec = spec
        self.step = 0
        self.loss = float("nan")
        self.map: WorkerMap | None = None
        self.over = False
        self.members: dict[Place, Handle] = {}
        self._lanes, self._pool, self._address = lanes, pool, address
        self._emit, self._clock, self._may_run = emit, clock, may_run
        self._mode = "standing"  # or running, pausing, script
        self._script: Script | None = None
        self._joining: dict[Place, Handle] = {}
        self._leaving: list[Handle] = []
        self._attached: set[Handle] = set()
        self._serials = itertools.count(1)
        self._open: dict[int, Handle] = {}
        self._replies: dict[Handle, m.Reply] = {}
        self._disturbed = False
        self._broken = False
        self._blamed: dict[Handle, str] = {}
        self._distrust: int | None = None
        self._errors: Counter[tuple[str, int]] = Counter()
        self._paused: set[Handle] = set()
        self._generation = 0
        self._run_number = 0
        self._handed: dict[int, Mapping[int, bytes]] = {}
        self._faults = list(spec.faults)
        self._order: Any = None
        # Of sharded tables: names of holdings, and what the next generation begins with.
        self._holdings = itertools.count(1)
        self._holding: int | None = None
        self._shard_map: ShardMap | None = None
        # What is wanted.
        self._wanted: WorkerMap | None = None
        self._pause_at = spec.steps
        self._stop: bool | None = None
        self._save = False
        self._failure: str | None = None
        # Times.
        self._since = clock()  # the last sign of life
        self._pinged: float | None = None
        self._pongs: dict[Handle, m.Pong] = {}
        self._commanded: float | None = None
        self._broke_at: float | None = None
        self._resumed_at = 0
        self._paused_at_s: float | None = None
        self._pause_s = 0.0
        self._last_step_s = clock()
        self._started = False
        self._told = 0  # the last step that was told of

    # Commands.

    def rescale(self, worker_map: WorkerMap) -> None:
        """Want another worker map. Raises ExecutorError if it does not hold all ranks."""
        if worker_map.num_workers != self.spec.num_workers:
            raise ExecutorError(
                "the worker map does not cover all ranks",
                where=f"job {self.spec.job_id!r}",
                value=str(worker_map),
                expected=f"{self.spec.num_workers} logical workers",
            )
        unknown = [gpu for gpu in worker_map.gpus if gpu not in self._lanes]
        if unknown:
            raise ExecutorError(
                "no such lane",
                where=f"job {self.spec.job_id!r}",
                value="{}/{}".format(*unknown[0]),
                expected=", ".join(f"{n}/{g}" for n, g in sorted(self._lanes)),
            )
        self._wanted = worker_map
        self._commanded = self._clock()
        self.go()

    def pause_at(self, step: int) -> None:
        """Want to stand still after ``step`` steps, or to go on if that is later than now."""
        self._pause_at = min(step, self.spec.steps)
        if self._mode == "running" and self._pause_at <= self.step:
            self._pause()
        self.go()

    def checkpoint(self) -> None:
        """Want a checkpoint at the next step boundary."""
        self._save = True
        self.go()

    def stop(self, *, checkpoint: bool) -> None:
        """Want to leave all devices, with or without a checkpoint."""
        self._stop = checkpoint
        self.go()

    def lose(self, gpu: Place, lane: DeviceLane) -> None:
        """A lane is gone: its worker too; the other devices take its ranks over."""
        wanted = self._wanted
        if wanted is not None and gpu in wanted.gpus:
            left = [g for g in wanted.gpus if g != gpu]
            self._wanted = _spread(left, self.spec.num_workers) if left else None
        for handle in [h for h in self.handles if h.lane is lane]:
            self.gone(handle, "the lane was lost")
        self.go()

    # What the agent asks.

    @property
    def handles(self) -> list[Handle]:
        """All workers of the job."""
        return [*self.members.values(), *self._joining.values(), *self._leaving]

    @property
    def standing(self) -> bool:
        """Whether the job does nothing and wants nothing done."""
        return self.over or (self._mode == "standing" and not self._unlike())

    def claims(self) -> set[Place]:
        """Lanes on which the job has, or wants to have, logical workers."""
        wanted = set() if self._wanted is None else set(self._wanted.gpus)
        return set() if self.over else wanted | set(self.members)

    # What happened.

    def hear(self, handle: Handle, news: Any) -> None:
        """Take in a message of one of our workers."""
        if isinstance(news, m.Pong):
            self._pongs[handle] = news
            return
        self._since = self._clock()
        if isinstance(news, m.Reply):
            self._hear_reply(handle, news)
        elif isinstance(news, m.Fired):
            if news.fault in self._faults:
                self._faults.remove(news.fault)
        elif isinstance(news, m.Saved):
            self._tell(e.Checkpointed, step=news.step, path=news.path, reason=news.error)
        elif isinstance(news, m.Progress):
            if handle in self.members.values() and self.map is not None:
                self._progress(handle, news)
        elif news.generation == self._generation:
            self._hear_step(handle, news)

    def _hear_step(self, handle: Handle, news: Any) -> None:
        if isinstance(news, m.Paused):
            self._paused.add(handle)
            if self._paused == set(self.members.values()) and self._mode != "script":
                self._mode, self._paused_at_s = "standing", self._clock()
                self.step = news.step
                self.go()
        elif isinstance(news, m.Broke):
            self._break(handle, news)

    def gone(self, handle: Handle, reason: str) -> None:
        """A worker died, hangs, or is not trusted: bury it, and recover if it mattered."""
        if handle.gone and handle not in self.handles:
            return
        self._pool.bury(handle)
        self._attached.discard(handle)
        for serial in [s for s, h in self._open.items() if h is handle]:
            del self._open[serial]
        if handle in self._leaving:
            self._leaving.remove(handle)
        for where in (self._joining, self.members):
            for gpu in [g for g, h in where.items() if h is handle]:
                del where[gpu]
                self._tell(e.LaneLost, gpu=gpu, reason=reason)
                if where is self.members:
                    self._mark_broken(reason)
        self._disturbed = True
        self._abandon()
        self._resume_script()
        self.go()

    def tick(self) -> None:
        """Look whether somebody hangs."""
        now = self._clock()
        waiting = self._mode in {"running", "pausing"} or bool(self._open)
        limit = self.spec.habits.deadline_s
        if any(h not in self._attached for h in self._open.values()):
            limit = max(limit, _ATTACH_S)
        if self.over or not waiting or now - self._since < limit:
            self._pinged = None
            return
        if self._pinged is None:
            self._pinged, self._pongs = now, {}
            for handle in self.handles:
                handle.say(m.Ping(number=0))
        elif now - self._pinged > _PONG_S:
            self._pinged, self._since = None, now
            for handle in self.handles:
                pong = self._pongs.get(handle)
                if pong is None or (pong.phase in _OWN_WORK and pong.phase_s > limit):
                    what = "does not answer" if pong is None else f"hangs in {pong.phase}"
                    self.gone(handle, f"{what}; deadline {limit:g} s")

    # The machine.

    def go(self) -> None:
        """Do what is next, if anything is."""
        if self.over or self._mode in {"script", "pausing"}:
            return
        if self._failure is not None:
            self._begin(self._leave(None))
        elif self._mode == "running":
            if self._unlike() and self._newcomers_ready():
                self._pause()
        elif self._unlike():
            self._begin(self._regroup())
        elif self._stop is None and self._wanted is not None and self.members:
            if self.step >= self.spec.steps:
                self._begin(self._finish())
            elif self.step < self._pause_at and self._may_run(self):
                self._run()

    def _unlike(self) -> bool:
        """Whether what is wanted differs from what is."""
        if self._stop is not None or self._failure is not None:
            return True
        if self._wanted is None:
            return False
        return self._broken or self._save or self._wanted != self.map

    def _newcomers_ready(self) -> bool:
        """Have the devices of the wanted map build their task while the job still runs."""
        if self._stop is not None or self._wanted is None:
            return True
        for gpu in self._wanted.gpus:
            if gpu not in self.members and gpu not in self._joining:
                handle = self._joining[gpu] = self._take(gpu)
                self._ask(handle, self._attach(handle))
        return all(handle in self._attached for handle in self._joining.values())

    def _take(self, gpu: Place) -> Handle:
        return self._pool.take(self._lanes[gpu], self.spec.agreement)

    def _attach(self, handle: Handle) -> m.Attach:
        return m.Attach(
            job_id=self.spec.job_id,
            task=self.spec.task,
            lane=handle.lane,
            agreement=self.spec.agreement,
            bucket_bytes=self.spec.bucket_bytes,
            order=self._order,
            habits=self.spec.habits,
        )

    def _pause(self) -> None:
        self._mode = "pausing"
        for handle in self.members.values():
            handle.say(m.Pause(number=self._run_number))

    def _run(self) -> None:
        self._mode = "running"
        self._paused.clear()
        self._run_number += 1
        now = self._since = self._last_step_s = self._clock()
        if self._paused_at_s is not None:
            self._pause_s = now - self._paused_at_s
        for handle in self.members.values():
            handle.say(
                m.Run(generation=self._generation, until=self._pause_at, number=self._run_number)
            )

    def _progress(self, handle: Handle, news: m.Progress) -> None:
        report = news.report
        device = self._device_of(handle)
        if device == 0:
            if news.generation == self._generation:
                self._first_step(report.step, self._clock())
            self._step_done(report)
            if self._pause_at <= report.step < self.spec.steps and self._mode == "running":
                self._pause()
        if news.digests:
            self._tell(e.Digested, step=report.step, device=device, digests=dict(news.digests))

    def _step_done(self, report: StepReport) -> None:
        """Tell of a committed step, once: one that is done again has the same bits."""
        now = self._clock()
        self.step, self.loss = report.step, report.loss
        if report.step > self._told:
            self._told = report.step
            self._tell(
                e.Progress,
                step=report.step,
                loss=report.loss,
                losses=report.losses,
                seconds=now - self._last_step_s,
                sent_bytes=report.sent_bytes,
            )
        self._last_step_s = now

    def _first_step(self, step: int, now: float) -> None:
        """Tell what the first step of a generation means."""
        assert self.map is not None
        if self._broke_at is not None:
            self._tell(
                e.Recovered,
                step=step,
                resumed_at=self._resumed_at,
                worker_map=self.map,
                seconds=now - self._broke_at,
            )
            self._broke_at = None
        if self._commanded is not None and self.map == self._wanted:
            took = now - self._commanded
            if self._started:
                self._tell(
                    e.Rescaled,
                    step=step,
                    worker_map=self.map,
                    seconds=took,
                    pause_s=self._pause_s,
                )
            else:
                self._tell(e.Running, step=step, worker_map=self.map, seconds=took)
            self._started, self._commanded = True, None

    def _device_of(self, handle: Handle) -> int:
        assert self.map is not None
        return next(i for i, gpu in enumerate(self.map.gpus) if self.members.get(gpu) is handle)

    def _break(self, handle: Handle, news: m.Broke) -> None:
        """A worker could not do a step: blame who is at fault, and recover."""
        assert self.map is not None
        self._mark_broken(news.text)
        self._abandon()
        if news.kind == "lost":
            self._count("lost", news.step, _MOST_DEATHS, news.text)
        elif handle is not self._first_to_say(news):
            pass  # everybody says the same; one count is enough
        else:
            self._count(news.kind, news.step, _MOST_ERRORS, news.text)
        if news.kind == "garbage" and not news.culprits:
            self._distrust = news.step
        if news.kind in {"garbage", "failed"} and not news.refused:
            for index in news.culprits:
                culprit = self.members.get(self.map.gpus[index])
                if culprit is not None:
                    self._blamed[culprit] = news.text
        self._restart_script()

    def _abandon(self) -> None:
        """Tell everybody that waiting for the others of this generation is in vain."""
        for handle in self.handles:
            handle.say(m.Abandon(generation=self._generation))

    def _first_to_say(self, news: m.Broke) -> Handle | None:
        """Who counts for an error that all devices report alike: the first that lives."""
        if news.kind == "failed" and not news.refused:
            return next(
                (h for h in self.members.values() if self._device_of(h) in news.culprits), None
            )
        return next(iter(self.members.values()), None)

    def _count(self, kind: str, step: int, most: int, text: str) -> None:
        self._errors[kind, step] += 1
        if self._errors[kind, step] >= most * (len(self.members) or 1 if kind == "lost" else 1):
            self._failure = text

    def _mark_broken(self, reason: str) -> None:
        if not self._broken:
            self._broken = True
            if self._broke_at is None:
                self._broke_at = self._clock()
            self._tell(e.Broken, step=self.step, reason=reason)

    # Scripts.

    def _begin(self, script: Script) -> None:
        self._mode, self._script = "script", script
        self._disturbed = False
        self._since = self._clock()
        self._advance(None)

    def _restart_script(self) -> None:
        """What is known has changed: begin the change of devices again, with who is left."""
        if self._mode == "script":
            self._disturbed = True
            return
        if self._failure is not None:
            self._begin(self._leave(None))
        elif self._wanted is not None or self._stop is not None:
            self._begin(self._regroup())
        else:
            self._mode = "standing"

    def _advance(self, replies: Replies | None) -> None:
        """Resume the script with replies, and send what it asks for next."""
        assert self._script is not None
        try:
            batch = next(self._script) if replies is None else self._script.send(replies)
        except StopIteration:
            self._script = None
            if not self.over and self._mode == "script":
                self._mode = "standing"
                self.go()
            return
        except ExecutorError as error:
            self._script = None
            self._failure = str(error)
            self._begin(self._leave(None))
            return
        self._replies = {}
        for handle, request in batch.items():
            self._ask(handle, request)
        self._resume_script()

    def _resume_script(self) -> None:
        """Go on if all replies are here; begin again if somebody died meanwhile."""
        if self._mode != "script" or self._script is None:
            if self._broken and self._mode in {"running", "pausing"}:
                self._restart_script()
            return
        if self._open:
            return
        if self._disturbed or any(r.lost for r in self._replies.values()):
            self._disturbed = False
            self._script.close()
            self._script = None
            self._mode = "standing"
            self._restart_script()
            return
        errors = [r.error for r in self._replies.values() if r.error is not None]
        if errors:
            self._script.close()
            self._script = None
            self._mode = "standing"
            self._count("request", self.step, _MOST_ERRORS, errors[0])
            self._broken = True
            self._restart_script()
            return
        self._advance(dict(self._replies))

    def _ask(self, handle: Handle, request: m.Request) -> None:
        serial = next(self._serials)
        self._open[serial] = handle
        if not handle.say(replace(request, serial=serial)):
            del self._open[serial]
            self._disturbed = True

    def _hear_reply(self, handle: Handle, reply: m.Reply) -> None:
        if self._open.pop(reply.serial, None) is None:
            return
        joins = handle in self._joining.values() and handle not in self._attached
        if joins and self._failure is None:
            self._attached_reply(handle, reply)
        if self._mode == "script":
            self._replies[handle] = reply
            self._resume_script()
        self.go()

    def _attached_reply(self, handle: Handle, reply: m.Reply) -> None:
        if reply.error is not None:
            self._failure = reply.error
            return
        found = int(reply.value["num_workers"])
        if found != self.spec.num_workers:
            self._failure = (
                f"job {self.spec.job_id!r}: the task has {found} logical workers;"
                f" expected {self.spec.num_workers}"
            )
        self._attached.add(handle)
        self._order = reply.value["order"]

    def _regroup(self) -> Script:
        """Change devices, recover, save or stop: see the module's text."""
        wanted = self._wanted
        self._generation = next(_GENERATIONS)
        if self._failure is not None:
            yield from self._leave(None)
            return
        if self._order is None and self.spec.resume:
            self._order = self._saved_order()
        survey: dict[Handle, m.Request] = {h: m.Survey() for h in self.members.values()}
        found = yield survey | self._missing(wanted)
        if self._blamed:
            self._bury_blamed()
            return
        if forward := self._forward({h: found[h].value for h in survey if h in found}):
            yield forward
            found = yield survey
        surveys: dict[Handle, m.Surveyed] = {h: found[h].value for h in survey if h in found}
        target = self._decide(surveys)
        for surveyed in surveys.values():
            if surveyed.last is not None and self._told < surveyed.last.step <= target.step:
                self._step_done(surveyed.last)
        self.step = self._resumed_at = target.step
        if self._save or self._stop:
            yield from self._write(target)
        if self._stop is not None:
            yield from self._leave(target)
            return
        assert wanted is not None
        devices = {gpu: self.members.get(gpu) or self._joining[gpu] for gpu in wanted.gpus}
        yield from self._bring_to(target, devices)
        leaving = [h for gpu, h in self.members.items() if gpu not in devices]
        yield from self._configure(target, devices, wanted, leaving)

    def _forward(self, surveys: Mapping[Handle, m.Surveyed]) -> dict[Handle, m.Request]:
        """Whose shards are a step behind those of others, and can do that step alone."""
        if self.spec.sharding is None:
            return {}
        latest = max((s.step for s in surveys.values() if s.step is not None), default=0)
        return {
            handle: m.Forward(step=latest)
            for handle, surveyed in surveys.items()
            if surveyed.prepared and surveyed.step == latest - 1
        }

    def _missing(self, wanted: WorkerMap | None) -> dict[Handle, m.Request]:
        """Take workers for devices that have none, and have them build the task."""
        batch: dict[Handle, m.Request] = {}
        if wanted is None or self._stop is not None:
            return batch
        for gpu in wanted.gpus:
            if gpu in self.members:
                continue
            handle = self._joining.get(gpu)
            if handle is None:
                handle = self._joining[gpu] = self._take(gpu)
            if handle not in self._attached and handle not in self._open.values():
                batch[handle] = self._attach(handle)
        return batch

    def _bury_blamed(self) -> None:
        blamed, self._blamed = self._blamed, {}
        self._script = None
        self._mode = "standing"
        for handle, why in blamed.items():
            if handle in self.handles:
                self.gone(handle, why)

    def _decide(self, surveys: Mapping[Handle, m.Surveyed]) -> _Target:
        """Choose the step to go on from."""
        contexts: dict[int, dict[int, bytes]] = {s: dict(c) for s, c in self._handed.items()}
        replicas: dict[int, list[Handle]] = {}
        for handle, surveyed in surveys.items():
            for step, held in surveyed.contexts.items():
                contexts.setdefault(step, {}).update(held)
            if surveyed.step is not None:
                replicas.setdefault(surveyed.step, []).append(handle)
        if self._distrust is None:
            for step in sorted(replicas, reverse=True):
                rows = covering({handle: surveys[handle].rows for handle in replicas[step]})
                if len(contexts.get(step, {})) == self.spec.num_workers and (
                    rows is not None or self.spec.sharding is None
                ):
                    return _Target(
                        step=step,
                        contexts=contexts[step],
                        holders=tuple(replicas[step]),
                        rows=rows,
                    )
        return self._from_file()

    def _from_file(self) -> _Target:
        """The last checkpoint that is whole, or the beginning."""
        folder = self.spec.habits.folder
        distrusted, self._distrust = self._distrust, None
        if folder is not None and (self._started or self.spec.resume):
            files.clean(folder)
            for step in reversed(files.checkpoints(folder)):
                if distrusted is not None and step > distrusted - self.spec.habits.audit_every:
                    continue
                path = files.path_of(folder, step)
                try:
                    held = files.read(path)
                except ExecutorError as error:
                    if not self._started:
                        raise
                    self._tell(e.Checkpointed, step=step, path=None, reason=str(error))
                    continue
                return _Target(step=held.step, contexts=held.contexts, path=str(path))
        return _Target(step=0, contexts=None)

    def _saved_order(self) -> Any:
        """The order of reduction of the checkpoint that is resumed, which is the job's for life."""
        folder = self.spec.habits.folder
        steps = files.checkpoints(folder) if folder is not None else []
        if folder is None or not steps:
            return None
        return files.read(files.path_of(folder, steps[-1])).identity["order"]

    def _write(self, target: _Target) -> Script:
        """Save, if there is something to save and somewhere to save it."""
        self._save = False
        if target.contexts is None or not target.holders or self.spec.habits.folder is None:
            self._tell(
                e.Checkpointed, step=target.step, path=None, reason="nothing to save, or no folder"
            )
            return
        writer = target.holders[0]
        if target.rows is not None:
            writer = next(iter(target.rows.numbers))
            yield self._together(target, target.rows, writer)
        replies = yield {writer: m.Save(contexts=target.contexts)}
        if writer in replies:
            path = str(replies[writer].value)
            self._tell(e.Checkpointed, step=target.step, path=path, reason=None)

    def _bring_to(self, target: _Target, devices: Mapping[Place, Handle]) -> Script:
        """Give every device of the new map the state of the target."""
        needy = [h for h in devices.values() if h not in target.holders]
        self._shard_map = self._holding = None
        if self.spec.sharding is not None:
            before = {} if target.rows is None else target.rows.numbers
            numbers = [before[h][0] if h in before else None for h in devices.values()]
            self._shard_map = assigned(numbers, self.spec.sharding.mirrored)
            if target.rows is not None:
                yield from self._bring_rows(target, target.rows, list(devices.values()), needy)
                return
        if not needy:
            return
        if target.path is not None:
            yield {handle: m.Restore(path=target.path) for handle in devices.values()}
        elif target.contexts is None:
            old = [h for h in devices.values() if h in self.members.values()]
            if old:
                yield {handle: self._attach(handle) for handle in old}
        else:
            yield self._moves(target, needy)

    def _bring_rows(
        self, target: _Target, rows: Kept[Handle], devices: list[Handle], needy: list[Handle]
    ) -> Script:
        """Give every device the rows of its shards, and newcomers the dense state."""
        assert self._shard_map is not None
        wanted = {h: self._shard_map.held(index) for index, h in enumerate(devices)}
        self._holding = rows.holding
        if rows.size == len(devices) and wanted == dict(rows.numbers) and not needy:
            return
        self._holding = next(self._holdings)
        holders = [h for h in target.holders if h in rows.numbers]
        moves = self._moves(target, needy, [h for h in holders if h not in needy])
        plan = _plan(list(moves), rows, wanted, len(devices))
        yield {
            handle: m.Reshard(move=move, plan=plan, holding=rows.holding, into=self._holding)
            for handle, move in moves.items()
        }

    def _together(
        self, target: _Target, rows: Kept[Handle], writer: Handle
    ) -> dict[Handle, m.Request]:
        """Put all rows together on the device that writes."""
        moves = self._moves(target, [], rows.numbers, purpose="gather")
        plan = _plan(list(moves), rows, {writer: (0,)}, 1)
        return {
            handle: m.Reshard(move=move, plan=plan, holding=rows.holding, into=None)
            for handle, move in moves.items()
        }

    def _moves(
        self,
        target: _Target,
        needy: list[Handle],
        others: Iterable[Handle] = (),
        *,
        purpose: str = "move",
    ) -> dict[Handle, m.Move]:
        """Newcomers are shared out over the peers that have the state; ``others`` are there too."""
        sources = list(target.holders)[: len(needy)]
        party = [*sources, *needy, *(h for h in others if h not in sources)]
        batch: dict[Handle, m.Move] = {}
        for index, handle in enumerate(party):
            targets = tuple(
                len(sources) + i for i in range(len(needy)) if i % len(sources) == index
            )
            receives = handle in needy
            source = (index - len(sources)) % len(sources) if receives else None
            batch[handle] = m.Move(
                generation=self._generation,
                meeting=self._meeting(purpose, index, len(party)),
                step=target.step,
                source=source,
                targets=targets if index < len(sources) else (),
                faults=tuple(self._faults),
            )
        return batch

    def _configure(
        self,
        target: _Target,
        devices: Mapping[Place, Handle],
        wanted: WorkerMap,
        leaving: list[Handle],
    ) -> Script:
        """Begin the generation, and let those go that are not in it."""
        blocks = tuple((ranks.start, ranks.stop) for _, ranks in wanted.blocks())
        # Those that were wanted once, and not any more, leave too.
        spare = [h for g, h in self._joining.items() if g not in devices]
        self._leaving += [*leaving, *spare]
        batch: dict[Handle, m.Request] = {handle: m.Detach() for handle in self._leaving}
        number = next(self._holdings)
        for index, handle in enumerate(devices.values()):
            mine = None
            if target.contexts is not None:
                ranks = [*range(*blocks[index]), *range(*blocks[index - 1])]
                mine = {rank: target.contexts[rank] for rank in ranks}
            batch[handle] = m.Configure(
                generation=self._generation,
                meeting=replace(
                    self._meeting("step", index, len(devices)),
                    device=_exchange_on(devices.values()),
                ),
                blocks=blocks,
                step=target.step,
                contexts=mine,
                faults=tuple(self._faults),
                shards=self._shard_map,
                holding=self._holding,
                number=number,
            )
        if target.contexts is not None:
            self._handed = {target.step: target.contexts}
        # From here on these are the members: if one dies, the others are asked what they have.
        self._joining = {}
        self.members = dict(devices)
        yield batch
        for handle in self._leaving:
            self._attached.discard(handle)
            self._pool.give_back(handle)
        self._leaving = []
        self.map, self._broken = wanted, False

    def _meeting(self, purpose: str, index: int, size: int) -> m.Meeting:
        prefix = f"{self.spec.job_id}/{id(self)}/{self._generation}/{purpose}"
        return m.Meeting(address=self._address, prefix=prefix, index=index, size=size)

    def _leave(self, target: _Target | None) -> Script:
        """Give all devices back; the job is over."""
        handles = self.handles
        yield {handle: m.Detach() for handle in handles}
        self._close(handles)
        if self._failure is not None:
            self._tell(e.Failed, step=self.step, reason=self._failure)
        elif target is not None:
            path = None
            if self._stop and self.spec.habits.folder is not None:
                path = str(files.path_of(self.spec.habits.folder, target.step))
            self._tell(e.Stopped, step=target.step, checkpoint=path)

    def _finish(self) -> Script:
        """All steps are done: say with which bits, and give the devices back."""
        handles = list(self.members.values())
        replies = yield {handle: m.Digest() for handle in handles}
        state = {k: v for k, v in replies[handles[0]].value.items() if not k.startswith("context/")}
        for handle in handles:
            values = replies[handle].value
            state |= {k: v for k, v in values.items() if k.startswith("context/")}
        yield {handle: m.Detach() for handle in handles}
        self._close(handles)
        self._tell(e.Finished, step=self.step, loss=self.loss, digest=combined(state))

    def _close(self, handles: Iterable[Handle]) -> None:
        self.over, self._mode = True, "over"
        for handle in handles:
            if handle in self.handles:
                self._pool.give_back(handle)
        self.members, self._joining, self._leaving, self._open = {}, {}, [], {}

    def _tell(self, kind: Any, **values: Any) -> None:
        self._emit(kind(job_id=self.spec.job_id, at_s=self._clock(), **values))


_OWN_WORK = frozenset({"attach", "configure", "compute", "apply", "write"})


def _plan(
    party: list[Handle],
    rows: Kept[Handle],
    wanted: Mapping[Handle, tuple[int, ...]],
    size: int,
) -> Reshuffle:
    return Reshuffle(
        held=tuple(rows.numbers.get(handle, ()) for handle in party),
        size_before=rows.size,
        wanted=tuple(wanted.get(handle, ()) for handle in party),
        size_after=size,
    )


def _exchange_on(handles: Iterable[Handle]) -> str:
    """GPUs exchange among themselves if each worker has one of its own; NCCL shares none."""
    names = [handle.lane.device for handle in handles]
    return "cuda" if "cpu" not in names and len(set(names)) == len(names) > 1 else "cpu"


def _spread(gpus: Iterable[Place], num_workers: int) -> WorkerMap:
    """Share ranks out evenly over devices, at most one device a rank."""
    devices = list(gpus)[:num_workers]
    each, more = divmod(num_workers, len(devices))
    return WorkerMap.of(devices, [each + (i < more) for i in range(len(devices))])
