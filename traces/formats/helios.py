"""SenseTime Helios: Slurm jobs of four clusters, April to September 2020.

``cluster_log.csv`` has the jobs of one cluster (CPU jobs have ``gpu_num`` 0),
``cluster_gpu_number.csv`` the GPUs of each virtual cluster on each day: capacity varies, so it is
a table over time (:func:`read_capacity`) and not one inventory. Source: README of
github.com/S-Lab-System-Group/HeliosData (CC BY 4.0). TIMEOUT and NODE_FAIL count as failed, as its
authors do. GPU models are not in the data; ``cluster=`` fills in what is known of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from traces.formats.cleaning import CLEANING, clean
from traces.formats.options import Option, choice
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table, iso
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = (
    Option("cluster", "", "venus, earth, saturn or uranus: fills in the GPU types, from memory"),
    Option("gpu_type", "", "GPU type of every GPU job; overrides cluster"),
    Option("vcs", "keep", "merge: join Venus's renamed virtual clusters as its authors do"),
    *CLEANING,
)
_STATES = {
    "COMPLETED": "completed",
    "CANCELLED": "killed",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
    "SUSPENDED": "unknown",
}
_GPU_TYPES = {
    "": None,
    "venus": "volta",
    "earth": "volta",
    "saturn": "volta|pascal",
    "uranus": "pascal",
}
_RENAMED = {
    "vcbIW": "vcvGl",
    "vc6YE": "vcvGl",
    "vcOhe": "vcKeu",
    "vccJW": "vcKeu",
    "vcP2J": "vchA3",
}


def sniff(head: Head) -> bool:
    """Whether it has the job log's columns, virtual cluster and queue among them."""
    return head.has_columns("job_id", "vc", "gpu_num", "node_num", "state", "submit_time", "queue")


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read ``cluster_log.csv``. Second 0 is the first submission in the file."""
    cluster = choice(options, "cluster", tuple(_GPU_TYPES))
    merge = choice(options, "vcs", ("keep", "merge")) == "merge"
    table = Table(read_raw(path))
    table.require("job_id", "gpu_num", "state", "submit_time", "start_time", "duration")
    table.drop_missing("submit_time", "no submission time: set aside")
    table.drop_missing("gpu_num", "no GPU count: set aside")
    table.unique("job_id")
    submit, zone = table.instant("submit_time")
    start, _ = table.instant("start_time", nullable=True)
    duration = table.number("duration", nullable=True, low=None)
    table.note(duration < 0, "negative duration: run time unknown")
    duration = duration.mask(duration < 0)
    if "end_time" in table:
        end, _ = table.instant("end_time", nullable=True)
        table.note((end - start - duration).abs() > 1, "duration is not end - start: duration kept")
    num_gpus = table.integer("gpu_num")
    vc = table.text("vc") if "vc" in table else pd.Series(pd.NA, index=table.frame.index)
    if merge:
        table.note(vc.isin(list(_RENAMED)), "renamed virtual cluster: joined with its new name")
        vc = vc.replace(_RENAMED)
    gpu_type = options["gpu_type"].strip() or _GPU_TYPES[cluster]
    cpus = table.number("cpu_num", nullable=True, high=1e6) if "cpu_num" in table else np.nan
    origin = float(submit.min())
    jobs = pd.DataFrame(
        {
            "job_id": table.text("job_id"),
            "submit_s": submit - origin,
            "start_s": start - origin,
            "duration_s": duration,
            "num_gpus": num_gpus,
            "gpu_type": pd.Series(gpu_type, index=table.frame.index, dtype="string").mask(
                num_gpus == 0
            ),
            "cpu_milli": pd.Series(cpus * 1000, index=table.frame.index).round(),
            "user": table.text("user") if "user" in table else None,
            "vc": vc,
            "kind": np.where(num_gpus == 0, "other", "training"),
            "status": table.choice("state", _STATES, missing="unknown", other="unknown"),
        }
    )
    jobs, repairs = clean(jobs, options, path)
    source = table.raw.source(
        "helios",
        origin=iso(origin, zone),
        zone=zone or "Asia/Shanghai (times are naive; the zone is not stated)",
        repairs=(*table.repairs, *repairs),
        options=options,
    )
    return Workload(jobs, source)


def read_capacity(path: Path) -> pd.DataFrame:
    """Read ``cluster_gpu_number.csv``: GPUs per day (rows) and virtual cluster (columns).

    The index is the day (``datetime64``), the columns the virtual clusters and ``total``; nodes
    have 8 GPUs, so divide by 8 for nodes. Raises :class:`traces.errors.DataError` where a cell is
    not a count, a day is there twice, or a row does not add up to its ``total``.
    """
    table = Table(read_raw(path))
    table.require("date", "total")
    table.unique("date")
    days, _ = table.instant("date")
    names = [str(c) for c in table.frame.columns if c not in ("date", "")]
    counts = pd.DataFrame({name: table.integer(name) for name in names})
    parts = counts.drop(columns="total").sum(axis=1)
    table.refuse(parts != counts["total"], "total", "not the sum of its row", "the row's sum")
    counts.index = pd.DatetimeIndex(pd.to_datetime(days, unit="s"), name="date")
    return counts.sort_index()
