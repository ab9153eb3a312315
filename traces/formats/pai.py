"""Alibaba PAI 2020 (cluster-trace-gpu-v2020): job, task, instance, group and machine tables.

Source: github.com/alibaba/clusterdata, ``cluster-trace-gpu-v2020`` (README, NSDI'22). Five CSVs
without header lines, joined as the README says: a job has tasks (``job_name``), a task instances;
``inst_id`` names the *job* and leads to its group tags. ``plan_gpu`` and ``plan_cpu`` are percent
per instance, memory is in GB (its values are round in MiB). A job's GPUs are the sum over its
tasks of ``inst_num * plan_gpu / 100``; its run time is the mean of its instances', the last row
by (status, start, end) of each worker. Time 0 means missing; run times of 0 or less become 1 s,
both as the authors' own scripts have it. Times are shifted but keep the hour and weekday of UTC+8.
Left out: the sensor table (utilisation), machine metrics, and on which machine an instance ran.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from traces.cluster import ClusterSpec, Node
from traces.errors import DataError, UsageError
from traces.formats.options import Option, choice
from traces.formats.pai_instances import run_times
from traces.formats.raw import Head, Raw, read_raw
from traces.formats.shares import milli, whole_or_share
from traces.formats.table import Table
from traces.workload import Repair, Workload

OPTIONS: tuple[Option, ...] = (
    Option(
        "gpu_type",
        "task",
        "'task': the type the tasks were given; 'spec': only the type the user asked for, from the"
        " group_tag table",
    ),
    Option(
        "instances",
        "auto",
        "'auto': use the instance table if it is there; 'skip': run times from the task table",
    ),
)

_COLUMNS: dict[str, tuple[str, ...]] = {
    "job_table": ("job_name", "inst_id", "user", "status", "start_time", "end_time"),
    "task_table": (
        "job_name",
        "task_name",
        "inst_num",
        "status",
        "start_time",
        "end_time",
        "plan_cpu",
        "plan_mem",
        "plan_gpu",
        "gpu_type",
    ),
    "instance_table": (
        "job_name",
        "task_name",
        "inst_name",
        "worker_name",
        "inst_id",
        "status",
        "start_time",
        "end_time",
        "machine",
    ),
    "group_tag_table": ("inst_id", "user", "gpu_type_spec", "group", "workload"),
    "machine_spec": ("machine", "gpu_type", "cap_cpu", "cap_mem", "cap_gpu"),
}
_STATUSES = {
    "Terminated": "completed",
    "Failed": "failed",
    "Interrupted": "killed",
    "Running": "running",
    "Waiting": "pending",
    "Ready": "pending",
}
_SUFFIXES = ("", ".gz", ".bz2", ".xz")
_NO_GPU = "CPU"


def sniff(head: Head) -> bool:
    """Whether it is the job table by its name and width, or a directory with it in it."""
    if head.is_dir:
        return any(_is_table(name, "job_table") for name in head.names)
    return _looks_like(head, "job_table")


def sniff_nodes(head: Head) -> bool:
    """Whether it is the machine table by its name and width, or a directory with it in it."""
    if head.is_dir:
        return any(_is_table(name, "machine_spec") for name in head.names)
    return _looks_like(head, "machine_spec")


def _is_table(name: str, table: str) -> bool:
    return any(name.lower().endswith(f"{table}.csv{suffix}") for suffix in _SUFFIXES)


def _looks_like(head: Head, table: str) -> bool:
    if head.is_parquet or not head.lines:
        return False
    width = len(_COLUMNS[table])
    named = head.name.endswith(f"{table}.csv") and len(head.columns) == width
    return named or head.columns == _COLUMNS[table]


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read a directory of tables, or a job table with the others beside it.

    The task table is needed (it holds the GPUs), instance and group_tag tables are used where they
    are. Raises :class:`DataError` with file, row and column.
    """
    by_spec = choice(options, "gpu_type", ("task", "spec")) == "spec"
    use_instances = choice(options, "instances", ("auto", "skip")) == "auto"
    files = _Files(path)
    jobs = files.table("job_table")
    tasks = files.table("task_table")
    assert jobs is not None
    assert tasks is not None
    instances = files.raw("instance_table", optional=True) if use_instances else None
    tags = files.table("group_tag_table", optional=True)
    if by_spec and tags is None:
        raise UsageError(f"option gpu_type=spec: no group_tag table beside {files.job_path}")
    names = jobs.text("job_name", nullable=False)
    tasks.set_aside(
        ~tasks.text("job_name", nullable=False).isin(names), "a task of no job: set aside"
    )
    asked, ran = _tasks(tasks)
    repairs: list[Repair] = []
    notes = ["shifted seconds that keep the hour and weekday of UTC+8"]
    if instances is None:
        notes.append("no instance table: run times are the tasks', weighted by their instances")
    else:
        timed, repairs = run_times(instances, _COLUMNS["instance_table"], names.tolist())
        ran = timed.combine_first(ran)
    table = _jobs(jobs, asked, ran, None if tags is None else _tags(tags), by_spec)
    repairs += [r for t in (jobs, tasks, tags) if t is not None for r in t.repairs]
    source = files.raws[0].source(
        "pai", zone="UTC+8", repairs=tuple(repairs), notes=tuple(notes), options=options
    )
    return Workload(table, replace(source, path=str(path), sha256=files.digest()))


