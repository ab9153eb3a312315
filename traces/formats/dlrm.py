"""Alibaba DLRM serving (cluster-trace-gpu-v2025): instances of 156 recommendation services.

Source: github.com/alibaba/clusterdata, ``cluster-trace-gpu-v2025``; the trace of disaggregated
recommendation inference, 31 days. Each row is one instance of a service (``app_name``) on a GPU
node (role HN, one GPU) or a CPU node (role CN). Times are seconds from the trace's beginning; an
empty creation or scheduling means before it, an empty deletion after its end, so both are flagged
as censored. They are serving demand over time rather than jobs to finish:
:class:`traces.serving.ServingDemand` makes them so. Left out of the canonical table: RDMA share,
disk, limits (which equal the requests but for disk) and ``max_instance_per_node``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from traces.formats.options import Option, choice
from traces.formats.raw import Head, read_raw
from traces.formats.shares import milli, whole_or_share
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = (
    Option(
        "censored",
        "null",
        "run time of instances that outlive the trace: 'null' (unknown) or 'bound' (up to the"
        " file's last instant)",
    ),
)

_COLUMNS = (
    "instance_sn",
    "role",
    "app_name",
    "cpu_request",
    "gpu_request",
    "memory_request",
    "creation_time",
    "scheduled_time",
    "deletion_time",
)
_ROLES = {"HN": "HN", "CN": "CN"}


def sniff(head: Head) -> bool:
    """Whether the columns are those of the instance table."""
    return not head.is_parquet and head.has_columns(*_COLUMNS)


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the instances; raises :class:`traces.errors.DataError` with row and column.

    ``duration_s`` runs from scheduling to deletion. An instance older than the trace that ends in
    it has its time since second 0 there, a bound (``left_censored``); one that is alive at the end
    has none unless ``censored=bound``.
    """
    bound = choice(options, "censored", ("null", "bound")) == "bound"
    raw = read_raw(path)
    table = Table(raw)
    table.require(*_COLUMNS)
    table.unique("instance_sn")
    table.choice("role", _ROLES, missing="unknown", other="unknown")
    created = table.number("creation_time", nullable=True)
    scheduled = table.number("scheduled_time", nullable=True)
    deleted = table.number("deletion_time", nullable=True)
    num_gpus, gpu_milli, rounded = whole_or_share(
        milli(table.number("gpu_request", high=1e6).to_numpy())
    )
    table.note(rounded, "fractional GPUs above one: rounded up to whole GPUs")
    jobs = pd.DataFrame(
        {
            "job_id": table.text("instance_sn", nullable=False),
            "submit_s": created.fillna(0.0),
            "start_s": scheduled,
            "duration_s": _lifetime(table, created, scheduled, deleted, bound),
            "num_gpus": num_gpus,
            "gpu_milli": gpu_milli,
            "num_workers": 1,
            "cpu_milli": _scaled(table, "cpu_request", 1000),
            "memory_mib": _scaled(table, "memory_request", 1024),
            "single_node": True,
            "vc": table.text("app_name"),
            "kind": "serving",
            "priority": "high",
            "left_censored": created.isna(),
            "right_censored": deleted.isna(),
        }
    )
    notes = (
        "instances of services, not jobs that finish: read them as serving demand",
        "role HN is an instance with a GPU, CN one without; vc is the service",
    )
    return Workload(
        jobs, raw.source("dlrm", repairs=tuple(table.repairs), notes=notes, options=options)
    )


def _lifetime(table: Table, created: Any, scheduled: Any, deleted: Any, bound: bool) -> Any:
    table.note(
        created.notna() & scheduled.isna(),
        "created in the trace but scheduled before it: run from its creation",
    )
    begin = scheduled.fillna(created).fillna(0.0)
    end = deleted
    if bound:
        last = np.nanmax([created.max(), scheduled.max(), deleted.max(), 0.0])
        end = deleted.fillna(last)
    duration = end - begin
    table.note(duration < 0, "deleted before it was scheduled: run time unknown")
    return duration.where(duration >= 0)


def _scaled(table: Table, column: str, factor: int) -> Any:
    return np.rint(table.number(column, nullable=True, high=1e9) * factor).astype("Int64")
