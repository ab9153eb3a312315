"""``execute``: a workload on this machine's devices under a policy; and the log it leaves.

The driver, the policy and the run directory are those of ``simulator.run.simulate``; the clock is
the wall's and the backend an agent with real workers. Every job is a real training job, named by
the workload's columns: ``model`` (``executor.presets``), ``batch_size``, ``num_workers``,
``total_steps``, and the bounds within which a policy may size it.

Accuracy does not move: a job's bits do not depend on what the policy did to it, and the run shows
it. Each job's digest at its end is compared with that of the same job run alone on one fixed device
(:func:`references`, kept in a file between runs); one that differs fails the run.

An online service may share the lanes with the jobs (``executor.online``).

Leaves out: more than one machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from executor import events as e
from executor.agent import Agent
from executor.clock import WallClock
from executor.cluster import LocalCluster, cluster_of
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.journal import Journal, Left, alone, folder_of
from executor.messages import Habits
from executor.online import Online, Serving, online
from executor.outcome import (
    device_seconds,
    said_of,
    serving_rows,
    training_rows,
    utilisation_rows,
)
from executor.past import KeptLog, Past, joined
from executor.recipes import Recipes, references, warm
from executor.resuming import past_of, state_of, whole
from executor.utilisation import Utilisation
from policies.contract import IntraJobPolicy, PlacementPolicy, Policy
from policies.driver import Driver
from policies.elastic import timed
from policies.errors import naming_the_policy
from policies.model import Costs, Model
from policies.record import (
    assign_with,
    ending,
    jobs_table,
    misfit_ranks,
    opening,
    stopping_on_signals,
)
from policies.registry import make_intra, make_placement, make_policy
from policies.services import ServingLoad, check_service
from traces import ClusterSpec, Profile, RunWriter, Workload

_LEAVE_S = 60.0
Watch = Callable[[Driver, LocalCluster, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What an execution leaves: the jobs table, the record, the run directory, whether it ended.

    ``failed``: the jobs that failed for good, and why.
    """

    jobs: pd.DataFrame
    record: dict[str, Any]
    path: Path
    complete: bool
    failed: Mapping[str, str]

    def check(self) -> None:
        """Raise ExecutorError if a job failed for good."""
        if self.failed:
            raise ExecutorError(
                "failed for good",
                where=", ".join(f"job {name!r}" for name in self.failed),
                value="; ".join(dict.fromkeys(self.failed.values())),
                expected=f"every job to finish; {self.path} holds what the others did",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """What is done beside a run; none of it changes a bit of a job.

    ``verify``: compare every job's bits with those of the same job alone. ``references``: a file
    that keeps such digests between runs. ``checkpoint_every``: steps, 0 only when a job is
    stopped. ``sample_s``: seconds between samples of the cluster.
    """

    verify: bool = True
    references: Path | None = None
    checkpoint_every: int = 200
    sample_s: float = 1.0


def execute(
    workload: Workload,
    lanes: Sequence[DeviceLane],
    *,
    profile: Profile,
    out: Path | str,
    policy: Policy | str = "fifo",
    placement: PlacementPolicy | str = "count",
    intra: IntraJobPolicy | str = "companion",
    overwrite: bool = False,
    name: str | None = None,
    seed: int = 0,
    habit: Habit | None = None,
    serving: Serving | None = None,
    resumes: Left | None = None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Executed:
    """Run ``workload`` on ``lanes`` under ``policy``; ``tandem execute`` is this function.

    ``profile``: what the policy is told of rates and costs. ``seed``: of every job's model and
    data, together with its name. ``serving``: an online service on the same lanes. ``resumes``:
    what an earlier execution left, whose jobs these are. ``watch`` is called several times a
    second, ``say`` with what is prepared before time begins.

    Ctrl-C ends the run at once: jobs stop at their next step with a checkpoint, the log says
    partial, and what is needed to go on stays beside it. Raises :class:`UsageError` and
    :class:`DataError` for what cannot be executed, ExecutorError for a job whose bits differ (the
    log is written all the same). A job that fails for good is over, the others go on; see
    ``Executed.check``.
    """
    habit = habit or Habit()
    inter, where, seats = _made(policy, placement, intra)
    spec, places = cluster_of(lanes)
    workload = timed(workload, profile)
    past, rest, ranks = past_of(resumes, workload)
    if serving is not None:
        check_service(serving.service, spec)
    recipes = Recipes(workload, places, seed)
    misfit_ranks(workload, spec, "refuse", sizes=inter.resizes)
    path = Path(out)
    begun = {} if resumes is None else {j: resumes.step_of(j) for j in recipes.ids}
    model = Model(profile=profile, costs=costs_of(profile, workload))
    record = opening(
        kind="executed",
        name=name,
        seed=seed,
        policy=(inter, policy),
        placement=(where, placement),
        intra=(seats, intra),
        cluster=(spec, None),
        workload=workload,
        model=model,
        believed=None,
    ) | {
        "services": [] if serving is None else [serving.describe()],
        "resumptions": [] if resumes is None else resumes.resumptions(),
    }
    with (
        alone(),
        RunWriter(path, workload, spec, overwrite=overwrite) as log,
        Agent(places) as agent,
        online(serving, agent, places) as service,
        ExitStack() as closing,
    ):
        reference = _prepared(recipes, agent, habit, say)
        journal = Journal(folder_of(path), _settings(record, lanes), workload, resumes)
        closing.callback(journal.close)
        cluster = LocalCluster(
            agent,
            lambda job: recipes.spec(
                ranks[job.rank], _habits(journal, job.job_id, habit), resume=True
            ),
            begun=begun,
        )
        past.write(log)
        clock = WallClock(cluster, past.time_s)
        driver = Driver(
            clock=clock,
            workload=rest,
            spec=spec,
            policy=inter,
            placement=where,
            backend=cluster,
            log=KeptLog(log, journal, cluster, ranks, past.submitted),
            model=model,
            assign=assign_with(seats, model),
            seed=seed,
            sample_s=habit.sample_s,
        )
        utilisation = Utilisation(agent, places, before=past.readings)
        if service is not None:
            _serve(driver, cluster, service, spec)
            service.begin(journal.keep, past)
            utilisation.others = service.pids
        cluster.on_wait = _beside(driver, cluster, journal, utilisation, ranks, watch)
        try:
            signals, wall_s = _driven(driver, cluster, past.time_s)
        finally:
            _leave(agent)
        driver.close()
        outcomes = joined(past.outcomes(workload), ranks, driver.outcomes)
        record |= whole(ending(driver, wall_s), workload, past)
        device_s = device_seconds(cluster, spec, profile)
        record["executor"] = said_of(cluster, clock, places, device_s, wall_s)
        record["failed"] = _failed(recipes, past, cluster)
        training = training_rows(recipes, cluster, reference, begun, past)
        log.attach("training", training)
        log.attach("utilisation", utilisation_rows(spec, utilisation.readings))
        _attach_serving(service, record, log)
        log.finish(record, outcomes.columns())
    _check_bits(training, path)
    if signals:
        raise KeyboardInterrupt(f"{path} holds what was done; tandem execute --resume {path}")
    if driver.complete:
        journal.remove()
    return Executed(
        jobs=jobs_table(workload, outcomes),
        record=record,
        path=path,
        complete=driver.complete,
        failed=record["failed"],
    )


def _attach_serving(service: Online | None, record: dict[str, Any], log: RunWriter) -> None:
    if service is not None:
        record["serving"] = service.tally.total()
        log.attach("serving", serving_rows(service))


def _failed(recipes: Recipes, past: Past, cluster: LocalCluster) -> dict[str, str]:
    """The jobs that failed for good, and why."""
    before = {recipes.ids[rank]: why for rank, why in past.failed.items()}
    return before | {event.job_id: event.reason for event in cluster.failed.values()}


def _made(
    policy: Policy | str, placement: PlacementPolicy | str, intra: IntraJobPolicy | str
) -> tuple[Policy, PlacementPolicy, IntraJobPolicy]:
    return (
        make_policy(policy) if isinstance(policy, str) else policy,
        make_placement(placement) if isinstance(placement, str) else placement,
        make_intra(intra) if isinstance(intra, str) else intra,
    )


def costs_of(profile: Profile, workload: Workload) -> Costs:
    """Return what a profile says of starting, stopping and rescaling, averaged over the jobs.

    A restart pays a start again; a checkpoint is written while the devices are held. A job that is
    to leave or to move does so at the next step boundary, in the middle of a step on average.
    """
    names = [job.elastic.model for job in workload.jobs() if job.elastic is not None]
    used = [profile.models[name] for name in names if name is not None]
    return Costs(
        start_s=_mean([m.start_s for m in used]),
        save_s=_mean([m.checkpoint_s for m in used]),
        rescale_s=_mean([m.rescale_s for m in used]),
        drain_steps=0.5,
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _settings(record: Mapping[str, Any], lanes: Sequence[DeviceLane]) -> dict[str, Any]:
    """What is needed to execute the rest after a crash."""
    names = ("name", "seed", "policy", "placement", "intra", "services", "resumptions")
    kept = {name: record[name] for name in names}
    return kept | {"lanes": [lane.to_json() for lane in lanes]}


def _habits(journal: Journal, job_id: str, habit: Habit) -> Habits:
    return Habits(
        folder=str(journal.checkpoints_of(job_id)), checkpoint_every=habit.checkpoint_every
    )


def _prepared(
    recipes: Recipes, agent: Agent, habit: Habit, say: Callable[[str], None]
) -> dict[str, str]:
    """Have the workers warm before time begins; the digests to compare with, if they are wanted."""
    say("starting workers")
    for place, lane in agent.lanes.items():
        agreements = {
            recipes.agreement(j.rank) for j in recipes.jobs if place in recipes.lanes(j.rank)
        }
        for agreement in sorted(agreements, key=str):
            warm(agent, place, lane, agreement)
    return references(recipes, agent, habit.references, say) if habit.verify else {}


class Stopper:
    """What a signal stops: the driver, and the wait that it stands in."""

    def __init__(self, driver: Driver, cluster: LocalCluster) -> None:
        self._driver, self._cluster = driver, cluster

    def stop(self) -> None:
        """End the run at once; safe in a signal handler."""
        self._driver.stop()
        self._cluster.wake(lambda _: self._driver.wake())


def _beside(
    driver: Driver,
    cluster: LocalCluster,
    journal: Journal,
    utilisation: Utilisation,
    ranks: Sequence[int],
    watch: Watch | None,
) -> Callable[[float], None]:
    """What is done while the driver waits: the journal, readings, and who watches."""
    told, read = 0, len(utilisation.readings)

    def look(now_s: float) -> None:
        nonlocal told, read
        utilisation.look(now_s)
        for reading in utilisation.readings[read:]:
            journal.keep(reading.time_s, {"reading": astuple(reading)})
        for event in cluster.told[told:]:
            if isinstance(event, (e.Rescaled, e.Recovered)):
                what = "rescaled" if isinstance(event, e.Rescaled) else "recovered"
                journal.keep(now_s, {"told": what, "job": event.job_id})
        told, read = len(cluster.told), len(utilisation.readings)
        if journal.due(now_s):
            journal.beat(now_s, state_of(driver, cluster, ranks))
        if watch is not None:
            watch(driver, cluster, now_s)

    return look


def _driven(driver: Driver, cluster: LocalCluster, at_s: float) -> tuple[list[int], float]:
    """Let time begin at ``at_s`` and the driver run: what signals ended it; how long it took."""
    stopper: Any = Stopper(driver, cluster)
    began = time.monotonic()
    cluster.begin(at_s)
    with naming_the_policy(driver.view), stopping_on_signals(stopper) as signals:
        driver.run()
    return signals, time.monotonic() - began


def _serve(driver: Driver, cluster: LocalCluster, service: Online, spec: ClusterSpec) -> None:
    """Tell the driver of the demand, and have the service look after its lanes while it waits."""
    load = ServingLoad(cluster, service.serving.service, clock=driver.clock, spec=spec)

    def look(now_s: float) -> None:
        held = {} if driver.lender is None else driver.lender.held()
        service.look(now_s, held, load.gpus, cluster.origin_s)

    service.freed = cluster.free_for_service
    cluster.on_turn = look


def _leave(agent: Agent) -> None:
    """Have the jobs that still run stop, with a checkpoint, within a bounded time."""
    left = [job_id for job_id, job in agent.jobs.items() if not job.over]
    for job_id in left:
        agent.stop(job_id, checkpoint=True)
    end = time.monotonic() + _LEAVE_S
    while any(not agent.jobs[j].over for j in left) and time.monotonic() < end:
        agent.poll(0.5)


def _check_bits(training: Sequence[Mapping[str, Any]], path: Path) -> None:
    wrong = [one["job_id"] for one in training if one["same_bits"] is False]
    if wrong:
        raise ExecutorError(
            "bits differ from those of the same job alone",
            where=f"job {wrong[0]!r}",
            value=f"{len(wrong)} of {len(training)} jobs",
            expected=f"equal digests; see training.parquet in {path}",
        )
