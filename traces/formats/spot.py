"""Alibaba spot-GPU (cluster-trace-v2026-spot-gpu): high-priority and spot jobs, and their nodes.

Source: github.com/alibaba/clusterdata, ``cluster-trace-v2026-spot-gpu`` (``node_info_df.csv`` and
``job_info_df.csv``). Requests are per worker and may be fractions of a GPU; a job's workers are
added up (:mod:`traces.formats.shares`). Times are seconds from an origin the publisher does not
give. HP jobs at second 0 were resident when the trace began, so their submission is a bound. Left
out: memory, which the nodes lack; the paper's load (84.6 %) does not follow from the table
(clusterdata issue 260), so check the load before trusting a replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from traces.cluster import ClusterSpec, Node
from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.shares import milli, whole_or_share
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = ()

_JOB_COLUMNS = (
    "job_name",
    "organization",
    "gpu_model",
    "cpu_request",
    "gpu_request",
    "worker_num",
    "submit_time",
    "duration",
    "job_type",
)
_NODE_COLUMNS = ("gpu_model", "gpu_capacity_num", "cpu_num", "node_name")


def sniff(head: Head) -> bool:
    """Whether the columns are those of the job table."""
    return not head.is_parquet and head.has_columns(*_JOB_COLUMNS)


def sniff_nodes(head: Head) -> bool:
    """Whether the columns are those of the node table."""
    return not head.is_parquet and head.has_columns(*_NODE_COLUMNS)


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the job table; raises :class:`traces.errors.DataError` with row and column."""
    raw = read_raw(path)
    table = Table(raw)
    table.require(*_JOB_COLUMNS)
    table.unique("job_name")
    workers = table.integer("worker_num", low=1, high=1e6)
    num_gpus, gpu_milli = _gpus(table, workers)
    submit = table.number("submit_time")
    duration = table.number("duration", low=None, nullable=True)
    table.note(duration < 0, "the run time is below zero: taken as unknown")
    priority = table.text("job_type")
    resident = (submit == 0).to_numpy() & (priority == "HP").fillna(False).to_numpy(dtype=bool)
    cpus = table.number("cpu_request", nullable=True, high=1e6)
    cpu_milli = np.rint(cpus * 1000).astype("Int64") * workers
    jobs = pd.DataFrame(
        {
            "job_id": table.text("job_name", nullable=False),
            "submit_s": submit,
            "duration_s": duration.where(duration >= 0),
            "num_gpus": num_gpus,
            "gpu_milli": gpu_milli,
            "gpu_type": table.text("gpu_model"),
            "num_workers": workers,
            "cpu_milli": cpu_milli,
            "single_node": (workers == 1).astype(bool),
            "vc": table.text("organization"),
            "kind": "other",
            "priority": priority,
            "left_censored": resident,
        }
    )
    notes = ["whether a job trains or serves is not in the table: kind is 'other'"]
    if resident.any():
        notes.append(f"{int(resident.sum())} HP jobs stand at second 0: left-censored")
    return Workload(
        jobs,
        raw.source("spot-gpu", repairs=tuple(table.repairs), notes=tuple(notes), options=options),
    )


def _gpus(table: Table, workers: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    each = milli(table.number("gpu_request", high=1e6).to_numpy())
    count = workers.to_numpy(dtype=np.int64)
    num_gpus, gpu_milli, rounded = whole_or_share(each * count)
    table.note(rounded, "fractional GPUs above one in total: rounded up to whole GPUs")
    table.note(
        (gpu_milli < 1000) & (count > 1),
        "shares of several workers, less than one GPU in total: put on one GPU",
    )
    return num_gpus, gpu_milli


def read_nodes(path: Path) -> ClusterSpec:
    """Read the node table; raises :class:`traces.errors.DataError` with row and column."""
    table = Table(read_raw(path))
    table.require(*_NODE_COLUMNS)
    table.unique("node_name")
    rows = zip(
        table.text("node_name", nullable=False).tolist(),
        table.text("gpu_model", nullable=False).tolist(),
        table.integer("gpu_capacity_num", high=1024).tolist(),
        np.rint(table.number("cpu_num", high=1e6) * 1000).tolist(),
        strict=True,
    )
    return ClusterSpec(
        tuple(
            Node(name=name, gpu_type=gpu_type, num_gpus=int(gpus), cpu_milli=int(cpu))
            for name, gpu_type, gpus, cpu in rows
        )
    )
