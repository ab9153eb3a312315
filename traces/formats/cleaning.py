"""Optional cleanings that published work applies to production traces; by default all is kept.

Each option names one rule, so two papers' different cleanings of one trace are two settings:
Sia keeps Philly jobs of 60 s and more and under 1,000 GPU-hours; Blox keeps summed runs between
32 min and 7 days, optionally of at most 16 GPUs; Helios's authors drop four tiny virtual clusters
of Philly; Skyburst keeps successful jobs only. What a rule takes out is counted as a repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from traces.errors import DataError, UsageError, did_you_mean
from traces.formats.options import Option, number
from traces.schema import STATUSES
from traces.workload import Repair

CLEANING: tuple[Option, ...] = (
    Option("min_duration_s", "", "set aside jobs that ran for less (seconds)"),
    Option("max_duration_s", "", "set aside jobs that ran for longer (seconds)"),
    Option("max_gpus", "", "set aside jobs of more GPUs"),
    Option("max_gpu_hours", "", "set aside jobs of this many GPU-hours and more"),
    Option("drop_vcs", "", "set aside jobs of these virtual clusters (comma-separated)"),
    Option("only_status", "", "keep only jobs of this status, such as completed"),
)


def clean(
    jobs: pd.DataFrame, options: Mapping[str, str], path: Path
) -> tuple[pd.DataFrame, list[Repair]]:
    """Apply the options that are set to a canonical table; return what is left, and the repairs.

    The trace's origin stays where it was. A job of unknown run time is never taken out by a rule
    about run times. Raises :class:`UsageError` for a rule that cannot be read and
    :class:`DataError` when no job is left.
    """
    repairs: list[Repair] = []
    for rule, bad in _rules(jobs, options).items():
        rows = bad.to_numpy(dtype=bool, na_value=False) & _present(jobs, bad)
        if rows.any():
            first = jobs.loc[bad.index[rows][0]]
            example = f"{first['num_gpus']} GPUs, {first['duration_s']} s"
            if "job_id" in jobs:
                example = f"{first['job_id']}: {example}"
            repairs.append(Repair(rule=rule, rows=int(rows.sum()), example=example))
            jobs = jobs.drop(index=bad.index[rows])
    if not len(jobs):
        raise DataError("no job is left: " + "; ".join(r.rule for r in repairs), file=path)
    return jobs, repairs


def _present(jobs: pd.DataFrame, bad: pd.Series) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Count a job under the first rule that takes it out, and only there."""
    present: np.ndarray[tuple[int], np.dtype[np.bool_]] = bad.index.isin(jobs.index)
    return present


def _rules(jobs: pd.DataFrame, options: Mapping[str, str]) -> dict[str, pd.Series]:
    rules: dict[str, pd.Series] = {}
    duration = jobs["duration_s"]
    low, high = number(options, "min_duration_s"), number(options, "max_duration_s")
    gpus, gpu_hours = number(options, "max_gpus"), number(options, "max_gpu_hours")
    if low is not None:
        rules[f"min_duration_s={low:g}: ran for less"] = duration < low
    if high is not None:
        rules[f"max_duration_s={high:g}: ran for longer"] = duration > high
    if gpus is not None:
        rules[f"max_gpus={gpus:g}: of more GPUs"] = jobs["num_gpus"] > gpus
    if gpu_hours is not None:
        used = duration * jobs["num_gpus"].astype("float64")
        rules[f"max_gpu_hours={gpu_hours:g}: used that many or more"] = used >= gpu_hours * 3600
    vcs = [vc.strip() for vc in options["drop_vcs"].split(",") if vc.strip()]
    known = set(jobs["vc"].dropna()) if "vc" in jobs else set()
    for vc in vcs:
        if vc not in known:
            raise UsageError(f"option drop_vcs={vc}: not in this trace; {did_you_mean(vc, known)}")
    if vcs:
        rules[f"drop_vcs={','.join(vcs)}"] = jobs["vc"].isin(vcs)
    status = options["only_status"].strip()
    if status:
        if status not in STATUSES:
            raise UsageError(f"option only_status={status}: {did_you_mean(status, STATUSES)}")
        rules[f"only_status={status}: of another status"] = jobs["status"] != status
    return rules
