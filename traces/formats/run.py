"""A run directory as a trace: its jobs table holds the workload that was run.

The trace's own record (``trace_start_s``, ``trace_status``) becomes ``start_s`` and ``status``
again, so loading a run gives back the workload with the same digest; what the run itself did
(its starts, finishes, allocations) is left to :class:`traces.RunLog`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from traces.formats.options import Option, choice
from traces.formats.raw import Head, read_raw
from traces.runlog import RunLog
from traces.schema import JOB_COLUMNS
from traces.workload import Workload

RECORDED, FROM_STEPS = "recorded", "from-steps"
OPTIONS = (
    Option(
        "durations",
        RECORDED,
        f"{RECORDED}, or {FROM_STEPS}: leave out the run times of jobs with total_steps, which"
        " follow from a profile",
    ),
)
_NAMES = {"trace_start_s": "start_s", "trace_status": "status"}


def sniff(head: Head) -> bool:
    """Whether it is a directory with ``run.json`` in it."""
    return head.is_dir and "run.json" in head.names


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the jobs of a run directory."""
    run = RunLog.open(path)
    from_steps = choice(options, "durations", (RECORDED, FROM_STEPS)) == FROM_STEPS
    jobs = run.table("jobs").drop(columns=["start_s", "status"]).rename(columns=_NAMES)
    recorded = run.record.get("workload")
    recorded = recorded if isinstance(recorded, dict) else {}
    notes = [f"jobs of the run {run.record.get('name') or path.name}"]
    if recorded.get("path"):
        notes.append(f"which read {recorded['path']}")
    if run.partial:
        notes.append("the run is partial")
    if from_steps:
        jobs["duration_s"] = jobs["duration_s"].where(jobs["total_steps"].isna())
        notes.append("run times of jobs with total_steps are left to a profile")
    raw = read_raw(path / "jobs.parquet")
    origin, zone = recorded.get("origin"), recorded.get("zone")
    source = raw.source(
        "run",
        origin=None if origin is None else str(origin),
        zone=None if zone is None else str(zone),
        notes=tuple(notes),
        options=options,
    )
    return Workload(jobs[[c.name for c in JOB_COLUMNS]], source)
