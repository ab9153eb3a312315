"""A run directory as arrays: read once, shared by metrics, figures and comparison.

Source: the tables of ``traces/runlog.py``. Text columns become integer codes and GPU lists become
counts while they are still Arrow, so a million jobs are read in about a second.

Leaves out: which GPU of a node was held (``gantt.py`` and ``timeline.py`` read that themselves).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from traces.errors import DataError
from traces.runlog import RunLog

MILLI = 1000
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_JOB_NUMBERS = (
    "submit_s",
    "duration_s",
    "num_gpus",
    "gpu_milli",
    "num_workers",
    "max_gpus",
    "start_s",
    "finish_s",
    "jct_s",
    "queueing_s",
    "preemptions",
    "migrations",
    "resizes",
    "failures",
    "service_gpu_s",
    "overhead_gpu_s",
    "lost_gpu_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """The jobs table as arrays of one length. Unknown numbers are NaN.

    ``milli`` is what a job asks for in milli-GPUs. ``full_milli`` is what rate 1 stands for: the
    same, of an elastic job one GPU per logical worker. ``end_s`` is when it left the system: its
    completion, the end of its last stay if it failed for good, or the end of the log. ``active``
    are jobs that were submitted and not rejected.
    """

    job_id: pd.Series
    user: pd.Series
    vc: pd.Series
    status: pd.Series
    submit_s: Floats
    duration_s: Floats
    num_gpus: Ints
    milli: Ints
    full_milli: Ints
    start_s: Floats
    finish_s: Floats
    jct_s: Floats
    queueing_s: Floats
    preemptions: Ints
    migrations: Ints
    resizes: Ints
    failures: Ints
    service_gpu_s: Floats
    overhead_gpu_s: Floats
    lost_gpu_s: Floats
    end_s: Floats
    finished: Bools
    active: Bools

    def __len__(self) -> int:
        return len(self.submit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """The allocations table as arrays: one row per job, node and interval.

    ``job`` is the row in the jobs table, ``gpu_type`` an index into ``RunTables.gpu_types``,
    ``milli`` the milli-GPUs held, ``rate`` the job's progress per second. ``first_of_interval``
    marks one row for each interval of a job.
    """

    job: Ints
    gpu_type: Ints
    milli: Ints
    start_s: Floats
    begin_s: Floats
    end_s: Floats
    rate: Floats
    first_of_interval: Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChanges:
    """Capacity that went and came: ``change`` GPUs of type ``gpu_type`` at ``time_s``."""

    time_s: Floats
    gpu_type: Ints
    change: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Loans:
    """The loans table as arrays: one row per device and stay with an online service.

    ``gpu_type``: an index into ``RunTables.gpu_types``. ``ready_s`` is ``end_s`` for what could
    never be used. ``reclaimed``: a job gave it up. ``got``: it could be used. ``allowed_s``: the
    time within which a job had to leave it.
    """

    gpu_type: Ints
    asked_s: Floats
    ready_s: Floats
    end_s: Floats
    reclaimed: Bools
    got: Bools
    allowed_s: Floats


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """One run, read. ``label`` is what figures and tables call it.

    ``start_s`` is the first submission that was not rejected, ``end_s`` the last instant anything
    was held or finished (for a partial run, the end of its log). ``loans`` is None in a run without
    an online service.
    """

    log: RunLog
    label: str
    gpu_types: tuple[str, ...]
    gpus_by_type: dict[str, int]
    jobs: Jobs
    holds: Holds
    device_changes: DeviceChanges
    start_s: float
    end_s: float
    loans: Loans | None = None

    @property
    def num_gpus(self) -> int:
        """GPUs of the inventory, in service or not."""
        return sum(self.gpus_by_type.values())

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples table, in time order."""
        return self.log.table("samples").sort_values("time_s", kind="stable")