def read_nodes(path: Path) -> ClusterSpec:
    """Read the machine table (or the one in a directory); CPU machines have the type ``cpu``."""
    if path.is_dir():
        path = _beside(path, "machine_spec")
    table = _table(read_raw(path), "machine_spec")
    table.unique("machine")
    gpus = table.integer("cap_gpu", high=1024)
    gpu_type = table.text("gpu_type").replace(_NO_GPU, "cpu")
    table.refuse(gpu_type.isna() & (gpus > 0), "gpu_type", "GPUs of no type", "a GPU type")
    rows = zip(
        table.text("machine", nullable=False).tolist(),
        gpu_type.fillna("cpu").tolist(),
        gpus.tolist(),
        np.rint(table.number("cap_cpu", high=1e6) * 1000).tolist(),
        np.rint(table.number("cap_mem", high=1e9) * 1024).tolist(),
        strict=True,
    )
    return ClusterSpec(
        tuple(
            Node(
                name=name,
                gpu_type=kind,
                num_gpus=int(count),
                cpu_milli=int(cpu),
                memory_mib=int(memory),
            )
            for name, kind, count, cpu, memory in rows
        )
    )


class _Files:
    """The tables of one download, and the hash over all that were read."""

    def __init__(self, path: Path) -> None:
        self.job_path = _beside(path, "job_table") if path.is_dir() else path
        self.raws: list[Raw] = []

    def raw(self, name: str, *, optional: bool = False) -> Raw | None:
        path = self.job_path
        if name != "job_table":
            folder = self.job_path.parent
            if optional and not _found(folder, name):
                return None
            path = _beside(folder, name)
        raw = read_raw(path)
        self.raws.append(raw)
        return raw

    def table(self, name: str, *, optional: bool = False) -> Table | None:
        raw = self.raw(name, optional=optional)
        return None if raw is None else _table(raw, name)

    def digest(self) -> str:
        return hashlib.sha256("".join(raw.sha256 for raw in self.raws).encode()).hexdigest()


def _found(folder: Path, table: str) -> list[Path]:
    return (
        sorted(p for p in folder.iterdir() if _is_table(p.name, table)) if folder.is_dir() else []
    )


def _beside(folder: Path, table: str) -> Path:
    found = _found(folder, table)
    if not found:
        raise DataError(
            f"no {table} here",
            file=folder,
            expected=f"pai_{table}.csv, unpacked from the publisher's pai_{table}.tar.gz"
            " (or compressed as .gz, .bz2, .xz)",
        )
    return found[0]


def _table(raw: Raw, name: str) -> Table:
    columns = _COLUMNS[name]
    headed = raw.data[:400].removeprefix(b"\xef\xbb\xbf").startswith(",".join(columns).encode())
    return Table(raw) if headed else Table(raw, header=columns)


def _times(table: Table) -> tuple[Any, Any]:
    start = table.number("start_time", nullable=True)
    end = table.number("end_time", nullable=True)
    return start.mask(start == 0), end.mask(end == 0)


def _last_rows(table: Table, keys: Sequence[str], what: str) -> tuple[Any, Any, Any]:
    """Return times (start, end) and a mask of the last row by (status, start, end) per key."""
    start, end = _times(table)
    last = np.ones(len(table), dtype=bool)
    twice = table.frame.duplicated(list(keys), keep=False)
    if twice.any():
        # Equal times are told apart by all that the row says, so the file's order never matters.
        order = table.frame.assign(start_time=start, end_time=end)[twice]
        rest = [c for c in order.columns if c not in ("status", "start_time", "end_time")]
        order = order.sort_values(["status", "start_time", "end_time", *rest], na_position="first")
        last[order.index[order.duplicated(list(keys), keep="last")]] = False
    table.note(~last, f"several rows of one {what}: the last by (status, start, end) is kept")
    return start, end, last


def _run_times(table: Table, start: Any, end: Any, kept: Any) -> Any:
    duration = end - start
    short = kept & (duration <= 0).to_numpy()
    table.note(short, "run time of 0 s or less: taken as 1 s")
    return duration.mask(short, 1.0)


