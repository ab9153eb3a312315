"""Microsoft Philly's original ``cluster_job_log``: one JSON array, each job with its attempts.

A job's run time is the sum of its attempts' run times, its GPUs those of attempt 0 (the log has
no request, only the devices an attempt got). A job without attempts never ran; one whose last
attempt has no end was still running when the log was taken. Times are naive, missing ones null or
``"None"``. Source: README of github.com/msr-fiddle/philly-traces (CC BY 4.0); defects from its
issue 8. Left out: the per-minute utilisation tables, and the machine list, which contradicts the
log (8-GPU jobs on "2-GPU" machines), so no inventory is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd

from traces.errors import DataError
from traces.formats.cleaning import CLEANING, clean
from traces.formats.options import Option
from traces.formats.raw import Head, Raw, read_raw
from traces.formats.table import iso
from traces.workload import Repair, Workload

OPTIONS: tuple[Option, ...] = CLEANING
_STATUS = {"Pass": "completed", "Failed": "failed", "Killed": "killed"}


@dataclass(slots=True)
class _Tally:
    """How many jobs a rule touched, and the first of them."""

    rows: int = 0
    example: str = ""

    def add(self, example: str) -> None:
        if not self.rows:
            self.example = example
        self.rows += 1


def sniff(head: Head) -> bool:
    """Whether it is a JSON array whose first job has attempts and a submission time."""
    start = "\n".join(head.lines[:400]).lstrip()
    return start.startswith("[") and (
        '"jobid"' in start or '"attempts"' in start or '"submitted_time"' in start
    )


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read the log. Second 0 is the first submission in the file."""
    raw = read_raw(path)
    entries = _entries(raw)
    rules: dict[str, _Tally] = {}
    rows = [
        row
        for i, entry in enumerate(entries)
        if (row := _Job(raw, i, rules).row(entry)) is not None
    ]
    repairs = [Repair(rule=rule, rows=t.rows, example=t.example) for rule, t in rules.items()]
    if not rows:
        raise DataError(
            "no job in it has a submission time and a GPU count",
            file=path,
            expected="the publisher's cluster_job_log",
        )
    jobs = pd.DataFrame(rows)
    for column in ("duration_s", "start_s", "last_s", "running_since_s"):
        jobs[column] = jobs[column].astype("float64")
    twice = jobs["job_id"].duplicated()
    if twice.any():
        name = str(jobs.loc[twice, "job_id"].iloc[0])
        raise DataError("the id is there twice", file=path, column="jobid", value=name)
    origin = float(jobs["submit_s"].min())
    last = float(jobs[["submit_s", "last_s"]].max(axis=None))
    # Still running at the end of the log: what is known is a lower bound.
    running = jobs["right_censored"]
    jobs.loc[running, "duration_s"] += last - jobs.loc[running, "running_since_s"]
    jobs["submit_s"] -= origin
    jobs["start_s"] -= origin
    jobs = jobs.drop(columns=["last_s", "running_since_s"])
    jobs, cleaned = clean(jobs, options, path)
    source = raw.source(
        "philly-log",
        origin=iso(origin),
        repairs=(*repairs, *cleaned),
        notes=(
            "times are naive and their zone unstated; the daily rhythm fits UTC",
            "GPUs are those of the first attempt; the log has no request",
        ),
        options=options,
    )
    return Workload(jobs, source)


def _entries(raw: Raw) -> list[Any]:
    expected = "a JSON array of jobs, as in cluster_job_log"
    try:
        entries = json.loads(raw.text())
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error.msg}", file=raw.path, row=error.lineno, expected=expected
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; integers of too many digits
        raise DataError(f"not JSON of jobs: {error}", file=raw.path, expected=expected) from error
    if not isinstance(entries, list):
        raise DataError("not an array", file=raw.path, expected=expected)
    if not entries:
        raise DataError("no jobs in it", file=raw.path, expected=expected)
    return entries


