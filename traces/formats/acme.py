"""Shanghai AI Lab's Acme: jobs of the clusters Seren and Kalos, March to August 2023.

Run time is recomputed as end - start: in Kalos the ``duration`` column is end - *submission*,
against its README, and ``gpu_time`` inherits that. Seren stamps +08:00, Kalos +00:00. All nodes
have 8 A100-80GB; the files have no GPU column. Source: README of github.com/InternLM/AcmeTrace
(CC BY 4.0); its summary table disagrees with the files, so only the files are believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from traces.formats.cleaning import CLEANING, clean
from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table, iso
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = CLEANING
_STATES = {
    "COMPLETED": "completed",
    "CANCELLED": "killed",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
}
_TRAINING = ("Pretrain", "SFT", "MLLM", "Debug")
_GB_IN_MIB = 1e9 / 2**20


def sniff(head: Head) -> bool:
    """Whether it has the columns of both variants, the workload type among them."""
    return head.has_columns("job_id", "node_num", "gpu_num", "type", "state", "gpu_time")


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read a Seren or Kalos job trace. Second 0 is the first submission in the file."""
    table = Table(read_raw(path))
    table.require("job_id", "gpu_num", "type", "state", "submit_time", "start_time", "end_time")
    table.drop_missing("submit_time", "no submission time: set aside")
    table.drop_missing("gpu_num", "no GPU count: set aside")
    table.unique("job_id")
    submit, zone = table.instant("submit_time")
    start, _ = table.instant("start_time", nullable=True)
    end, _ = table.instant("end_time", nullable=True)
    last = float(np.nanmax([submit.max(), start.max(), end.max()]))
    # A job that has begun and not ended was running when the trace was taken: a lower bound.
    running = start.notna() & end.isna()
    table.note(running, "no end time: still running, run time is a lower bound")
    duration = end.mask(running, last) - start
    table.note(duration < 0, "ends before it starts: run time unknown")
    duration = duration.mask(duration < 0)
    if "duration" in table:
        stated = table.number("duration", nullable=True, low=None)
        table.note((stated - duration).abs() > 1, "duration is not end - start: recomputed")
    num_gpus = table.integer("gpu_num")
    kind = table.text("type")
    origin = float(submit.min())
    jobs = pd.DataFrame(
        {
            "job_id": table.text("job_id"),
            "submit_s": submit - origin,
            "start_s": start - origin,
            "duration_s": duration,
            "num_gpus": num_gpus,
            "gpu_type": pd.Series("A100", index=table.frame.index, dtype="string").mask(
                num_gpus == 0
            ),
            "cpu_milli": _cpu_milli(table),
            "memory_mib": _memory_mib(table),
            "user": table.text("user") if "user" in table else None,
            "kind": np.where(kind.isin(list(_TRAINING)), "training", "other"),
            "model": kind,
            "status": table.choice("state", _STATES, missing="unknown", other="unknown").mask(
                running, "running"
            ),
            "right_censored": running,
        }
    )
    jobs, repairs = clean(jobs, options, path)
    source = table.raw.source(
        "acme",
        origin=iso(origin, zone),
        zone=zone,
        repairs=(*table.repairs, *repairs),
        notes=("GPU type A100 is of the clusters, not of the file",),
        options=options,
    )
    return Workload(jobs, source)


def _cpu_milli(table: Table) -> pd.Series | None:
    if "cpu_num" not in table:
        return None
    return (table.number("cpu_num", nullable=True, high=1e6) * 1000).round()


def _memory_mib(table: Table) -> pd.Series | None:
    """Kalos states memory per pod, one pod per node."""
    if "mem_per_pod_GB" not in table or "node_num" not in table:
        return None
    per_pod = table.number("mem_per_pod_GB", nullable=True, high=1e6)
    pods = table.number("node_num", nullable=True, high=1e6)
    return (per_pod * pods * _GB_IN_MIB).round()