def _tasks(table: Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Per job: what it asks for (index ``job_name``), and when its tasks ran."""
    start, end, kept = _last_rows(table, ("job_name", "task_name"), "task")
    count = table.integer("inst_num", nullable=True, high=1e6)
    table.note(kept & count.isna().to_numpy(), "no instance count: taken as one")
    count = count.fillna(1).to_numpy(dtype=np.int64)
    each = milli(table.number("plan_gpu", nullable=True, high=1e7).fillna(0.0).to_numpy() / 100)
    gpu_type = table.text("gpu_type").replace(_NO_GPU, pd.NA)
    frame = pd.DataFrame(
        {
            "job_name": table.text("job_name", nullable=False),
            "workers": count,
            "milli": each * count,
            "split": (each % 1000 != 0) & (count > 1),
            "gpu_type": gpu_type.mask(each == 0),
            "cpu": np.rint(table.number("plan_cpu", nullable=True, high=1e7) * 10) * count,
            "memory": np.rint(table.number("plan_mem", nullable=True, high=1e7) * 1024) * count,
            "start": start,
            "weighted": _run_times(table, start, end, kept) * count,
            "timed": np.where((end - start).isna(), 0, count),
        }
    )[kept].sort_values(["job_name", "weighted"])  # sums of floats need one order
    groups = frame.groupby("job_name")
    asked = groups[["workers", "milli"]].sum()
    asked["split"] = groups["split"].any()
    asked["cpu"] = groups["cpu"].sum(min_count=1)
    asked["memory"] = groups["memory"].sum(min_count=1)
    asked["gpu_type"] = _joined_types(frame)
    ran = pd.DataFrame(
        {
            "start": groups["start"].min(),
            "duration": groups["weighted"].sum(min_count=1) / groups["timed"].sum(),
        }
    )
    return asked, ran


def _joined_types(frame: pd.DataFrame) -> Any:
    """Each job's distinct GPU types in alphabetical order, joined by ``|``."""
    pairs = frame.loc[frame["gpu_type"].notna(), ["job_name", "gpu_type"]].drop_duplicates()
    pairs = pairs.sort_values(["job_name", "gpu_type"])
    several = pairs["job_name"].duplicated(keep=False)
    single = pairs[~several].set_index("job_name")["gpu_type"]
    joined = pairs[several].groupby("job_name")["gpu_type"].agg("|".join)
    return pd.concat([single, joined])


def _tags(table: Table) -> pd.DataFrame:
    frame = pd.DataFrame(
        {column: table.text(column) for column in ("inst_id", "gpu_type_spec", "workload")}
    )
    frame = frame.sort_values(list(frame.columns), na_position="first")
    return frame.drop_duplicates("inst_id", keep="last").set_index("inst_id")


def _jobs(
    table: Table,
    asked: pd.DataFrame,
    ran: pd.DataFrame,
    tags: pd.DataFrame | None,
    by_spec: bool,
) -> pd.DataFrame:
    _, _, kept = _last_rows(table, ("job_name",), "job")
    table.frame = table.frame.loc[kept].reset_index(drop=True)
    table.lines = table.lines[kept]
    names = table.text("job_name", nullable=False)
    table.set_aside(~names.isin(asked.index), "a job without tasks: what it asked for is unknown")
    submit, _ = _times(table)
    first = ran["start"].reindex(table.frame["job_name"]).reset_index(drop=True)
    table.note(submit.isna() & first.notna(), "no submission time: its first start is taken")
    table.set_aside(submit.isna() & first.isna(), "neither a submission nor a start time")
    names = table.text("job_name", nullable=False)
    submit, end = _times(table)
    need = asked.reindex(names).reset_index(drop=True)
    seen = ran.reindex(names).reset_index(drop=True)
    num_gpus, gpu_milli, rounded = whole_or_share(need["milli"].to_numpy(dtype=np.int64))
    table.note(rounded, "fractional GPUs above one in total: rounded up to whole GPUs")
    table.note(need["split"], "shares of a GPU for several instances: added up")
    gpu_type = need["gpu_type"].astype("string")
    table.note(
        gpu_type.str.contains("|", regex=False).fillna(False),
        "tasks on several GPU types: kept as alternatives",
    )
    model = pd.Series(pd.NA, index=names.index, dtype="string")
    if tags is not None:
        tag = tags.reindex(table.text("inst_id")).reset_index(drop=True)
        model = tag["workload"]
        if by_spec:
            gpu_type = tag["gpu_type_spec"].mask(num_gpus == 0)
    status = table.choice("status", _STATUSES, missing="unknown", other="unknown")
    return pd.DataFrame(
        {
            "job_id": names,
            "submit_s": submit.fillna(seen["start"]),
            "start_s": seen["start"],
            "duration_s": seen["duration"],
            "num_gpus": num_gpus,
            "gpu_milli": gpu_milli,
            "gpu_type": gpu_type,
            "num_workers": need["workers"],
            "cpu_milli": need["cpu"],
            "memory_mib": need["memory"],
            "single_node": (need["workers"] == 1).to_numpy(dtype=bool),
            "user": table.text("user"),
            "kind": "training",
            "status": status,
            "model": model,
            "right_censored": (status == "running").to_numpy(dtype=bool) & end.isna().to_numpy(),
        }
    )
