"""The flat Philly CSV that travels with the Sia artifact (82,247 jobs of Microsoft's Philly).

Columns ``timestamp,duration,num_gpus,gpu_time,cluster``: submission, the sum of the run times of
all attempts, GPUs, their product, and the virtual cluster. Derived by its publishers from the
original log (read by :mod:`traces.formats.philly_log`); status, user, id, start and retries are
lost, and big jobs are under-represented. Source: github.com/siasosp23/artifacts; the original
is github.com/msr-fiddle/philly-traces, CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from traces.formats.cleaning import CLEANING, clean
from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table, iso
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = CLEANING
_COLUMNS = ("timestamp", "duration", "num_gpus", "gpu_time", "cluster")


def sniff(head: Head) -> bool:
    """Whether it has the five columns."""
    return set(head.columns) == set(_COLUMNS)


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the CSV. Second 0 is the first submission in the file, whatever is cleaned away."""
    table = Table(read_raw(path))
    table.require("timestamp", "duration", "num_gpus", "cluster")
    table.drop_missing("timestamp", "no submission time: set aside")
    table.drop_missing("num_gpus", "no GPU count: set aside")
    stamps, zone = table.instant("timestamp")
    duration = table.number("duration", nullable=True)
    num_gpus = table.integer("num_gpus")
    if "gpu_time" in table:
        gpu_time = table.number("gpu_time", nullable=True)
        table.note(
            (gpu_time - duration * num_gpus.astype("float64")).abs() > 1.0,
            "gpu_time is not duration x GPUs: gpu_time ignored",
        )
    origin = float(stamps.min())
    jobs = pd.DataFrame(
        {
            "submit_s": stamps - origin,
            "duration_s": duration,
            "num_gpus": num_gpus,
            "vc": table.text("cluster"),
            "status": "unknown",
        }
    )
    jobs, repairs = clean(jobs, options, path)
    source = table.raw.source(
        "philly",
        origin=iso(origin, zone),
        zone=zone,
        repairs=(*table.repairs, *repairs),
        notes=("job ids are made here: the file has none; equal rows are kept",),
        options=options,
    )
    return Workload(jobs, source)
