"""The run log: the directory every run leaves, simulated or executed.

``run.json`` says what was run; four Parquet tables say what happened. Each table is written in
row groups while the run goes on, so a million jobs need little memory, and an interrupted run
closes its tables and says ``"status": "partial"``. A run is written under a temporary name beside
its target and renamed when it is whole, so a failed start leaves nothing behind.

The columns are listed in :data:`TABLES`; ``docs/run-log.md`` is written from it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from traces.cluster import Allocation, ClusterSpec, Links, Node, gpus_of
from traces.errors import DataError, UsageError
from traces.schema import JOB_COLUMNS

if TYPE_CHECKING:
    from traces.workload import Workload

FORMAT_VERSION = 1
_FLUSH_ROWS = 131_072

EventKind = Literal[
    "submit",
    "start",
    "preempt",
    "migrate",
    "resize",
    "finish",
    "fail",
    "reject",
    "device_lost",
    "device_returned",
]
EVENT_KINDS: tuple[EventKind, ...] = (
    "submit",
    "start",
    "preempt",
    "migrate",
    "resize",
    "finish",
    "fail",
    "reject",
    "device_lost",
    "device_returned",
)
EVENT_CODE: dict[EventKind, int] = {kind: code for code, kind in enumerate(EVENT_KINDS)}

END_REASONS = ("finish", "preempt", "migrate", "resize", "fail", "open")

Outcome = Literal["finished", "running", "waiting", "rejected", "unsubmitted"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "running", "waiting", "rejected", "unsubmitted")


@dataclass(frozen=True, slots=True)
class LogColumn:
    """One column of a run table: its Arrow type, unit ('' if none) and meaning."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


_EVENT_ROW = np.dtype([("time_s", "f8"), ("kind", "i1"), ("rank", "i8")])
_STAY_ROW = np.dtype(
    [
        ("rank", "i8"),
        ("node", "i8"),
        ("milli", "i2"),
        ("start_s", "f8"),
        ("begin_s", "f8"),
        ("end_s", "f8"),
        ("rate", "f8"),
        ("reason", "i1"),
    ]
)

_STRING = pa.string()
_FLOAT = pa.float64()
_LABEL = pa.dictionary(pa.int8(), pa.string())

JOB_OUTCOME_COLUMNS: tuple[LogColumn, ...] = (
    LogColumn("start_s", _FLOAT, "s", "first start in this run; null: never"),
    LogColumn("finish_s", _FLOAT, "s", "completion; null: not in this run"),
    LogColumn("jct_s", _FLOAT, "s", "job completion time: finish_s - submit_s"),
    LogColumn(
        "queueing_s", _FLOAT, "s", "time spent waiting, before the first start and between runs"
    ),
    LogColumn("preemptions", pa.int32(), "", "times it was stopped by the policy"),
    LogColumn("migrations", pa.int32(), "", "times it was moved to other devices while running"),
    LogColumn("failures", pa.int32(), "", "times it lost its devices"),
    LogColumn(
        "service_gpu_s", _FLOAT, "GPU s", "attained service: GPU-seconds held (shares as fractions)"
    ),
    LogColumn(
        "overhead_gpu_s", _FLOAT, "GPU s", "held without progress: start, restore, migration costs"
    ),
    LogColumn("lost_gpu_s", _FLOAT, "GPU s", "progress thrown away by preemptions and failures"),
    LogColumn("status", _LABEL, "", "one of " + ", ".join(OUTCOMES)),
)
# The trace's own record of these two is kept beside the run's.
_RENAMED = {"start_s": "trace_start_s", "status": "trace_status"}

