"""The run as a timeline for Perfetto (ui.perfetto.dev): trace-event JSON.

A process is a node, a thread is a GPU, and one complete slice is the time a job held it. Shares of
a GPU overlap, which complete slices on one thread may not, so they are asynchronous events with an
id each. Counters (jobs waiting and running, GPUs held and in service) belong to a process of their
own, ``cluster``. Source of the format: "Trace Event Format", Google, sections on complete, async,
counter, instant and metadata events. Times are microseconds of simulated (or executed) time.

The file is written as it is made. A counter with more than ``COUNTER_POINTS`` changes is drawn by
its highest value in that many bins, and the file says so. Leaves out: CPU jobs, which hold no GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow.compute as pc

from reports.files import writing
from reports.series import Steps, series
from reports.tables import MILLI, RunTables, device_events, read
from traces.errors import DataError, UsageError
from traces.runlog import RunLog

COUNTER_POINTS = 20_000
_CLUSTER = 1  # process id; nodes follow
_ROWS = 16_384

Event = dict[str, Any]


def write_timeline(
    run: RunLog, out: Path, *, start_s: float | None = None, end_s: float | None = None
) -> int:
    """Write the timeline of a run, or of the window ``[start_s, end_s]`` of it, to ``out``.

    A name that ends in ``.gz`` is compressed. What reaches over the window's edge is cut there.
    Returns the number of events. Raises :class:`traces.errors.UsageError` for an empty window or a
    file that cannot be written, :class:`traces.errors.DataError` for a run that cannot be read.
    """
    for name, value in (("--from", start_s), ("--to", end_s)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value}: expected seconds since the trace's origin")
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise UsageError(f"--from {start_s:g} --to {end_s:g}: the window is empty")
    tables = read(run)
    low = -math.inf if start_s is None else start_s
    high = math.inf if end_s is None else end_s
    with writing(out, compressed=out.suffix == ".gz") as file:
        return _write(file, tables, low, high)


def _write(file: TextIO, tables: RunTables, low_s: float, high_s: float) -> int:
    about = {
        "run": tables.label,
        "status": str(tables.log.record.get("status", "unknown")),
        "counters": f"exact up to {COUNTER_POINTS} changes each, else the highest value per bin",
    }
    file.write('{"displayTimeUnit":"ms","otherData":' + json.dumps(about) + ',"traceEvents":[')
    count = 0
    for event in events(tables, low_s, high_s):
        file.write(",\n" if count else "\n")
        json.dump(event, file, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        count += 1
    file.write("\n]}\n")
    return count


def events(tables: RunTables, low_s: float, high_s: float) -> Iterator[Event]:
    """Yield the trace events of a run that touch ``[low_s, high_s]``."""
    yield from _names(tables)
    yield from _slices(tables, low_s, high_s)
    yield from _losses(tables, low_s, high_s)
    yield from _counters(tables, low_s, high_s)


def _names(tables: RunTables) -> Iterator[Event]:
    def meta(kind: str, pid: int, tid: int, args: dict[str, Any]) -> Event:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}

    yield meta("process_name", _CLUSTER, 0, {"name": "cluster"})
    yield meta("process_sort_index", _CLUSTER, 0, {"sort_index": 0})
    for pid, node in enumerate(tables.log.spec.nodes, start=_CLUSTER + 1):
        yield meta("process_name", pid, 0, {"name": f"{node.name} ({node.gpu_type})"})
        yield meta("process_sort_index", pid, 0, {"sort_index": pid})
        for gpu in range(node.num_gpus):
            yield meta("thread_name", pid, gpu + 1, {"name": f"GPU {gpu}"})
            yield meta("thread_sort_index", pid, gpu + 1, {"sort_index": gpu})


class _Processes(dict[str, int]):
    """Process numbers of the nodes; one that the cluster lacks is a fault of the tables."""

    def __init__(self, log: RunLog) -> None:
        super().__init__((node.name, i) for i, node in enumerate(log.spec.nodes, _CLUSTER + 1))
        self._path = log.path

    def __missing__(self, node: str) -> int:
        raise DataError(
            "a node that the cluster of run.json does not have",
            file=self._path,
            column="node",
            value=node,
            expected="tables of one run",
        )


def _microseconds(time_s: float) -> int:
    return round(time_s * 1e6)


def _slices(tables: RunTables, low_s: float, high_s: float) -> Iterator[Event]:
    pid_of = _Processes(tables.log)
    table = tables.log.arrow("allocations")
    inside = pc.and_(
        pc.less_equal(table["start_s"], min(high_s, 1e300)),
        pc.greater_equal(table["end_s"], max(low_s, -1e300)),
    )
    share = 0
    for batch in table.filter(inside).to_batches(max_chunksize=_ROWS):
        for row in batch.to_pylist():
            start, end = max(row["start_s"], low_s), min(row["end_s"], high_s)
            begin_us, end_us = _microseconds(start), _microseconds(end)
            event: Event = {"name": row["job_id"], "pid": pid_of[row["node"]], "ts": begin_us}
            args = {
                "GPUs here": len(row["gpus"]),
                "held from (s)": row["start_s"],
                "progress from (s)": row["begin_s"],
                "held until (s)": row["end_s"],
                "rate": row["rate"],
                "ends by": row["end_reason"],
            }
            if row["gpu_milli"] < MILLI:
                args["share"] = row["gpu_milli"] / MILLI
            for gpu in row["gpus"]:
                place = {**event, "tid": gpu + 1}
                if row["gpu_milli"] < MILLI:
                    share += 1
                    one = {**place, "cat": "share", "id": f"0x{share:x}"}
                    yield {**one, "ph": "b", "args": {**args, "GPU": gpu}}
                    yield {**one, "ph": "e", "ts": end_us}
                else:
                    yield {
                        **place, "ph": "X", "cat": "job", "dur": end_us - begin_us, "args": args
                    }  # fmt: skip


def _losses(tables: RunTables, low_s: float, high_s: float) -> Iterator[Event]:
    pid_of = _Processes(tables.log)
    for row in device_events(tables.log).itertuples():
        if low_s <= row.time_s <= high_s:
            yield {
                "ph": "i",
                "s": "t",
                "name": "device lost" if row.lost else "device returned",
                "pid": pid_of[str(row.node)],
                "tid": int(row.gpu) + 1,
                "ts": _microseconds(row.time_s),
            }


def _counters(tables: RunTables, low_s: float, high_s: float) -> Iterator[Event]:
    load = series(tables)
    counters: dict[str, Steps] = {
        "waiting jobs": load.waiting_jobs,
        "running jobs": load.running_jobs,
        "GPUs waited for": load.waiting_gpus,
    }
    for kind in tables.gpu_types:
        counters[f"GPUs held, {kind}"] = load.allocated[kind]
        counters[f"GPUs in service, {kind}"] = load.capacity[kind]
    low_s, high_s = max(low_s, tables.start_s), min(high_s, tables.end_s)
    if high_s < low_s:
        return
    for name, steps in counters.items():
        for time_s, value in _points(steps, low_s, high_s):
            yield {
                "ph": "C",
                "name": name,
                "pid": _CLUSTER,
                "tid": 0,
                "ts": _microseconds(time_s),
                "args": {"value": value},
            }


def _points(steps: Steps, low_s: float, high_s: float) -> Iterator[tuple[float, float]]:
    """Values at the window's beginning and at every change in it, or at bins where too many."""
    inside = (steps.time_s > low_s) & (steps.time_s <= high_s)
    if inside.sum() <= COUNTER_POINTS:
        times = np.append(low_s, steps.time_s[inside])
        values = steps.at(times)
    else:
        edges = np.linspace(low_s, high_s, COUNTER_POINTS + 1)
        times, values = edges[:-1], steps.bins(edges).high
    yield from zip(times.tolist(), values.tolist(), strict=True)