def read(run: RunLog, label: str | None = None) -> RunTables:
    """Read a run directory. Raises :class:`DataError` for tables that do not fit together."""
    spec = run.spec
    job_table = run.arrow("jobs", ("job_id", "user", "vc", "status", *_JOB_NUMBERS))
    held = run.arrow("allocations")
    types = list(spec.gpu_types)
    for name in pc.unique(held["gpu_type"]).to_pylist():
        if name not in types:
            types.append(name)  # held on a node without GPUs: a CPU job
    holds = _holds(run, held, job_table, types)
    counts = spec.gpus_by_type()
    changes = _device_changes(run, types)
    numbers = {name: _floats(job_table, name) for name in _JOB_NUMBERS}
    jobs = _jobs(run, job_table, numbers, holds)
    counted = jobs.submit_s[jobs.active]
    start_s = float(counted.min()) if len(counted) else 0.0
    loans = _loans(run, types)
    ends = np.concatenate([holds.end_s, jobs.finish_s[jobs.finished]])
    if loans is not None:
        ends = np.concatenate([ends, loans.end_s])
    return RunTables(
        log=run,
        label=label or str(run.record.get("name") or run.path.name),
        gpu_types=tuple(types),
        gpus_by_type={name: counts.get(name, 0) for name in types},
        jobs=jobs,
        holds=holds,
        device_changes=changes,
        start_s=start_s,
        end_s=max(float(ends.max()) if len(ends) else start_s, start_s),
        loans=loans,
    )


def _floats(table: pa.Table, name: str) -> Floats:
    values: Floats = table[name].cast(pa.float64()).to_numpy().astype(np.float64)
    return values


def _labels(table: pa.Table, name: str) -> pd.Series:
    return table[name].cast(pa.string()).dictionary_encode().to_pandas()


def _jobs(run: RunLog, table: pa.Table, numbers: dict[str, Floats], holds: Holds) -> Jobs:
    status = _labels(table, "status")
    finished = (status == "finished").to_numpy(dtype=bool)
    failed = (status == "failed").to_numpy(dtype=bool)
    active = failed | status.isin(["finished", "running", "waiting"]).to_numpy(dtype=bool)
    span = run.record.get("span") or {}
    last = [float(span.get("end_s") or 0.0)]
    last += [float(a.max()) for a in (holds.end_s, numbers["submit_s"][active]) if len(a)]
    submit_s = numbers["submit_s"]
    end_s = np.where(finished, numbers["finish_s"], np.maximum(max(last), submit_s))
    if failed.any():
        left_s = submit_s.copy()
        np.maximum.at(left_s, holds.job, holds.end_s)
        end_s = np.where(failed, left_s, end_s)
    whole = {
        name: np.nan_to_num(numbers[name]).astype(np.int64)
        for name in ("num_gpus", "gpu_milli", "preemptions", "migrations", "resizes", "failures")
    }
    milli = whole["num_gpus"] * whole["gpu_milli"]
    workers = np.nan_to_num(numbers["num_workers"]).astype(np.int64)
    return Jobs(
        job_id=table["job_id"].to_pandas(),
        user=_labels(table, "user"),
        vc=_labels(table, "vc"),
        status=status,
        submit_s=submit_s,
        duration_s=numbers["duration_s"],
        num_gpus=whole["num_gpus"],
        milli=milli,
        full_milli=np.where(np.isnan(numbers["max_gpus"]), milli, workers * MILLI),
        start_s=numbers["start_s"],
        finish_s=numbers["finish_s"],
        jct_s=numbers["jct_s"],
        queueing_s=numbers["queueing_s"],
        preemptions=whole["preemptions"],
        migrations=whole["migrations"],
        resizes=whole["resizes"],
        failures=whole["failures"],
        service_gpu_s=np.nan_to_num(numbers["service_gpu_s"]),
        overhead_gpu_s=np.nan_to_num(numbers["overhead_gpu_s"]),
        lost_gpu_s=np.nan_to_num(numbers["lost_gpu_s"]),
        end_s=end_s,
        finished=finished,
        active=active,
    )


