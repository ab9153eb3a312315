"""The run log: the directory every run leaves, simulated or executed; its columns, and reading it.

``run.json`` says what was run; Parquet tables say what happened. An interrupted run says
``"status": "partial"``. ``traces/runwriter.py`` writes it.

The columns are listed in :data:`TABLES`; ``docs/run-log.md`` is written from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from traces.cluster import ClusterSpec, Links, Node
from traces.errors import DataError
from traces.schema import JOB_COLUMNS

FORMAT_VERSION = 2

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
    "serving_demand",
    "device_lent",
    "device_given_back",
    "give_up",
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
    "serving_demand",
    "device_lent",
    "device_given_back",
    "give_up",
)
EVENT_CODE: dict[EventKind, int] = {kind: code for code, kind in enumerate(EVENT_KINDS)}

LOAN_SOURCES = ("lingering", "idle", "reclaimed", "never")
NEVER_LENT = LOAN_SOURCES.index("never")

END_REASONS = ("finish", "preempt", "migrate", "resize", "fail", "open")

Outcome = Literal["finished", "running", "waiting", "rejected", "unsubmitted", "failed"]
OUTCOMES: tuple[Outcome, ...] = (
    "finished",
    "running",
    "waiting",
    "rejected",
    "unsubmitted",
    "failed",
)


@dataclass(frozen=True, slots=True)
class LogColumn:
    """One column of a run table: its Arrow type, unit ('' if none) and meaning."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


STRING = pa.string()
FLOAT = pa.float64()
LABEL = pa.dictionary(pa.int8(), pa.string())

JOB_OUTCOME_COLUMNS: tuple[LogColumn, ...] = (
    LogColumn("start_s", FLOAT, "s", "first start in this run; null: never"),
    LogColumn("finish_s", FLOAT, "s", "completion; null: not in this run"),
    LogColumn("jct_s", FLOAT, "s", "job completion time: finish_s - submit_s"),
    LogColumn(
        "queueing_s", FLOAT, "s", "time spent waiting, before the first start and between runs"
    ),
    LogColumn("preemptions", pa.int32(), "", "times it was stopped by the policy"),
    LogColumn("migrations", pa.int32(), "", "times it was moved to other devices while running"),
    LogColumn(
        "resizes", pa.int32(), "", "times an elastic job was given more, fewer or other GPUs"
    ),
    LogColumn("failures", pa.int32(), "", "times it lost its devices"),
    LogColumn(
        "service_gpu_s", FLOAT, "GPU s", "attained service: GPU-seconds held (shares as fractions)"
    ),
    LogColumn(
        "overhead_gpu_s", FLOAT, "GPU s", "held without progress: start, restore, migration costs"
    ),
    LogColumn(
        "lost_gpu_s",
        FLOAT,
        "GPU s",
        "progress thrown away by preemptions and failures, as work at rate 1",
    ),
    LogColumn("status", LABEL, "", "one of " + ", ".join(OUTCOMES)),
)
# The trace's own record of these two is kept beside the run's.
_RENAMED = {"start_s": "trace_start_s", "status": "trace_status"}

