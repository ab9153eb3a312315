"""Gavel's ``.trace`` files: tab-separated fields without a header.

Ten fields: job_type, command, working_directory, num_steps_arg, needs_data_dir, total_steps,
scale_factor, priority, SLO (-1: none), arrival. The older ``msr/`` traces have seven: job_type,
command, num_steps_arg, needs_data_dir, total_steps, arrival, scale_factor (in this order). Work is
counted in steps; with ``throughputs=throughputs.json[.gz]`` the run time is
total_steps / throughput[worker][(job_type, scale_factor)]["null"] (alone on its GPUs, steps/s).
Source: github.com/stanford-futuredata/gavel (MIT). Left out: throughputs of pairs of jobs that
share a GPU, SLOs (noted).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from traces.errors import DataError, UsageError, did_you_mean
from traces.formats.options import Option
from traces.formats.raw import Head, read_raw
from traces.formats.table import Table
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = (
    Option("throughputs", "", "path of Gavel's throughputs.json or .json.gz: gives run times"),
    Option("worker", "v100", "GPU type in the throughputs file"),
)
_TEN = (
    "job_type",
    "command",
    "working_directory",
    "num_steps_arg",
    "needs_data_dir",
    "total_steps",
    "scale_factor",
    "priority",
    "SLO",
    "arrival",
)
_SEVEN = (
    "job_type",
    "command",
    "num_steps_arg",
    "needs_data_dir",
    "total_steps",
    "arrival",
    "scale_factor",
)
_STEPS_LIMIT = 1e13


def sniff(head: Head) -> bool:
    """Whether the first line has 10 or 7 tab-separated fields that are numbers where due."""
    if not head.lines:
        return False
    fields = head.lines[0].split("\t")
    return len(fields) in (len(_TEN), len(_SEVEN)) and _is_number(fields[-1])


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read a trace. Seconds are the trace's own: they count from its zero."""
    raw = read_raw(path)
    width = raw.text().lstrip("\n").split("\n", 1)[0].count("\t") + 1
    table = Table(raw, delimiter="\t", header=_SEVEN if width == len(_SEVEN) else _TEN)
    job_type = table.text("job_type", nullable=False)
    scale = table.integer("scale_factor", low=1)
    steps = table.number("total_steps", high=_STEPS_LIMIT)
    priority = table.text("priority") if "priority" in table else None
    notes = []
    if "SLO" in table:
        slo = table.number("SLO", nullable=True, low=None)
        if (slo >= 0).any():
            notes.append(f"{int((slo >= 0).sum())} jobs have an SLO, which is not kept")
    duration = None
    if options["throughputs"].strip():
        rates = _Throughputs(Path(options["throughputs"].strip()), options["worker"].strip())
        duration = steps / rates.of(table, job_type, scale)
    else:
        notes.append("run times unknown: give throughputs=PATH (and worker=TYPE)")
    jobs = pd.DataFrame(
        {
            "submit_s": table.number("arrival"),
            "duration_s": duration,
            "num_gpus": scale,
            "num_workers": scale,
            "priority": priority,
            "status": "unknown",
            "model": job_type,
            "batch_size": pd.to_numeric(job_type.str.extract(r"\(batch size (\d{1,9})\)")[0]),
            "total_steps": steps,
        }
    )
    source = raw.source("gavel", notes=tuple(notes), repairs=tuple(table.repairs), options=options)
    return Workload(jobs, source)


class _Throughputs:
    """Steps per second of each (job type, scale factor), alone on its GPUs, on one GPU type."""

    def __init__(self, path: Path, worker: str) -> None:
        raw = read_raw(path)
        try:
            document: Any = json.loads(raw.text())
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            raise DataError(f"not JSON: {error}", file=path, expected="throughputs.json") from error
        if not isinstance(document, dict) or not document:
            raise DataError("no GPU types in it", file=path, expected="throughputs.json")
        if worker not in document:
            raise UsageError(f"option worker={worker}: {did_you_mean(worker, document)}")
        self.path = path
        self.worker = worker
        self._rates: Any = document[worker]

    def of(self, table: Table, job_type: pd.Series, scale: pd.Series) -> pd.Series:
        """Return the rate of each row; raises :class:`DataError` for a row without one."""
        keys = [str((t, int(s))) for t, s in zip(job_type, scale, strict=True)]
        rates = pd.Series([self._rate(key) for key in keys], dtype="float64")
        table.refuse(
            rates.isna(),
            "job_type",
            f"no throughput of this job type at this scale on {self.worker} in {self.path.name}",
            "a configuration that was measured",
        )
        return rates

    def _rate(self, key: str) -> float:
        entry = self._rates.get(key) if isinstance(self._rates, dict) else None
        alone = entry.get("null") if isinstance(entry, dict) else None
        usable = isinstance(alone, int | float) and math.isfinite(alone) and alone > 0
        return float(alone) if usable and alone is not None else math.nan


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
