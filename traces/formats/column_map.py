"""Any CSV or Parquet file with a column map: canonical column -> column of the file.

``{"submit_s": "timestamp", "num_gpus": "gpus", "gpu_type": "=v100"}``: a value that begins with
``=`` is a constant for every job (``==`` stands for a value that begins with ``=``). ``submit_s``,
``start_s`` and ``end_s`` are numbers or ISO date-times; ``end_s`` is no canonical column but gives
``duration_s = end_s - start_s`` where no duration is mapped. Second 0 is the first submission.
Rows without submission or GPU count are set aside, and counted. Left out: arithmetic on columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from traces.errors import DataError, UsageError, did_you_mean
from traces.formats.canonical import convert, parquet_table
from traces.formats.cleaning import CLEANING, clean
from traces.formats.options import Option, choice
from traces.formats.raw import Head, read_raw
from traces.formats.table import MISSING, Table, iso
from traces.schema import JOB_COLUMNS, STATUSES, Column
from traces.workload import Workload

_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|", "space": " "}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0}
OPTIONS: tuple[Option, ...] = (
    Option("delimiter", "comma", "one of " + ", ".join(_DELIMITERS)),
    Option("time_unit", "s", "unit of numeric submit_s, start_s, end_s: " + ", ".join(_UNITS)),
    Option("duration_unit", "s", "unit of duration_s and estimate_s: " + ", ".join(_UNITS)),
    *CLEANING,
)
_END = Column("end_s", "float", "s", True, "end, gives duration_s")
_TARGETS: dict[str, Column] = {c.name: c for c in (*JOB_COLUMNS, _END)}
_CLOCK = ("submit_s", "start_s", "end_s")
_LENGTH = ("duration_s", "estimate_s")
HOW = "--column submit_s=NAME --column num_gpus=NAME --column duration_s=NAME"


def sniff(head: Head) -> bool:
    """Nothing: a column map is given, never guessed."""
    return False


def read(
    path: Path, options: Mapping[str, str], columns: Mapping[str, str] | None = None
) -> Workload:
    """Read a table with a column map; raises :class:`UsageError` for a map that cannot be meant."""
    mapped = dict(columns or {})
    _check_map(mapped)
    raw = read_raw(path)
    delimiter = _DELIMITERS[choice(options, "delimiter", tuple(_DELIMITERS))]
    table = parquet_table(raw) if raw.is_parquet else Table(raw, delimiter=delimiter)
    table.require(*(name for name in mapped.values() if not name.startswith("=")))
    for target in ("submit_s", "num_gpus"):
        if not mapped[target].startswith("="):
            table.drop_missing(mapped[target], f"no {target}: set aside")
    reader = _Reader(table, mapped, options)
    jobs = reader.jobs()
    origin = float(jobs["submit_s"].min())
    for column in ("submit_s", "start_s"):
        if column in jobs:
            jobs[column] -= origin
    jobs, repairs = clean(jobs, options, path)
    source = raw.source(
        "table",
        origin=iso(origin, reader.zone) if reader.dated else None,
        zone=reader.zone,
        repairs=(*table.repairs, *repairs),
        notes=("column map: " + ", ".join(f"{k}={v}" for k, v in sorted(mapped.items())),),
        options=options,
    )
    return Workload(jobs, source)


def _check_map(columns: Mapping[str, str]) -> None:
    for target in columns:
        if target not in _TARGETS:
            raise UsageError(
                f"column map: {target!r} is no canonical column; {did_you_mean(target, _TARGETS)}"
            )
    for target in ("submit_s", "num_gpus"):
        if not columns.get(target):
            raise UsageError(f"column map: {target} is missing; give {HOW}")
    if "end_s" in columns and ("start_s" not in columns or "duration_s" in columns):
        raise UsageError("column map: end_s gives duration_s with start_s, and only without it")


class _Reader:
    """Converts the mapped columns of one table; ``dated`` once a clock column held date-times."""

    def __init__(
        self, table: Table, columns: Mapping[str, str], options: Mapping[str, str]
    ) -> None:
        self.table = table
        self.columns = columns
        self.clock_unit = _UNITS[choice(options, "time_unit", tuple(_UNITS))]
        self.length_unit = _UNITS[choice(options, "duration_unit", tuple(_UNITS))]
        self.dated: bool | None = None
        self.zone: str | None = None

    def jobs(self) -> pd.DataFrame:
        jobs = pd.DataFrame({target: self._values(target) for target in self.columns})
        if "end_s" in jobs:
            jobs["duration_s"] = jobs.pop("end_s") - jobs["start_s"]
            self.table.note(jobs["duration_s"] < 0, "ends before it starts: run time unknown")
            jobs["duration_s"] = jobs["duration_s"].mask(jobs["duration_s"] < 0)
        elif "duration_s" not in jobs:
            jobs["duration_s"] = float("nan")
        if "job_id" in jobs:
            self.table.refuse(
                jobs["job_id"].duplicated(), self.columns["job_id"], "the id is there twice", "once"
            )
        return jobs

    def _values(self, target: str) -> pd.Series:
        name = self.columns[target]
        if name.startswith("="):
            return self._constant(target, name[1:])
        if target in _CLOCK:
            return self._clock(target, name)
        if target == "status":
            known = {s: s for s in STATUSES}
            self.table.frame[name] = self.table.frame[name].str.lower()
            return self.table.choice(name, known, missing="unknown")
        values = convert(self.table, _TARGETS[target], name, MISSING)
        return values * self.length_unit if target in _LENGTH else values

    def _clock(self, target: str, name: str) -> pd.Series:
        nullable = target != "submit_s"
        text = self.table.text(name, nullable=nullable)
        dated = bool(text.str.contains(r"^\d{4}-\d{2}", regex=True).fillna(False).any())
        if self.dated is None:
            self.dated = dated
        elif dated != self.dated and text.notna().any():
            raise DataError(
                "some time columns are date-times and some numbers",
                file=self.table.path,
                column=name,
                expected="one kind of time in the whole file",
            )
        if not dated:
            return self.table.number(name, nullable=nullable, low=None) * self.clock_unit
        seconds, zone = self.table.instant(name, nullable=nullable)
        if target == "submit_s":
            self.zone = zone
        return seconds

    def _constant(self, target: str, value: str) -> pd.Series:
        single = Table.of(self.table.raw, pd.DataFrame({target: [value]}))
        try:
            one = convert(single, _TARGETS[target], target).iloc[0]
        except DataError as error:
            raise UsageError(
                f"column map: {target}=={value}: {error.problem}; expected {error.expected}"
            ) from error
        return pd.Series([one] * len(self.table), index=self.table.frame.index)