TABLES: dict[str, tuple[LogColumn, ...]] = {
    "jobs": (
        *(
            LogColumn(
                _RENAMED.get(c.name, c.name),
                {"string": _STRING, "float": _FLOAT, "int": pa.int64(), "bool": pa.bool_()}[
                    c.dtype
                ],
                c.unit,
                c.meaning,
            )
            for c in JOB_COLUMNS
        ),
        *JOB_OUTCOME_COLUMNS,
    ),
    "allocations": (
        LogColumn("job_id", _STRING, "", "job that held the devices"),
        LogColumn("node", _STRING, "", "node of the devices; one row per job, node and interval"),
        LogColumn("gpu_type", _STRING, "", "their type"),
        LogColumn("gpus", pa.list_(pa.int16()), "", "GPU indices on the node"),
        LogColumn("gpu_milli", pa.int16(), "GPU/1000", "share held of each"),
        LogColumn("start_s", _FLOAT, "s", "devices taken"),
        LogColumn("begin_s", _FLOAT, "s", "progress begins (start_s plus costs); at most end_s"),
        LogColumn("end_s", _FLOAT, "s", "devices given back; for 'open' the end of the log"),
        LogColumn("rate", _FLOAT, "", "progress per second (1: as on the requested GPUs)"),
        LogColumn("end_reason", _LABEL, "", "one of " + ", ".join(END_REASONS)),
    ),
    "events": (
        LogColumn("time_s", _FLOAT, "s", "when, in the order in which they were taken in"),
        LogColumn("kind", _LABEL, "", "one of " + ", ".join(EVENT_KINDS)),
        LogColumn("job_id", _STRING, "", "job, or null"),
        LogColumn("node", _STRING, "", "node of a device event, or null"),
        LogColumn("gpus", pa.list_(pa.int16()), "", "GPU indices of a device event, or null"),
        LogColumn("detail", _STRING, "", "anything more, or null"),
    ),
    "samples": (
        LogColumn("time_s", _FLOAT, "s", "when"),
        LogColumn("gpu_type", _STRING, "", "one row per sample and GPU type"),
        LogColumn("capacity_gpus", _FLOAT, "GPUs", "GPUs in service"),
        LogColumn("allocated_gpus", _FLOAT, "GPUs", "GPUs held by jobs (shares as fractions)"),
        LogColumn(
            "fragmented_gpus",
            _FLOAT,
            "GPUs",
            "idle GPUs that a typical job cannot use (FGD measure)",
        ),
        LogColumn("running_jobs", pa.int64(), "jobs", "running, all types"),
        LogColumn("waiting_jobs", pa.int64(), "jobs", "waiting, all types"),
        LogColumn("waiting_gpus", _FLOAT, "GPUs", "asked for by waiting jobs, all types"),
    ),
}


def schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a run table, units and meanings in the field metadata."""
    return pa.schema(
        [
            pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning})
            for c in TABLES[table]
        ]
    )


class RunWriter:
    """Writes one run directory. Use as a context manager; see :meth:`finish`.

    ``overwrite`` replaces an existing run directory (and nothing but a run directory). Leaving
    the ``with`` block by an exception without :meth:`finish` removes what was written.
    Raises :class:`UsageError` if ``path`` exists and may not be replaced.
    """

    def __init__(
        self, path: Path, workload: Workload, spec: ClusterSpec, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self._workload = workload
        self._spec = spec
        self._node_names = pa.array([n.name for n in spec.nodes], pa.string())
        self._node_types = pa.array([n.gpu_type for n in spec.nodes], pa.string())
        self._job_ids = _in_one_piece(pa.array(workload.table["job_id"], pa.string()))
        check_target(path, overwrite=overwrite)
        self._overwrite = overwrite
        path.parent.mkdir(parents=True, exist_ok=True)
        self._dir = path.parent / f".{path.name}.{os.getpid()}.tmp"
        if self._dir.exists():
            shutil.rmtree(self._dir)
        self._dir.mkdir()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._done = False
        self._gpu_lists: dict[int, tuple[int, ...]] = {}
        self._events: list[tuple[float, int, int]] = []
        self._event_extra: dict[int, tuple[int, int, str | None]] = {}
        self._stays: list[tuple[int, int, int, float, float, float, float, int]] = []
        self._masks: list[int] = []  # of the stays; a node may have more GPUs than a word has bits
        self._samples: list[tuple[float, str, float, float, float, int, int, float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._done:
            self.discard()

    def discard(self) -> None:
        """Remove everything written so far."""
        self._close()
        shutil.rmtree(self._dir, ignore_errors=True)
        self._done = True

    def event(self, time_s: float, code: int, rank: int) -> None:
        """Record a job event; ``code`` from :data:`EVENT_CODE`, ``rank`` of the job."""
        events = self._events
        events.append((time_s, code, rank))
        if len(events) >= _FLUSH_ROWS:
            self._flush_events()

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        """Record a device event on the GPUs in ``mask`` of node index ``node``."""
        self._event_extra[len(self._events)] = (node, mask, detail)
        self.event(time_s, code, -1)

    def allocation(
        self,
        rank: int,
        allocation: Allocation,
        start_s: float,
        begin_s: float,
        end_s: float,
        rate: float,
        reason: int,
    ) -> None:
        """Record that a job held devices; ``reason`` is an index into :data:`END_REASONS`."""
        stays, masks = self._stays, self._masks
        milli = allocation.gpu_milli
        for node, mask in allocation.shares:
            stays.append((rank, node, milli, start_s, begin_s, end_s, rate, reason))
            masks.append(mask)
        if len(masks) >= _FLUSH_ROWS:
            self._flush_allocations()

    def sample(
        self,
        time_s: float,
        gpu_type: str,
        capacity: float,
        allocated: float,
        fragmented: float,
        running_jobs: int,
        waiting_jobs: int,
        waiting_gpus: float,
    ) -> None:
        """Record the state of one GPU type at one instant."""
        self._samples.append(
            (
                time_s,
                gpu_type,
                capacity,
                allocated,
                fragmented,
                running_jobs,
                waiting_jobs,
                waiting_gpus,
            )
        )

    def finish(self, record: dict[str, Any], outcomes: dict[str, Any]) -> None:
        """Write the jobs table and ``run.json``, close all tables and give the run its name.

        ``outcomes`` has one array per column of :data:`JOB_OUTCOME_COLUMNS`, in rank order
        (``status`` as indices into :data:`OUTCOMES`). ``record`` becomes ``run.json``; its
        ``status`` is "complete" or "partial".
        """
        self._flush_events()
        self._flush_allocations()
        self._flush_samples()
        self._write_jobs(outcomes)
        for table in TABLES:
            self._writer(table)  # an empty table is a table
        self._close()
        text = json.dumps(
            {"format_version": FORMAT_VERSION, **record}, indent=2, sort_keys=True, default=str
        )
        (self._dir / "run.json").write_text(text + "\n", encoding="utf-8")
        if self._overwrite and self.path.exists():
            shutil.rmtree(self.path)
        elif self.path.exists():
            self.path.rmdir()  # empty: checked when the run began
        self._dir.rename(self.path)
        self._done = True

    def _writer(self, table: str) -> pq.ParquetWriter:
        if table not in self._writers:
            # Times and ids hardly repeat: a dictionary of them costs time and space.
            repeating = [
                c.name
                for c in TABLES[table]
                if c.type == _LABEL or (c.type == _STRING and c.name != "job_id")
            ]
            self._writers[table] = pq.ParquetWriter(
                self._dir / f"{table}.parquet",
                schema(table),
                compression="zstd",
                use_dictionary=repeating,
            )
        return self._writers[table]

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _put(self, table: str, columns: list[pa.Array]) -> None:
        self._writer(table).write_batch(pa.RecordBatch.from_arrays(columns, schema=schema(table)))

    def _lists(self, masks: list[int]) -> list[tuple[int, ...]]:
        known = self._gpu_lists
        for mask in set(masks):  # order does not matter: it only fills a cache
            if mask not in known:
                known[mask] = gpus_of(mask)
        return [known[mask] for mask in masks]

    def _flush_events(self) -> None:
        count = len(self._events)
        if not count:
            return
        rows = np.array(self._events, dtype=_EVENT_ROW)
        nodes, gpus, details = self._extra_columns(count)
        ranks = np.ascontiguousarray(rows["rank"])
        self._put(
            "events",
            [
                pa.array(np.ascontiguousarray(rows["time_s"])),
                _labels(np.ascontiguousarray(rows["kind"]), EVENT_KINDS),
                self._job_ids.take(pa.array(ranks, mask=ranks < 0)),
                nodes,
                gpus,
                details,
            ],
        )
        self._events = []
        self._event_extra = {}

    def _extra_columns(self, count: int) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Columns node, gpus and detail of the events: null but for device events."""
        lists = pa.list_(pa.int16())
        if not self._event_extra:
            return (
                pa.nulls(count, pa.string()),
                pa.nulls(count, lists),
                pa.nulls(count, pa.string()),
            )
        nodes: list[str | None] = [None] * count
        gpus: list[tuple[int, ...] | None] = [None] * count
        details: list[str | None] = [None] * count
        for position, (node, mask, detail) in self._event_extra.items():
            nodes[position] = self._spec.nodes[node].name
            gpus[position] = gpus_of(mask)
            details[position] = detail
        return pa.array(nodes, pa.string()), pa.array(gpus, lists), pa.array(details, pa.string())

    def _flush_allocations(self) -> None:
        if not self._stays:
            return
        rows = np.array(self._stays, dtype=_STAY_ROW)
        column = {name: np.ascontiguousarray(rows[name]) for name in _STAY_ROW.names or ()}
        nodes = pa.array(column["node"])
        self._put(
            "allocations",
            [
                self._job_ids.take(pa.array(column["rank"])),
                self._node_names.take(nodes),
                self._node_types.take(nodes),
                pa.array(self._lists(self._masks), pa.list_(pa.int16())),
                pa.array(column["milli"]),
                pa.array(column["start_s"]),
                pa.array(np.minimum(column["begin_s"], column["end_s"])),
                pa.array(column["end_s"]),
                pa.array(column["rate"]),
                _labels(column["reason"], END_REASONS),
            ],
        )
        self._stays, self._masks = [], []

    def _flush_samples(self) -> None:
        if not self._samples:
            return
        columns = zip(*self._samples, strict=True)
        fields = TABLES["samples"]
        self._put(
            "samples", [pa.array(list(c), f.type) for c, f in zip(columns, fields, strict=True)]
        )
        self._samples = []

    def _write_jobs(self, outcomes: dict[str, Any]) -> None:
        table = self._workload.table
        columns: list[pa.Array] = [
            pa.Array.from_pandas(table[c.name], type=f.type)
            for c, f in zip(JOB_COLUMNS, TABLES["jobs"], strict=False)
        ]
        for column in JOB_OUTCOME_COLUMNS:
            values = np.asarray(outcomes[column.name])
            if column.type == _LABEL:
                columns.append(_labels(values.astype(np.int8), OUTCOMES))
            elif column.type == _FLOAT:
                columns.append(pa.array(values, _FLOAT, from_pandas=True))  # NaN is null
            else:
                columns.append(pa.array(values.astype(np.int32), column.type))
        if len(table):
            self._put("jobs", [_in_one_piece(c) for c in columns])