def _holds(run: RunLog, held: pa.Table, jobs: pa.Table, types: list[str]) -> Holds:
    rows = pc.index_in(held["job_id"], value_set=jobs["job_id"].combine_chunks())
    if rows.null_count:
        stray = held["job_id"].filter(pc.is_null(rows))[0].as_py()
        raise DataError(
            "an allocation of a job that the jobs table does not have",
            file=run.path / "allocations.parquet",
            column="job_id",
            value=stray,
            expected="a job_id of jobs.parquet",
        )
    job = rows.to_numpy().astype(np.int64)
    count = pc.fill_null(pc.list_value_length(held["gpus"]), 0).to_numpy().astype(np.int64)
    start_s = _floats(held, "start_s")
    end_s = _floats(held, "end_s")
    order = np.lexsort((end_s, start_s, job))
    new = np.ones(len(job), dtype=np.bool_)
    new[1:] = False
    for values in (job, start_s, end_s):
        ordered = values[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    first = np.zeros(len(job), dtype=np.bool_)
    first[order] = new
    return Holds(
        job=job,
        gpu_type=pc.index_in(held["gpu_type"], value_set=pa.array(types, pa.string()))
        .to_numpy()
        .astype(np.int64),
        milli=count * held["gpu_milli"].to_numpy().astype(np.int64),
        start_s=start_s,
        begin_s=_floats(held, "begin_s"),
        end_s=end_s,
        rate=_floats(held, "rate"),
        first_of_interval=first,
    )


def _loans(run: RunLog, types: list[str]) -> Loans | None:
    services = run.record.get("services")
    if not services:
        return None
    table = run.arrow("loans")
    allowed = {s["gpu_type"]: float(s["give_way_s"]) for s in services}
    names = table["gpu_type"].to_pylist()
    source = table["source"].cast(pa.string()).to_numpy(zero_copy_only=False)
    end_s, ready_s = _floats(table, "end_s"), _floats(table, "ready_s")
    got = ~np.isnan(ready_s)
    return Loans(
        gpu_type=np.array([types.index(name) for name in names], dtype=np.int64),
        asked_s=_floats(table, "asked_s"),
        ready_s=np.where(got, ready_s, end_s),
        end_s=end_s,
        reclaimed=source == "reclaimed",
        got=got,
        allowed_s=np.array([allowed.get(name, 0.0) for name in names], dtype=np.float64),
    )


def device_events(run: RunLog) -> pd.DataFrame:
    """Return one row per device and change of its state: ``time_s, node, gpu, lost``.

    A device that is lost twice (alone and with its node) is lost once, and one return brings it
    back: what the log repeats changes nothing. An event without GPU indices is of the whole node.
    """
    events = run.arrow("events")
    kind = events["kind"].cast(pa.string())
    events = events.filter(
        pc.is_in(kind, value_set=pa.array(["device_lost", "device_returned"]))
    ).select(["time_s", "kind", "node", "gpus"])
    frame: Any = events.to_pandas()
    sizes = {n.name: n.num_gpus for n in run.spec.nodes}
    frame["gpus"] = [
        list(range(sizes.get(node, 0))) if gpus is None else list(gpus)
        for node, gpus in zip(frame["node"], frame["gpus"], strict=True)
    ]
    frame["lost"] = (frame["kind"].astype(str) == "device_lost").to_numpy(dtype=bool)
    frame = frame.explode("gpus").dropna(subset=["gpus"]).rename(columns={"gpus": "gpu"})
    frame = frame[["time_s", "node", "gpu", "lost"]].reset_index(drop=True)
    before = frame.groupby(["node", "gpu"])["lost"].shift(1)
    return frame[frame["lost"] != before.eq(True)].reset_index(drop=True)


def _device_changes(run: RunLog, types: list[str]) -> DeviceChanges:
    frame = device_events(run)
    type_of = {n.name: types.index(n.gpu_type) for n in run.spec.nodes if n.num_gpus}
    return DeviceChanges(
        time_s=frame["time_s"].to_numpy(dtype=np.float64),
        gpu_type=np.array([type_of[n] for n in frame["node"]], dtype=np.int64),
        change=np.where(frame["lost"].to_numpy(dtype=bool), -1, 1).astype(np.int64),
    )
