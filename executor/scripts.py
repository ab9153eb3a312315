"""The scripts of a job: a change of devices, a finish, and to leave all devices.

A change of devices is always the same, be it a start, a rescale, a recovery or a resume::

    survey      leave the generation; which step has each replica, which contexts are where
    choose      from which step to go on (``executor.choosing``)
    save        if a checkpoint is wanted
    move        state from peers to newcomers (or from the file); rows of sharded tables
    leave       devices that are not in the map go back to the pool
    configure   contexts to their new owners, a new process group

What each worker is asked for is in ``executor.regroup``.

Leaves out: when a script is run, and what becomes of a worker that dies meanwhile
(``executor.job``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from executor import checkpoint as files
from executor import events as e
from executor import messages as m
from executor import regroup
from executor.choosing import Target, behind, chosen
from executor.errors import ExecutorError
from executor.hashing import combined
from executor.jobspec import JobSpec
from executor.jobstate import JobState
from executor.pool import Handle
from executor.runner import Last, Part, Script
from executor.telling import Diary
from traces.workermap import WorkerMap

Surveys = Mapping[Handle, m.Surveyed]


def change(job: JobState) -> Script:
    """Change devices, recover, save or stop: whatever is wanted."""
    worker_map, wanted = job.wanted.map, job.wanted
    job.begin_generation()
    if job.order is None and job.spec.resume:
        job.order = _saved_order(job.spec)
    surveys = yield from _survey(job)
    if job.trouble.blamed or job.trouble.failure is not None:
        return  # Whoever is blamed goes first, and then what is left is asked.
    target = _choose(job, surveys)
    for surveyed in surveys.values():
        last = surveyed.last
        if last is not None and last.step <= target.step and job.diary.is_news(last.step):
            job.step_done(last)
    job.step = target.step
    job.diary.resumes(target.step)
    path = (yield from _save(job, target)) if wanted.save or wanted.stop else None
    if wanted.stop is not None:
        yield from leave(job, e.Stopped, step=target.step, checkpoint=path)
        return
    assert worker_map is not None
    yield from _regroup(job, target, worker_map)


def finish(job: JobState) -> Script:
    """All steps are done: say with which bits, and give the devices back."""
    handles = list(job.crew.members.values())
    replies = yield {handle: m.Digest() for handle in handles}
    state = {k: v for k, v in replies[handles[0]].value.items() if not k.startswith("context/")}
    for handle in handles:
        values = replies[handle].value
        state |= {k: v for k, v in values.items() if k.startswith("context/")}
    yield from leave(job, e.Finished, step=job.step, loss=job.loss, digest=combined(state))


def fail(job: JobState) -> Script:
    """The job cannot go on."""
    return leave(job, e.Failed, step=job.step, reason=job.trouble.failure)


def leave(job: JobState, kind: type[e.Event], **values: Any) -> Script:
    """Give all devices back; the job is over, for a reason that is told then.

    Whoever dies meanwhile is buried, and missed by nobody: the others have forgotten the job.
    """
    handles = job.crew.handles
    yield Last({handle: m.Detach() for handle in handles})
    job.over = True
    job.crew.disband(handles)
    job.diary.tell(kind, **values)


def _survey(job: JobState) -> Part[Surveys]:
    """Ask what the members hold, and have newcomers build the task meanwhile.

    Members whose shards are a step behind those of others do that step, if they can.
    """
    survey: dict[Handle, m.Request] = {h: m.Survey() for h in job.crew.members.values()}
    replies = yield survey | job.newcomers()
    surveys: Surveys = {handle: replies[handle].value for handle in survey}
    late = behind(surveys) if job.spec.sharding is not None else {}
    if not late or job.trouble.blamed or job.trouble.failure is not None:
        return surveys
    yield {handle: m.Forward(step=step) for handle, step in late.items()}
    replies = yield survey
    return {handle: replies[handle].value for handle in survey}


def _choose(job: JobState, surveys: Surveys) -> Target[Handle]:
    return chosen(
        surveys,
        _saved(job.spec, job.diary.started),
        lambda step: _read(job.spec, step, job.diary),
        handed=job.handed,
        num_workers=job.spec.num_workers,
        sharded=job.spec.sharding is not None,
        distrusted=job.trouble.distrust,
        audit_every=job.spec.habits.audit_every,
    )


def _save(job: JobState, target: Target[Handle]) -> Part[str | None]:
    """Save, if there is something to save and somewhere to save it; return the file."""
    if target.contexts is None or not target.holders or job.spec.habits.folder is None:
        job.not_saved(target.step, "nothing to save, or no folder")
        return target.path
    path = yield from regroup.save(job.change(), target)
    job.wanted.save = False
    job.diary.tell(e.Checkpointed, step=target.step, path=path, reason=None)
    return path


def _regroup(job: JobState, target: Target[Handle], worker_map: WorkerMap) -> Script:
    """Bring the state to the devices of a map, and begin the generation there."""
    crew = job.crew
    devices = {gpu: crew.at(gpu) for gpu in worker_map.gpus}
    handles = list(devices.values())
    placed = yield from regroup.bring(
        job.change(),
        target,
        handles,
        worker_map,
        sharding=job.spec.sharding,
        again={handle: job.attach(handle) for handle in crew.members.values()},
        numbers=job.holdings,
    )
    if target.contexts is not None:
        job.handed = {target.step: target.contexts}
    crew.change(devices)
    number = next(job.holdings)
    away: dict[Handle, m.Request] = {handle: m.Detach() for handle in crew.leaving}
    yield away | regroup.configure(job.change(), target, handles, worker_map, placed, number)
    crew.let_go()
    job.map = worker_map
    job.trouble.mended()


def _saved(spec: JobSpec, started: bool) -> Iterator[int]:
    """Steps of which a job has checkpoints, the latest first."""
    folder = spec.habits.folder
    # A new job begins anew, whatever lies in its folder.
    if folder is not None and (started or spec.resume):
        files.clean(folder)
        yield from reversed(files.checkpoints(folder))


def _read(spec: JobSpec, step: int, diary: Diary) -> Target[Handle] | None:
    """Read a checkpoint; None if it is damaged, but one that is to be resumed must be whole."""
    assert spec.habits.folder is not None
    path = files.path_of(spec.habits.folder, step)
    try:
        held = files.read(path)
    except ExecutorError as error:
        if not diary.started:
            raise
        diary.tell(e.Checkpointed, step=step, path=None, reason=str(error))
        return None
    return Target(step=held.step, contexts=held.contexts, path=str(path))


def _saved_order(spec: JobSpec) -> Any:
    """The order of reduction of the checkpoint that is resumed, which is the job's for life."""
    folder = spec.habits.folder
    steps = files.checkpoints(folder) if folder is not None else []
    if folder is None or not steps:
        return None
    path = files.path_of(folder, steps[-1])
    order = files.read(path).identity["order"]
    if spec.reduction not in {None, order["kind"]}:
        raise ExecutorError(
            "the checkpoint is of a job with another order of reduction",
            where=path,
            value=spec.reduction,
            expected=f"{order['kind']}, which a job keeps for life, or a new job",
        )
    return order
