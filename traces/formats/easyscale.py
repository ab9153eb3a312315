"""The workload of EasyScale's SC'23 artifact: 68 rows, elastic jobs counted in epochs.

Columns ``name,time,application,max_parallelism,batch_size,epochs,
enable_heterogeneous_deterministic,preferred_gpu`` and a ninth, unnamed and unused. An epoch is a
hundredth of the application's data set; work in global steps is
ceil(epochs x samples / (batch_size x max_parallelism)), run time is not in the file. Samples per
epoch are those the artifact's simulator uses. Three names come three times each: by default all
68 jobs are kept with a suffix; ``duplicates=artifact`` keeps what the artifact's dictionary keeps,
62 jobs with the values of a name's last row. Source: github.com/sUntvoOk/EasyScale_info_for_SC23
(no licence found). The flag says whether a job may mix GPU types.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from traces.formats.options import Option, choice
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = (
    Option(
        "duplicates", "keep", "keep: all rows, repeated names get #2, #3; artifact: last values"
    ),
)
_FLAG = "enable_heterogeneous_deterministic"
_COLUMNS = (
    "name",
    "time",
    "application",
    "max_parallelism",
    "batch_size",
    "epochs",
    _FLAG,
    "preferred_gpu",
)
SAMPLES_PER_EPOCH: dict[str, float] = {
    "resnet50": 12_800.0,
    "vgg19": 12_800.0,
    "shufflenetv2": 12_800.0,
    "swintransformer": 12_800.0,
    "yolov3": 165.51,
    "bert": 886.41,
    "electra": 886.41,
    "ncf": 49_708.45,
}


def sniff(head: Head) -> bool:
    """Whether it has the workload's columns."""
    return head.has_columns("name", "max_parallelism", "epochs", "preferred_gpu")


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the workload. Seconds are the file's own: they count from its zero."""
    table = _table(path, choice(options, "duplicates", ("keep", "artifact")))
    workers = table.integer("max_parallelism", low=1, high=1e6)
    batch = table.integer("batch_size", low=1, high=1e6)
    application = table.text("application", nullable=False)
    samples = application.map(SAMPLES_PER_EPOCH)
    table.refuse(
        samples.isna(),
        "application",
        "unknown application",
        "one of " + ", ".join(SAMPLES_PER_EPOCH),
    )
    epochs = table.number("epochs", high=1e9)
    per_step = (batch * workers).astype("float64")
    jobs = pd.DataFrame(
        {
            "job_id": _job_ids(table),
            "submit_s": table.number("time"),
            "duration_s": np.nan,
            "num_gpus": workers,
            "num_workers": workers,
            "gpu_type": table.text("preferred_gpu"),
            "status": "unknown",
            "model": application,
            "batch_size": batch,
            "min_gpus": 0,
            "max_gpus": workers,
            "mixes_types": _mixing(table),
            "total_steps": np.ceil(epochs * samples.astype("float64") / per_step),
        }
    )
    source = table.raw.source(
        "easyscale",
        repairs=tuple(table.repairs),
        notes=(
            "run times are not in the file; work is total_steps",
            "num_gpus is the most it uses",
        ),
        options=options,
    )
    return Workload(jobs, source)


def _table(path: Path, duplicates: str) -> Table:
    table = Table(read_raw(path), may_lack=1)  # one row ends before the unused column
    table.require(*_COLUMNS)
    if duplicates == "artifact":
        names = table.text("name", nullable=False)
        table.set_aside(names.duplicated(keep="last"), "name comes again later: last values kept")
    return table


def _mixing(table: Table) -> list[bool]:
    flags = table.integer(_FLAG)
    table.note(flags > 1, "flag is neither 0 nor 1: taken as 1")
    return [bool(flag) for flag in flags]


def _job_ids(table: Table) -> pd.Series:
    """Return names; the second and third of one name, by time and content, get #2 and #3."""
    names = table.text("name", nullable=False)
    order = table.frame.assign(_time=table.number("time")).sort_values(
        ["_time", *_COLUMNS], kind="stable"
    )
    turn = names.loc[order.index].groupby(names.loc[order.index]).cumcount().sort_index()
    repeated = turn > 0
    table.note(repeated, "name comes again: suffix #2, #3 by time")
    ids = names.mask(repeated, names + "#" + (turn + 1).astype("string"))
    table.refuse(ids.duplicated(), "name", "a name and a suffixed name collide", "unique names")
    return ids
