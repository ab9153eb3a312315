"""Small run directories, written by hand with the same writer that every run uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traces import Allocation, ClusterSpec, RunLog, RunWriter, Workload
from traces.cluster import mask_of
from traces.runlog import END_REASONS, EVENT_CODE, OUTCOMES, EventKind


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Devices of one node held by a job: what one row of the allocations table says."""

    job: str
    node: int
    gpus: Sequence[int]
    start: float
    end: float
    begin: float | None = None
    why: str = "finish"
    milli: int = 1000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a hand-made run says; ``outcomes`` override what follows from the holds."""

    jobs: Sequence[dict[str, object]]
    holds: Sequence[Hold] = ()
    cluster: str = "1x4:v100"
    outcomes: dict[str, dict[str, object]] = field(default_factory=dict)
    devices: Sequence[tuple[float, EventKind, int, Sequence[int]]] = ()
    samples: Sequence[tuple[float, str, float, float, float, int, int, float]] = ()
    record: dict[str, Any] = field(default_factory=dict)
    name: str = "hand-made"


MakeRun = Callable[..., RunLog]


def _outcome(row: Any, holds: list[Hold]) -> dict[str, object]:
    ends = [h for h in holds if h.why == "finish"]
    intervals = sorted({(h.start, h.end) for h in holds})
    finish = ends[0].end if ends else None
    last = finish if finish is not None else max((h.end for h in holds), default=row.submit_s)
    status = "finished" if ends else "running" if any(h.why == "open" for h in holds) else "waiting"
    held = sum(len(h.gpus) * h.milli / 1000 * (h.end - h.start) for h in holds)
    begin = [h.start if h.begin is None else min(h.begin, h.end) for h in holds]
    return {
        "start_s": intervals[0][0] if intervals else np.nan,
        "finish_s": np.nan if finish is None else finish,
        "jct_s": np.nan if finish is None else finish - row.submit_s,
        "queueing_s": last - row.submit_s - sum(e - s for s, e in intervals),
        "preemptions": len({h.start for h in holds if h.why == "preempt"}),
        "migrations": len({h.start for h in holds if h.why == "migrate"}),
        "resizes": len({h.start for h in holds if h.why == "resize"}),
        "failures": len({h.start for h in holds if h.why == "fail"}),
        "service_gpu_s": held,
        "overhead_gpu_s": sum(
            len(h.gpus) * h.milli / 1000 * (b - h.start) for h, b in zip(holds, begin, strict=True)
        ),
        "lost_gpu_s": 0.0,
        "status": status,
    }


def write_run(path: Path, recipe: Recipe) -> RunLog:
    """Write the recipe's run directory and open it."""
    spec = ClusterSpec.parse(recipe.cluster)
    rows = [{"duration_s": 1.0, "num_gpus": 1, **job} for job in recipe.jobs]
    workload = Workload.from_jobs(rows) if rows else _no_jobs()
    table = workload.table
    rank = {job: i for i, job in enumerate(table["job_id"])}
    held: dict[str, list[Hold]] = {job: [] for job in rank}
    for hold in recipe.holds:
        held[hold.job].append(hold)
    outcomes = []
    for row in table.itertuples():
        outcome = _outcome(row, held[row.job_id])
        outcome |= recipe.outcomes.get(row.job_id, {})
        outcome["status"] = OUTCOMES.index(outcome["status"])
        outcomes.append(outcome)
    names = list(_outcome(type("Row", (), {"submit_s": 0.0}), []))
    end = max((h.end for h in recipe.holds), default=0.0)
    with RunWriter(path, workload, spec) as writer:
        for hold in recipe.holds:
            allocation = Allocation(((hold.node, mask_of(hold.gpus)),), hold.milli)
            begin = hold.start if hold.begin is None else hold.begin
            reason = END_REASONS.index(hold.why)
            writer.allocation(rank[hold.job], allocation, hold.start, begin, hold.end, 1.0, reason)
        for time_s, kind, node, gpus in recipe.devices:
            writer.device_event(time_s, EVENT_CODE[kind], node, mask_of(gpus))
        for sample in recipe.samples:
            writer.sample(*sample)
        writer.finish(
            {
                "kind": "simulated",
                "status": "complete",
                "name": recipe.name,
                "seed": 1,
                "policy": {"name": "fifo", "params": {}, "says": ["the head of the line blocks"]},
                "placement": {"name": "consolidated", "params": {}, "says": []},
                "cluster": {
                    "text": recipe.cluster,
                    "nodes": [_fields(n) for n in spec.nodes],
                    "links": _fields(spec.links),
                },
                "workload": {"path": "hand.csv", "digest": workload.digest(), "jobs": len(table)},
                "span": {"start_s": 0.0, "end_s": end},
                **recipe.record,
            },
            {name: [outcome[name] for outcome in outcomes] for name in names},
        )
    return RunLog.open(path)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _no_jobs() -> Workload:
    from traces.schema import empty_jobs

    return Workload(empty_jobs())


def list_schedule(rng: np.random.Generator, jobs: int, cluster: str = "2x4:v100,1x4:t4") -> Recipe:
    """Schedule random jobs one after another on the GPUs that are free first.

    Some runs are cut in two by a preemption, some begin with a start cost, one-GPU jobs may ask
    for half a GPU (each half on a GPU of its own), and the last jobs may still be open.
    """
    spec = ClusterSpec.parse(cluster)
    free = {(n, g): 0.0 for n, node in enumerate(spec.nodes) for g in range(node.num_gpus)}
    rows: list[dict[str, object]] = []
    holds: list[Hold] = []
    submit = 0.0
    for i in range(jobs):
        submit += float(rng.exponential(40.0)) if rng.random() < 0.9 else 0.0
        size = int(rng.choice([1, 1, 2, 3, 4]))
        milli = 500 if size == 1 and rng.random() < 0.3 else 1000
        work = float(np.round(rng.lognormal(4.0, 1.5), 3)) + 1.0
        node = int(rng.integers(len(spec.nodes)))
        gpus = sorted(sorted((free[node, g], g) for g in range(spec.nodes[node].num_gpus))[:size])
        chosen = sorted(g for _, g in gpus)
        start = max(submit, *(t for t, _ in gpus), 0.0)
        cost = 5.0 if rng.random() < 0.5 else 0.0
        job = f"job-{i}"
        rows.append(
            {
                "job_id": job,
                "submit_s": submit,
                "duration_s": work,
                "num_gpus": size,
                "gpu_milli": milli,
                "user": f"user-{int(rng.integers(5))}",
                "vc": f"vc-{int(rng.integers(3))}",
            }
        )
        place: dict[str, Any] = {"job": job, "node": node, "gpus": chosen, "milli": milli}
        if rng.random() < 0.2:
            cut = start + work / 2
            holds.append(Hold(**place, start=start, end=cut, why="preempt"))
            start = cut + float(rng.exponential(30.0))
        end = start + cost + work
        why = "open" if i == jobs - 1 and rng.random() < 0.3 else "finish"
        holds.append(Hold(**place, start=start, begin=start + cost, end=end, why=why))
        for gpu in chosen:
            free[node, gpu] = end
    return Recipe(jobs=rows, holds=holds, cluster=cluster, name="list-scheduled")
