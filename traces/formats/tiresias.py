"""Tiresias's job CSV: the 60-job workload of its simulator and testbed.

Columns ``job_id,num_gpu,submit_time,iterations,model_name,duration,interval``; ``interval`` is
the gap to the *next* job and is not needed. Source: github.com/SymbioticLab/Tiresias
(Apache-2.0). Left out: its cluster specs, which :mod:`traces.loading` does not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = ()


def sniff(head: Head) -> bool:
    """Whether it has the columns of the job CSV."""
    return head.has_columns("job_id", "num_gpu", "submit_time", "iterations", "duration")


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the CSV. Seconds are the file's own: they count from its zero."""
    table = Table(read_raw(path))
    table.require("job_id", "num_gpu", "submit_time", "duration")
    table.drop_missing("submit_time", "no submission time: set aside")
    table.drop_missing("num_gpu", "no GPU count: set aside")
    table.unique("job_id")
    jobs = pd.DataFrame(
        {
            "job_id": table.text("job_id", nullable=False),
            "submit_s": table.number("submit_time"),
            "duration_s": table.number("duration", nullable=True),
            "num_gpus": table.integer("num_gpu"),
            "status": "unknown",
            "model": table.text("model_name") if "model_name" in table else None,
            "total_steps": table.number("iterations", nullable=True)
            if "iterations" in table
            else None,
        }
    )
    source = table.raw.source("tiresias", repairs=tuple(table.repairs), options=options)
    return Workload(jobs, source)
