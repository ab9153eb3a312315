"""Writing a run directory (its contents: ``traces/runlog.py``).

Each table is written in row groups while the run goes on, so a million jobs need little memory. A
run is written under a temporary name beside its target and renamed when it is whole, so a failed
start leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.cluster import Allocation, ClusterSpec, gpus_of
from traces.errors import UsageError
from traces.runlog import (
    END_REASONS,
    EVENT_KINDS,
    FLOAT,
    FORMAT_VERSION,
    JOB_OUTCOME_COLUMNS,
    LABEL,
    LOAN_SOURCES,
    OUTCOMES,
    STRING,
    TABLES,
    schema,
)
from traces.schema import JOB_COLUMNS

if TYPE_CHECKING:
    from traces.workermap import WorkerMap
    from traces.workload import Workload

_FLUSH_ROWS = 131_072
# Rows are packed as they come and read back as arrays in one piece: the hot loop makes no objects.
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
_pack_event = Struct("=dbq").pack
_pack_stay = Struct("=qqhddddb").pack


def remove_abandoned(path: Path) -> None:
    """Remove what a writer of this run directory left that was killed.

    Only for whoever knows that no other process writes it.
    """
    start, end = f".{path.name}.", ".tmp"
    for found in path.parent.iterdir():
        number = found.name.removeprefix(start).removesuffix(end)
        process = int(number) if number.isdigit() else os.getpid()
        if process != os.getpid() and found == _under_way(path, process):
            shutil.rmtree(found)


def _under_way(path: Path, process: int) -> Path:
    """Where a process writes a run directory until it is finished."""
    return path.parent / f".{path.name}.{process}.tmp"


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
        self._dir = _under_way(path, os.getpid())
        if self._dir.exists():
            shutil.rmtree(self._dir)
        self._dir.mkdir()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._done = False
        self._gpu_lists: dict[int, tuple[int, ...]] = {}
        self._events = bytearray()
        self._event_extra: dict[int, tuple[int, int, str | None]] = {}
        self._stays = bytearray()
        self._workers: dict[int, tuple[list[int], list[int]]] = {}  # of those of elastic jobs
        self._masks: list[int] = []  # of the stays; a node may have more GPUs than a word has bits
        self._loans: list[tuple[int, int, int, float, float, float, int]] = []
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
        try:
            self._close()
        except OSError:  # a full disk: what could not be written is removed all the same
            self._writers.clear()
        shutil.rmtree(self._dir, ignore_errors=True)
        self._done = True

    def event(self, time_s: float, code: int, rank: int, detail: str | None = None) -> None:
        """Record a job event; ``code`` from :data:`EVENT_CODE`, ``rank`` of the job."""
        if detail is not None:
            self._event_extra[len(self._events) // _EVENT_ROW.itemsize] = (-1, 0, detail)
        self._events += _pack_event(time_s, code, rank)

    def device_event(
        self, time_s: float, code: int, node: int, mask: int, detail: str | None = None
    ) -> None:
        """Record a device event on the GPUs in ``mask`` of node index ``node`` (-1: of none)."""
        row = len(self._events) // _EVENT_ROW.itemsize
        self._event_extra[row] = (node, mask, detail)
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
        workers: WorkerMap | None = None,
    ) -> None:
        """Record that a job held devices; ``reason`` is an index into :data:`END_REASONS`."""
        masks = self._masks
        shares, milli = allocation
        if workers is not None:
            self._place_workers(shares, workers)
        for node, mask in shares:
            self._stays += _pack_stay(rank, node, milli, start_s, begin_s, end_s, rate, reason)
            masks.append(mask)
        if len(masks) >= _FLUSH_ROWS:  # events come a few to an allocation
            self._flush_allocations()
            self._flush_events()

    def _place_workers(self, shares: tuple[tuple[int, int], ...], workers: WorkerMap) -> None:
        """Keep what the next rows of the allocations table say of logical workers."""
        blocks = dict(workers.blocks())
        for row, (node, mask) in enumerate(shares, start=len(self._masks)):
            ranks = [blocks.get((node, gpu)) for gpu in gpus_of(mask)]
            self._workers[row] = (
                [0 if r is None else len(r) for r in ranks],
                [-1 if r is None else r.start for r in ranks],
            )

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

    def loan(
        self,
        pool: int,
        node: int,
        gpu: int,
        asked_s: float,
        ready_s: float,
        end_s: float,
        source: int,
    ) -> None:
        """Record that an online service had a device, or (node -1) waited for one in vain.

        ``pool``: index of its type in ``ClusterSpec.gpu_types``; ``source``: index into
        :data:`LOAN_SOURCES`; ``ready_s`` NaN: it could not be used in that time.
        """
        self._loans.append((pool, node, gpu, asked_s, ready_s, end_s, source))

    def attach(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a whole table of :data:`traces.runlog.EXECUTED`."""
        found = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(table))
        pq.write_table(found, self._dir / f"{table}.parquet", compression="zstd")

    def finish(self, record: dict[str, Any], outcomes: dict[str, Any]) -> None:
        """Write the jobs table and ``run.json``, close all tables and give the run its name.

        ``outcomes`` has one array per column of :data:`JOB_OUTCOME_COLUMNS`, in rank order
        (``status`` as indices into :data:`OUTCOMES`). ``record`` becomes ``run.json``; its
        ``status`` is "complete" or "partial".
        """
        self._flush_events()
        self._flush_allocations()
        self._flush_samples()
        self._flush_loans()
        self._write_jobs(outcomes)
        for table in TABLES:
            self._writer(table)  # an empty table is a table
        self._close()
        text = json.dumps(
            {"format_version": FORMAT_VERSION, **record}, indent=2, sort_keys=True, default=str
        )
        (self._dir / "run.json").write_text(text + "\n", encoding="utf-8")
        check_target(
            self.path, overwrite=self._overwrite
        )  # others may have written there meanwhile
        if self._overwrite and self.path.exists():
            shutil.rmtree(self.path)
        elif self.path.exists():
            self.path.rmdir()  # empty
        self._dir.rename(self.path)
        self._done = True

    def _writer(self, table: str) -> pq.ParquetWriter:
        if table not in self._writers:
            # Times and ids hardly repeat: a dictionary of them costs time and space.
            repeating = [
                c.name
                for c in TABLES[table]
                if c.type == LABEL or (c.type == STRING and c.name != "job_id")
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
        if not self._events:
            return
        rows = np.frombuffer(self._events, dtype=_EVENT_ROW)
        nodes, gpus, details = self._extra_columns(len(rows))
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
        self._events = bytearray()
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
            if node >= 0:
                nodes[position] = self._spec.nodes[node].name
                gpus[position] = gpus_of(mask)
            details[position] = detail
        return pa.array(nodes, pa.string()), pa.array(gpus, lists), pa.array(details, pa.string())

    def _flush_allocations(self) -> None:
        if not self._stays:
            return
        rows = np.frombuffer(self._stays, dtype=_STAY_ROW)
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
                *self._worker_columns(len(rows)),
            ],
        )
        self._stays, self._masks, self._workers = bytearray(), [], {}

    def _worker_columns(self, count: int) -> tuple[pa.Array, pa.Array]:
        """Columns workers and first_rank of the allocations: null but for elastic jobs."""
        shorts, ints = pa.list_(pa.int16()), pa.list_(pa.int32())
        if not self._workers:
            return pa.nulls(count, shorts), pa.nulls(count, ints)
        known = [self._workers.get(row) for row in range(count)]
        return (
            pa.array([None if k is None else k[0] for k in known], shorts),
            pa.array([None if k is None else k[1] for k in known], ints),
        )

    def _flush_samples(self) -> None:
        if not self._samples:
            return
        columns = zip(*self._samples, strict=True)
        fields = TABLES["samples"]
        self._put(
            "samples", [pa.array(list(c), f.type) for c, f in zip(columns, fields, strict=True)]
        )
        self._samples = []

    def _flush_loans(self) -> None:
        if not self._loans:
            return
        pools, nodes, gpus, asked, ready, end, sources = zip(*self._loans, strict=True)
        types = self._spec.gpu_types
        self._put(
            "loans",
            [
                pa.array([types[p] for p in pools], STRING),
                pa.array([None if n < 0 else self._spec.nodes[n].name for n in nodes], STRING),
                pa.array([None if g < 0 else g for g in gpus], pa.int16()),
                pa.array(asked, FLOAT),
                pa.array(ready, FLOAT, from_pandas=True),
                pa.array(end, FLOAT),
                _labels(np.array(sources, dtype=np.int8), LOAN_SOURCES),
            ],
        )
        self._loans = []

    def _write_jobs(self, outcomes: dict[str, Any]) -> None:
        table = self._workload.table
        columns: list[pa.Array] = [
            pa.Array.from_pandas(table[c.name], type=f.type)
            for c, f in zip(JOB_COLUMNS, TABLES["jobs"], strict=False)
        ]
        for column in JOB_OUTCOME_COLUMNS:
            values = np.asarray(outcomes[column.name])
            if column.type == LABEL:
                columns.append(_labels(values.astype(np.int8), OUTCOMES))
            elif column.type == FLOAT:
                columns.append(pa.array(values, FLOAT, from_pandas=True))  # NaN is null
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