def _in_one_piece(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Long columns come in chunks; a record batch wants one."""
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _labels(codes: Any, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(names, pa.string()))


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` unless a run may be written to ``path``."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"--out {path}: exists and is not a directory")
    if not any(path.iterdir()):
        return
    if not (path / "run.json").is_file():
        raise UsageError(f"--out {path}: not empty and not a run directory; choose another name")
    if not overwrite:
        raise UsageError(
            f"--out {path}: holds a run already; choose another name or pass --overwrite"
        )


@dataclass(frozen=True, slots=True)
class RunLog:
    """A run directory, read. Tables are read when asked for."""

    path: Path
    record: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> RunLog:
        """Open a run directory; raises :class:`DataError` if it is not one."""
        path = Path(path)
        file = path / "run.json"
        if not file.is_file():
            raise DataError(
                "not a run directory", file=path, expected="a directory with run.json in it"
            )
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"cannot be read: {error}", file=file, expected="JSON") from error
        if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
            version = record.get("format_version") if isinstance(record, dict) else None
            raise DataError(
                "run log of another version",
                file=file,
                value=version,
                expected=f"format_version {FORMAT_VERSION}",
            )
        return cls(path, record)

    def arrow(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one table of :data:`TABLES`, or only some of its columns, as Arrow.

        Raises :class:`DataError` when the file cannot be read or lacks a column.
        """
        file = self.path / f"{name}.parquet"
        wanted = [c.name for c in TABLES[name]] if columns is None else list(columns)
        try:
            with pq.ParquetFile(file) as parquet:
                missing = [c for c in wanted if c not in parquet.schema_arrow.names]
                if missing:
                    raise DataError("column is missing", file=file, column=missing[0])
                return parquet.read(columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"table {name} cannot be read: {error}", file=file) from error

    def table(self, name: str) -> pd.DataFrame:
        """Read one table of :data:`TABLES` (nullable numbers as float, labels as categories)."""
        return self.arrow(name).to_pandas()

    @property
    def partial(self) -> bool:
        """The run was interrupted: its tables end early."""
        return self.record.get("status") != "complete"

    @property
    def spec(self) -> ClusterSpec:
        """The inventory the run had."""
        cluster = self.record["cluster"]
        return ClusterSpec(tuple(Node(**n) for n in cluster["nodes"]), Links(**cluster["links"]))