TABLES: dict[str, tuple[LogColumn, ...]] = {
    "jobs": (
        *(
            LogColumn(
                _RENAMED.get(c.name, c.name),
                {"string": STRING, "float": FLOAT, "int": pa.int64(), "bool": pa.bool_()}[c.dtype],
                c.unit,
                c.meaning,
            )
            for c in JOB_COLUMNS
        ),
        *JOB_OUTCOME_COLUMNS,
    ),
    "allocations": (
        LogColumn("job_id", STRING, "", "job that held the devices"),
        LogColumn("node", STRING, "", "node of the devices; one row per job, node and interval"),
        LogColumn("gpu_type", STRING, "", "their type"),
        LogColumn("gpus", pa.list_(pa.int16()), "", "GPU indices on the node"),
        LogColumn("gpu_milli", pa.int16(), "GPU/1000", "share held of each"),
        LogColumn("start_s", FLOAT, "s", "devices taken"),
        LogColumn("begin_s", FLOAT, "s", "progress begins (start_s plus costs); at most end_s"),
        LogColumn("end_s", FLOAT, "s", "devices given back; for 'open' the end of the log"),
        LogColumn("rate", FLOAT, "", "progress per second (1: as on the requested GPUs)"),
        LogColumn("end_reason", LABEL, "", "one of " + ", ".join(END_REASONS)),
        LogColumn(
            "workers",
            pa.list_(pa.int16()),
            "",
            "logical workers on each of the GPUs (0: it holds none); null for a rigid job",
        ),
        LogColumn(
            "first_rank",
            pa.list_(pa.int32()),
            "",
            "lowest virtual rank on each of the GPUs (-1 where there is none); null likewise",
        ),
    ),
    "events": (
        LogColumn("time_s", FLOAT, "s", "when, in the order in which they were taken in"),
        LogColumn("kind", LABEL, "", "one of " + ", ".join(EVENT_KINDS)),
        LogColumn("job_id", STRING, "", "job, or null"),
        LogColumn("node", STRING, "", "node of a device event, or null"),
        LogColumn("gpus", pa.list_(pa.int16()), "", "GPU indices of a device event, or null"),
        LogColumn("detail", STRING, "", "anything more, or null"),
    ),
    "loans": (
        LogColumn("gpu_type", STRING, "", "type of the device"),
        LogColumn("node", STRING, "", "its node; null if the service never got one"),
        LogColumn("gpu", pa.int16(), "", "its index there; null likewise"),
        LogColumn("asked_s", FLOAT, "s", "the service needed it"),
        LogColumn("ready_s", FLOAT, "s", "it could be used; null: never before end_s"),
        LogColumn("end_s", FLOAT, "s", "the service no longer needed it, or the log ends"),
        LogColumn("source", LABEL, "", "one of " + ", ".join(LOAN_SOURCES)),
    ),
    "samples": (
        LogColumn("time_s", FLOAT, "s", "when"),
        LogColumn("gpu_type", STRING, "", "one row per sample and GPU type"),
        LogColumn("capacity_gpus", FLOAT, "GPUs", "GPUs in service"),
        LogColumn("allocated_gpus", FLOAT, "GPUs", "GPUs held by jobs (shares as fractions)"),
        LogColumn(
            "fragmented_gpus",
            FLOAT,
            "GPUs",
            "idle GPUs that a typical job cannot use (FGD measure)",
        ),
        LogColumn("running_jobs", pa.int64(), "jobs", "running, all types"),
        LogColumn("waiting_jobs", pa.int64(), "jobs", "waiting, all types"),
        LogColumn("waiting_gpus", FLOAT, "GPUs", "asked for by waiting jobs, all types"),
    ),
}


# What an executed run has beside them.
EXECUTED: dict[str, tuple[LogColumn, ...]] = {
    "training": (
        LogColumn("job_id", STRING, "", "the job, one row for each"),
        LogColumn("steps", pa.int64(), "steps", "global steps committed"),
        LogColumn("loss", FLOAT, "", "loss of the last step; null: it has not finished"),
        LogColumn("level", STRING, "", "determinism level: D0, D1 or D2"),
        LogColumn("digest", STRING, "", "SHA-256 of all state at the end; null: not finished"),
        LogColumn(
            "reference_digest", STRING, "", "that of the same job alone on one lane; null: not run"
        ),
        LogColumn("same_bits", pa.bool_(), "", "whether both are equal; null: one is not known"),
        LogColumn("rescales", pa.int32(), "", "changes of devices without a restart"),
        LogColumn("recoveries", pa.int32(), "", "times it went on after a worker was lost"),
        LogColumn("resumed", pa.bool_(), "", "whether it went on from an earlier execution"),
    ),
    "utilisation": (
        LogColumn("time_s", FLOAT, "s", "when"),
        LogColumn("node", STRING, "", "node of the device lane"),
        LogColumn("gpu", pa.int16(), "", "its index there"),
        LogColumn(
            "busy",
            FLOAT,
            "",
            "share of the time since the last reading in which it worked: processor time of its"
            " workers on a CPU lane, NVML on a GPU; null: unknown",
        ),
        LogColumn("memory_mib", FLOAT, "MiB", "host memory of its workers"),
    ),
    "serving": (
        LogColumn("time_s", FLOAT, "s", "end of the second that the row is of"),
        LogColumn("demand_gpus", pa.int16(), "GPUs", "what the service needed"),
        LogColumn("lent_gpus", pa.int16(), "GPUs", "of them, those it had been lent"),
        LogColumn("servers", pa.int16(), "", "servers that answered"),
        LogColumn("requests", pa.int32(), "", "requests that were due"),
        LogColumn("answered", pa.int32(), "", "answers that came"),
        LogColumn("refused", pa.int32(), "", "refusals that came: any other status than 200"),
        LogColumn("failed", pa.int32(), "", "connections that broke or took too long"),
        LogColumn("unserved", pa.int32(), "", "due while no server answered, or too many waited"),
        LogColumn("p50_ms", FLOAT, "ms", "median time of the answers, from when they were due"),
        LogColumn("p99_ms", FLOAT, "ms", "99th percentile of the same, by nearest rank"),
    ),
}


def schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a run table, units and meanings in the field metadata."""
    return pa.schema(
        [
            pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning})
            for c in columns_of(table)
        ]
    )


def columns_of(table: str) -> tuple[LogColumn, ...]:
    """Return the columns of a table, be it of every run or of executed ones."""
    return TABLES[table] if table in TABLES else EXECUTED[table]


# Fields of run.json that readers rely on, where they are there at all.
_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        (
            "policy",
            "placement",
            "cluster",
            "workload",
            "model",
            "believed",
            "checkpoints",
            "span",
            "counts",
            "versions",
        ),
        (dict,),
    ),
    "seed": (int,),
    "wall_s": (float, int),
    "status": (str,),
    "name": (str,),
}
_JSON_NAMES = {dict: "an object", int: "a whole number", float: "a number", str: "a text"}


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
        for name, kinds in _RECORD_TYPES.items():
            if record.get(name) is not None and type(record[name]) not in kinds:
                raise DataError(
                    "damaged record",
                    file=file,
                    column=name,
                    value=record[name],
                    expected=_JSON_NAMES[kinds[0]],
                )
        return cls(path, record)

    def arrow(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one table of :data:`TABLES` or :data:`EXECUTED`, or some of its columns, as Arrow.

        Raises :class:`DataError` when the file cannot be read or lacks a column.
        """
        file = self.path / f"{name}.parquet"
        wanted = [c.name for c in columns_of(name)] if columns is None else list(columns)
        try:
            with pq.ParquetFile(file) as parquet:
                missing = [c for c in wanted if c not in parquet.schema_arrow.names]
                if missing:
                    raise DataError("column is missing", file=file, column=missing[0])
                return parquet.read(columns=wanted)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"table {name} cannot be read: {error}", file=file) from error

    def table(self, name: str) -> pd.DataFrame:
        """Read one table of :data:`TABLES` (nullable numbers as float, labels as categories)."""
        return self.arrow(name).to_pandas()

    def has(self, name: str) -> bool:
        """Whether the run has a table; all have those of :data:`TABLES`."""
        return (self.path / f"{name}.parquet").is_file()

    @property
    def partial(self) -> bool:
        """The run was interrupted: its tables end early."""
        return self.record.get("status") != "complete"

    @property
    def spec(self) -> ClusterSpec:
        """The inventory the run had."""
        cluster = self.record.get("cluster") or {}
        try:
            nodes = tuple(Node(**n) for n in cluster["nodes"])
            return ClusterSpec(nodes, Links(**cluster["links"]))
        except (
            KeyError,
            TypeError,
        ) as error:  # a field that is missing, unknown or of another type
            raise DataError(
                f"the inventory in the record is damaged: {type(error).__name__}: {error}",
                file=self.path / "run.json",
                column="cluster",
                expected="nodes and links as a run writes them",
            ) from error