@dataclass(slots=True)
class _Job:
    """Reads one entry; ``position`` (from 0) is its place in the array."""

    raw: Raw
    position: int
    rules: dict[str, _Tally]
    name: str = ""

    def row(self, entry: object) -> dict[str, object] | None:
        job = self._expect(entry, dict, "job", "an object")
        self.name = str(job.get("jobid") or f"entry {self.position}")
        if self._label(job, "jobid") is None:
            raise self._error("jobid", job.get("jobid"), "a string, unique in the file")
        submit = self._instant(job, "submitted_time")
        if submit is None:
            self._count("no submission time: set aside")
            return None
        attempts = self._expect(job.get("attempts") or [], list, "attempts", "an array")
        if not attempts:
            self._count("never ran (no attempts), so no GPU count: set aside as pending")
            return None
        gpus = self._gpus(self._expect(attempts[0], dict, "attempts", "an array of objects"))
        if gpus is None:
            self._count("no GPUs recorded for attempt 0: set aside")
            return None
        status = job.get("status")
        times = self._attempts(attempts)
        if times["right_censored"]:
            status = "running"
        elif isinstance(status, str) and status in _STATUS:
            status = _STATUS[status]
        else:
            self._count(f"status is none of {', '.join(_STATUS)}: unknown")
            status = "unknown"
        return {
            "job_id": self.name,
            "submit_s": submit,
            "num_gpus": gpus,
            "user": self._label(job, "user"),
            "vc": self._label(job, "vc"),
            **times,
            "status": status,
        }

    def _attempts(self, attempts: list[Any]) -> dict[str, object]:
        total: float | None = 0.0
        first: float | None = None
        last = float("-inf")
        since: float | None = None
        for i, attempt in enumerate(attempts):
            times = self._expect(attempt, dict, "attempts", "an array of objects")
            start, end = self._instant(times, "start_time"), self._instant(times, "end_time")
            last = max(last, start or last, end or last)
            if start is not None:
                first = start if first is None else min(first, start)
            if start is not None and end is None and i == len(attempts) - 1:
                since = start
            elif start is None or end is None:
                self._count("an attempt without its start or end: run time unknown")
                total = None
            elif end < start:
                self._count("an attempt ends before it starts: counted as 0 s")
            elif total is not None:
                total += end - start
        return {
            "duration_s": total,
            "start_s": first,
            "last_s": last if last > float("-inf") else None,
            "running_since_s": since,
            "right_censored": since is not None,
        }

    def _gpus(self, attempt: dict[str, Any]) -> int | None:
        detail = self._expect(attempt.get("detail") or [], list, "detail", "an array")
        count = 0
        for machine in detail:
            held = self._expect(machine, dict, "detail", "an array of objects").get("gpus") or []
            count += len(self._expect(held, list, "gpus", "an array"))
        return count or None

    def _instant(self, where: Mapping[str, Any], key: str) -> float | None:
        text = where.get(key)
        if text is None or text in ("", "None"):
            return None
        if isinstance(text, str):
            try:
                stamp = datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            except ValueError:
                pass
            else:
                return stamp.timestamp()
        raise self._error(key, text, "a time such as 2017-10-07 01:11:39, or null")

    def _label(self, where: Mapping[str, Any], key: str) -> str | None:
        value = where.get(key)
        if value is None or value in ("", "None"):
            return None
        if not isinstance(value, str):
            raise self._error(key, value, "a string")
        return value

    def _expect(self, value: object, kind: type[Any], key: str, expected: str) -> Any:
        if not isinstance(value, kind):
            raise self._error(key, value, expected)
        return cast(Any, value)

    def _error(self, key: str, value: object, expected: str) -> DataError:
        return DataError(
            f"job {self.position} of the array{f' ({self.name})' if self.name else ''}",
            file=self.raw.path,
            column=key,
            value=value,
            expected=expected,
        )

    def _count(self, rule: str) -> None:
        self.rules.setdefault(rule, _Tally()).add(self.name)
