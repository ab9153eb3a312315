"""``simulate``: one workload, one cluster, one policy, to the end; and the record it leaves."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from policies.books import NoLog
from policies.contract import IntraJobPolicy, PlacementPolicy, Policy
from policies.driver import Driver
from policies.elastic import timed
from policies.errors import naming_the_policy
from policies.intra.companion import Companion
from policies.learner import Learning, LearningDriver
from policies.model import Model
from policies.placement.fragmentation import Fragmentation, typical
from policies.record import (
    assign_with,
    ending,
    jobs_table,
    misfit_ranks,
    opening,
    sampling_s,
    start_s,
    stopping_on_signals,
)
from policies.registry import make_intra, make_placement, make_policy
from policies.services import Service, ServingLoad
from simulator.clock import SimulatedClock
from simulator.cluster import Checkpoints, SimulatedCluster
from simulator.failures import Source
from simulator.outages import Outages
from traces import ClusterSpec, DataError, RunWriter, UsageError, Workload, load_cluster


@dataclass(frozen=True, slots=True)
class Result:
    """What a simulation leaves.

    ``jobs``: one row per job in rank order: ``job_id``, ``submit_s``, ``num_gpus`` and the outcome
    columns of the run log. ``record``: what ``run.json`` says. ``path``: the run directory, or
    None. ``complete``: False if it was interrupted or told to stop.
    """

    jobs: pd.DataFrame
    record: dict[str, Any]
    path: Path | None
    complete: bool


def simulate(
    workload: Workload,
    cluster: ClusterSpec | str,
    *,
    policy: Policy | str = "fifo",
    placement: PlacementPolicy | str = "count",
    out: Path | str | None = None,
    overwrite: bool = False,
    name: str | None = None,
    model: Model | None = None,
    believed: Model | None = None,
    intra: IntraJobPolicy | str | None = None,
    checkpoints: Checkpoints | None = None,
    outages: Sequence[Source] = (),
    services: Sequence[Service] = (),
    learning: Learning | None = None,
    seed: int = 0,
    misfits: Literal["refuse", "reject"] = "refuse",
    untimed: Literal["refuse", "reject"] = "refuse",
    sample_s: float | None = None,
    until_s: float | None = None,
    on_progress: Callable[[Driver], None] | None = None,
) -> Result:
    """Replay ``workload`` on ``cluster`` under ``policy``; ``tandem run`` is this function.

    ``model`` is the world's truth about rates and costs (default: everything runs at rate 1 and
    costs nothing); ``believed`` is what the policy is told of it (default: the truth).
    ``intra``: who seats the logical workers of elastic jobs (default: ``companion`` if the model
    has a profile, else evenly); it plans with what is believed.
    ``outages``: when devices go out of service (``simulator/failures.py``); ``checkpoints``: what a
    job keeps when it loses its devices. ``services``: online services that own what they need.
    ``learning``: jobs report how fast they are, and what is believed is corrected by that.
    ``misfits``: jobs that fit nowhere on the cluster are an error ("refuse"), or are rejected on
    arrival and recorded as such ("reject"); ``untimed``: the same for jobs without a run time.
    ``sample_s``: seconds between samples (default: about a thousandth of the span of submissions;
    after every 4,000 samples it doubles). ``until_s``: stop there; the run is then partial.

    With ``out``, a run directory is written (``traces/runlog.py``); if the run fails, nothing is
    left behind, and if it is interrupted (KeyboardInterrupt), what there is is written, marked
    partial, and the interrupt goes on.

    Raises :class:`DataError` for workloads that cannot be replayed, :class:`UsageError` for
    parameters that cannot be, ``PlanError``, ``PolicyError`` and ``StarvationError`` for faults of
    the policy.
    """
    spec = load_cluster(cluster) if isinstance(cluster, str) else cluster
    inter = make_policy(policy) if isinstance(policy, str) else policy
    where = make_placement(placement) if isinstance(placement, str) else placement
    profile = None if model is None else model.profile
    seats = make_intra(intra) if isinstance(intra, str) else intra
    if profile is not None:
        workload = timed(workload, profile)
        seats = seats or (make_intra("companion") if workload.elastic else None)
    elif seats is not None:
        raise UsageError("an intra-job policy needs a profile; give one (--profile FILE)")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}; expected a whole number from 0 to 2^64 - 1")
    without_time = _untimed(workload, untimed)
    without_place = misfit_ranks(workload, spec, misfits, sizes=inter.resizes)
    clock = SimulatedClock(start_s(workload))
    if until_s is not None and not until_s >= clock.now:
        raise UsageError(f"until is {until_s} s; expected {clock.now:.12g} s (the start) or later")
    backend = SimulatedCluster(clock, spec, model, checkpoints)
    record = opening(
        kind="simulated",
        name=name,
        seed=seed,
        policy=(inter, policy),
        placement=(where, placement),
        intra=(seats, intra),
        cluster=(spec, cluster),
        workload=workload,
        model=backend.model,
        believed=believed,
    ) | {
        "checkpoints": dataclasses.asdict(backend.checkpoints),
        "services": [service.describe() for service in services],
        "learning": None if learning is None else dataclasses.asdict(learning),
        "outages": [source.describe() for source in outages],
        "rejected": {"misfits": len(without_place), "untimed": len(without_time)},
    }
    path = None if out is None else Path(out)
    measure = Fragmentation(typical(workload.demand()))
    with NoLog() if path is None else RunWriter(path, workload, spec, overwrite=overwrite) as log:
        driver = _driver(learning, seats)(
            clock=clock,
            workload=workload,
            spec=spec,
            policy=inter,
            placement=where,
            backend=backend,
            log=log,
            model=believed or backend.model,
            assign=assign_with(seats, believed or backend.model),
            seed=seed,
            infeasible=without_time | without_place,
            sample_s=None if path is None else sampling_s(workload, sample_s),
            fragmented=lambda view: measure(view.free),
            on_progress=on_progress,
        )
        for service in services:
            ServingLoad(backend, service, clock=clock, spec=spec)
        if outages:
            Outages(backend, outages, stream(seed, "outages"))
        began = time.perf_counter()
        with (
            _fewer_collections(),
            naming_the_policy(driver.view),
            stopping_on_signals(driver) as signals,
        ):
            driver.run(until_s)
        driver.close()
        record.update(ending(driver, time.perf_counter() - began))
        log.finish(record, driver.outcomes.columns())
    if signals:
        raise KeyboardInterrupt(*([] if path is None else [f"{path} holds what was done by then"]))
    return Result(jobs_table(workload, driver.outcomes), record, path, driver.complete)


def _driver(learning: Learning | None, seats: IntraJobPolicy | None) -> Callable[..., Driver]:
    """The driver to make: one that learns, if asked to."""
    if learning is None:
        return Driver
    if not isinstance(seats, Companion):
        raise UsageError(
            "learning needs a profile and the intra-job policy companion (--profile FILE)"
        )
    return partial(LearningDriver, learning=learning, companion=seats)


def stream(seed: int, component: str) -> np.random.Generator:
    """The random stream of one component: a child of the run's seed, named, not numbered."""
    key = int.from_bytes(hashlib.blake2b(component.encode(), digest_size=4).digest(), "little")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))


def _untimed(workload: Workload, untimed: str) -> frozenset[int]:
    """Ranks of jobs without a run time; an error unless they are to be rejected."""
    ranks = np.flatnonzero(workload.table["duration_s"].isna().to_numpy())
    if len(ranks) and untimed == "refuse":
        first = workload.table["job_id"][int(ranks[0])]
        raise DataError(
            f"{len(ranks)} of {len(workload)} jobs have no run time (first: {first})",
            file=workload.source.path or None,
            column="duration_s",
            expected="a trace with run times, or untimed=reject (--untimed reject) to run without"
            " these jobs",
        )
    return frozenset(ranks.tolist())


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """A run makes many objects and hardly any cycles; look for those less often."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
