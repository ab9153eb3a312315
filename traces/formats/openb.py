"""Alibaba openb (cluster-trace-gpu-v2023): pods with fractional GPUs, and their nodes.

Source: github.com/alibaba/clusterdata, ``cluster-trace-gpu-v2023/csv``; the trace of "Beware of
Fragmentation" (ATC'23). A pod is a job of one worker on one node. Times are seconds from an origin
the publisher does not give; they are kept as they are. Pending pods never ran, so they have no run
time. Running pods have deletion times too (clusterdata issue 218): the phase is kept and the end
believed, except at the file's last instant, where the pod outlived the trace. Left out: nothing of
the tables; GPU memory per model is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from traces.cluster import ClusterSpec, Node
from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = ()

_PHASES = {
    "Succeeded": "completed",
    "Failed": "failed",
    "Running": "running",
    "Pending": "pending",
    "Unknown": "unknown",
}
_POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "pod_phase")
_NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")


def sniff(head: Head) -> bool:
    """Whether the columns are those of the pod list."""
    return not head.is_parquet and head.has_columns(*_POD_COLUMNS)


def sniff_nodes(head: Head) -> bool:
    """Whether the columns are those of the node list."""
    return not head.is_parquet and head.has_columns(*_NODE_COLUMNS)


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the pod list; raises :class:`traces.errors.DataError` with row and column."""
    raw = read_raw(path)
    table = Table(raw)
    table.require(*_POD_COLUMNS, "gpu_spec", "qos", "creation_time", "deletion_time")
    table.require("scheduled_time")
    table.unique("name")
    num_gpus, gpu_milli = _gpus(table)
    submit = table.number("creation_time", low=None)
    start = table.number("scheduled_time", low=None, nullable=True)
    end = table.number("deletion_time", low=None, nullable=True)
    status = table.choice("pod_phase", _PHASES, missing="unknown", other="unknown")
    duration = end - start
    table.note(duration < 0, "the pod was deleted before it was scheduled: run time unknown")
    memory = table.integer("memory_mib", nullable=True)
    unsaid = (memory == 0).fillna(False)
    table.note(unsaid, "memory 0 MiB: taken as unknown")
    last = end.max()
    censored = (status == "running").to_numpy(dtype=bool) & (end == last).to_numpy()
    jobs = pd.DataFrame(
        {
            "job_id": table.text("name", nullable=False),
            "submit_s": submit,
            "start_s": start,
            "duration_s": duration.where(duration >= 0),
            "num_gpus": num_gpus,
            "gpu_milli": gpu_milli,
            "gpu_type": _alternatives(table),
            "num_workers": 1,
            "cpu_milli": table.integer("cpu_milli", nullable=True),
            "memory_mib": memory.mask(unsaid),
            "single_node": True,
            "kind": "other",
            "priority": table.text("qos"),
            "status": status,
            "right_censored": censored,
        }
    )
    notes = ["whether a pod trains or serves is not in the table: kind is 'other'"]
    if censored.any():
        notes.append(
            f"{int(censored.sum())} running pods end at the file's last instant, {last:.0f} s:"
            " right-censored"
        )
    return Workload(
        jobs,
        raw.source("openb", repairs=tuple(table.repairs), notes=tuple(notes), options=options),
    )


def _gpus(table: Table) -> tuple[Any, Any]:
    num_gpus = table.integer("num_gpu", high=1e6)
    gpu_milli = table.integer("gpu_milli", high=1000)
    table.refuse(
        (num_gpus > 0) & (gpu_milli == 0), "gpu_milli", "a GPU pod with no share of it", "1 to 1000"
    )
    table.refuse(
        (num_gpus > 1) & (gpu_milli < 1000),
        "gpu_milli",
        "a share of several GPUs",
        "1000: shares are for one-GPU pods",
    )
    return num_gpus, gpu_milli.mask(num_gpus == 0, 1000)


def _alternatives(table: Table) -> Any:
    spec = table.text("gpu_spec")
    distinct = {s: _deduplicated(s) for s in spec.dropna().unique().tolist()}
    clean = spec.map(distinct).astype("string")
    table.note(
        (clean != spec).fillna(False),
        "a GPU type is there twice among the alternatives: kept once",
    )
    return clean.mask(clean == "")


def _deduplicated(spec: str) -> str:
    return "|".join(dict.fromkeys(t.strip() for t in spec.split("|") if t.strip()))


def read_nodes(path: Path) -> ClusterSpec:
    """Read the node list; raises :class:`traces.errors.DataError` with row and column.

    Nodes without GPUs (in the publisher's list of all nodes) have the type ``cpu``.
    """
    table = Table(read_raw(path))
    table.require(*_NODE_COLUMNS)
    table.unique("sn")
    gpus = table.integer("gpu", high=1024).to_numpy(dtype=np.int64)
    model = table.text("model")
    table.refuse(model.isna() & (gpus > 0), "model", "a node with GPUs of no type", "a GPU type")
    rows = zip(
        table.text("sn", nullable=False).tolist(),
        model.fillna("cpu").tolist(),
        gpus.tolist(),
        table.integer("cpu_milli").tolist(),
        table.integer("memory_mib").tolist(),
        strict=True,
    )
    return ClusterSpec(
        tuple(
            Node(
                name=name,
                gpu_type=gpu_type,
                num_gpus=count,
                cpu_milli=int(cpu),
                memory_mib=int(memory),
            )
            for name, gpu_type, count, cpu, memory in rows
        )
    )
