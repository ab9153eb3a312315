"""A workload: the canonical job table in its total order, with requests interned.

The table is columnar, so a million jobs cost tens of megabytes; :class:`traces.job.Job` objects
are made one by one as a run reaches them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import numpy as np
import pandas as pd

from traces.errors import DataError
from traces.job import Elastic, Job, Request
from traces.schema import JOB_COLUMNS, JOB_DEFAULTS, KINDS, PANDAS_DTYPE, STATUSES

_DIGITS = re.compile(r"([0-9]+)")
_CHUNK = 65_536
ELASTIC_COLUMNS = ("min_gpus", "max_gpus", "mixes_types")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Something a loader changed or set aside: the rule, how many rows, and one example."""

    rule: str
    rows: int
    example: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a workload came from; all of it goes into the run's record.

    ``origin`` is the instant of second 0 as an ISO string (None where the trace hides it) and
    ``zone`` its time zone as far as the publisher says.
    """

    path: str = ""
    format: str = ""
    sha256: str = ""
    origin: str | None = None
    zone: str | None = None
    repairs: tuple[Repair, ...] = ()
    notes: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)


def natural_key(text: str) -> tuple[tuple[int, int, str, str], ...]:
    """Sort key in natural order: ``job2`` before ``job10``; total over all strings."""
    parts = []
    for i, part in enumerate(_DIGITS.split(text)):
        if i % 2:
            digits = part.lstrip("0")
            parts.append((0, len(digits), digits, part))
        elif part:
            parts.append((1, 0, part, ""))
    return tuple(parts)


class Workload:
    """Jobs in the total order (``submit_s``, ``job_id`` in natural order).

    ``table`` is the canonical table in that order (row position is ``Job.rank``). Missing optional
    columns, and null cells of those that have one, are filled with their defaults; a table
    without ``job_id`` gets ids by submission, then by content. ``rows_out_of_order`` counts the
    rows that came with an earlier submission than the row before them. Raises
    :class:`DataError` for what is not a canonical job table.
    """

    def __init__(self, table: pd.DataFrame, source: Source | None = None) -> None:
        self.source = source or Source()
        canonical = _canonical(table, self.source.path or None)
        self.rows_out_of_order = int((np.diff(canonical["submit_s"].to_numpy()) < 0).sum())
        self.table = _ordered(canonical)
        self.requests, self.request_of = _intern(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Job]:
        return self.jobs()

    @classmethod
    def from_jobs(cls, rows: Sequence[dict[str, object]]) -> Workload:
        """Build a workload from dictionaries of canonical columns (tests, examples)."""
        return cls(pd.DataFrame(list(rows)))

    def jobs(self, start: int = 0) -> Iterator[Job]:
        """Yield jobs from rank ``start`` on, in order, made in chunks as they are asked for."""
        chunks = range(start, len(self.table), _CHUNK)
        return chain.from_iterable(map(self._chunk, chunks))

    def _chunk(self, low: int) -> Iterator[Job]:
        """The jobs of one chunk, the first of which has rank ``low``."""
        requests = self.requests
        part = self.table.iloc[low : low + _CHUNK]
        columns = (
            range(low, low + len(part)),
            part["job_id"].tolist(),
            part["submit_s"].tolist(),
            part["duration_s"].tolist(),
            [requests[i] for i in self.request_of[low : low + len(part)].tolist()],
            _optional(part["estimate_s"]),
            _optional(part["user"]),
            _optional(part["vc"]),
            part["kind"].tolist(),
            _optional(part["priority"]),
            _elastic(part),
        )
        # As Job._make would, but without a call into Python for each job.
        return map(tuple.__new__, repeat(Job), zip(*columns, strict=True))

    def job(self, rank: int) -> Job:
        """Return the job at ``rank``."""
        return next(self.jobs(rank))

    def demand(self) -> dict[Request, int]:
        """Count the jobs of each request."""
        counts = np.bincount(self.request_of, minlength=len(self.requests))
        return dict(zip(self.requests, counts.tolist(), strict=True))

    def digest(self) -> str:
        """SHA-256 over the canonical content, independent of the file's row order."""
        digest = hashlib.sha256()
        for column in JOB_COLUMNS:
            if column.name in ELASTIC_COLUMNS and not self.elastic:
                continue  # a rigid workload is what it was before there were elastic ones
            values = self.table[column.name]
            digest.update(column.name.encode())
            if values.isna().all():
                digest.update(b"null")  # most columns of most traces; cheaper than hashing nulls
                continue
            digest.update(pd.util.hash_pandas_object(values, index=False).to_numpy().tobytes())
        return digest.hexdigest()

    @property
    def elastic(self) -> bool:
        """Whether any job is elastic."""
        return bool(self.table["max_gpus"].notna().any())

    def head(self, count: int) -> Workload:
        """Return the first ``count`` jobs by submission, times kept."""
        return Workload(self.table.head(count), self.source)


def _elastic(part: pd.DataFrame) -> list[Elastic | None]:
    """The elastic side of some jobs, None for rigid ones."""
    found: list[Elastic | None] = [None] * len(part)
    which = np.flatnonzero(part["max_gpus"].notna().to_numpy())
    if not len(which):
        return found
    names = ["num_workers", "max_gpus", "min_gpus", "mixes_types", "model", "batch_size"]
    rows = part.iloc[which]
    columns = [_optional(rows[name]) for name in (*names, "total_steps", "gpu_type")]
    for at, workers, most, least, mixes, model, batch, steps, types in zip(
        which.tolist(), *columns, strict=True
    ):
        found[at] = Elastic(
            num_workers=int(workers),
            max_gpus=int(most),
            min_gpus=int(least or 0),
            mixes_types=bool(mixes),
            model=None if model is None else str(model),
            batch_size=None if batch is None else int(batch),
            total_steps=None if steps is None else float(steps),
            preferred_type=None if types is None else str(types).split("|", 1)[0],
        )
    return found


def _optional(series: pd.Series) -> list[object | None]:
    missing = series.isna()
    if missing.all():
        return [None] * len(series)
    values: list[object | None] = series.astype(object).where(~missing, None).tolist()
    return values


def _canonical(table: pd.DataFrame, where: object) -> pd.DataFrame:
    table = table.reset_index(drop=True)
    unknown = [c for c in table.columns if c not in {k.name for k in JOB_COLUMNS}]
    if unknown:
        raise DataError(
            "not a canonical column",
            file=where,
            column=str(unknown[0]),
            expected="one of " + ", ".join(c.name for c in JOB_COLUMNS),
        )
    columns: dict[str, pd.Series] = {}
    for column in JOB_COLUMNS:
        if column.name in table.columns:
            series = table[column.name]
            if column.name in JOB_DEFAULTS and series.isna().any():
                # Before the type: a missing truth value would become True.
                default = JOB_DEFAULTS[column.name]
                series = series.astype(object).where(series.notna(), default)
        elif column.name == "job_id":
            continue
        elif column.name in JOB_DEFAULTS:
            series = pd.Series([JOB_DEFAULTS[column.name]] * len(table), dtype=object)
        elif column.nullable:
            series = pd.Series([None] * len(table), dtype=object)
        else:
            raise DataError(
                "column is missing", file=where, column=column.name, expected=column.meaning
            )
        try:
            typed = series.astype(PANDAS_DTYPE[column.dtype])
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"not {column.dtype}: {error}",
                file=where,
                column=column.name,
                expected=column.meaning,
            ) from error
        if not column.nullable and typed.isna().any():
            row = int(np.flatnonzero(typed.isna().to_numpy())[0])
            raise DataError(
                f"null in job {row} of the table",
                file=where,
                column=column.name,
                expected=column.meaning,
            )
        columns[column.name] = typed
    canonical = pd.DataFrame(columns)
    _check_values(canonical, where)
    return canonical


def _check_values(table: pd.DataFrame, where: object) -> None:
    def refuse(bad: pd.Series, column: str, expected: str) -> None:
        wrong = bad.fillna(False).to_numpy(dtype=bool)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            name = (
                f"job {table['job_id'].iloc[row]}"
                if "job_id" in table
                else f"job {row} of the table"
            )
            raise DataError(
                f"bad value in {name}",
                file=where,
                column=column,
                value=table[column].iloc[row],
                expected=expected,
            )

    for column in ("submit_s", "duration_s", "estimate_s", "start_s"):
        refuse(table[column].abs() == np.inf, column, "a finite number of seconds")
    for column in ("duration_s", "estimate_s", "num_gpus", "cpu_milli", "memory_mib"):
        refuse(table[column] < 0, column, "0 or more")
    refuse((table["gpu_milli"] < 1) | (table["gpu_milli"] > 1000), "gpu_milli", "1 to 1000")
    refuse(
        (table["gpu_milli"] < 1000) & (table["num_gpus"] > 1),
        "gpu_milli",
        "1000 for jobs of more than one GPU: shares are for one-GPU jobs",
    )
    _check_elastic(table, refuse)
    refuse(~table["status"].isin(STATUSES), "status", "one of " + ", ".join(STATUSES))
    refuse(~table["kind"].isin(KINDS), "kind", "one of " + ", ".join(KINDS))
    if "job_id" in table:
        refuse(table["job_id"].duplicated(), "job_id", "each id once")


def _check_elastic(table: pd.DataFrame, refuse: Callable[[pd.Series, str, str], None]) -> None:
    least, most, workers = table["min_gpus"], table["max_gpus"], table["num_workers"]
    elastic = most.notna()
    refuse(least.notna() & ~elastic, "min_gpus", "none without max_gpus: the job is rigid")
    refuse(table["mixes_types"] & ~elastic, "mixes_types", "false without max_gpus: it is rigid")
    refuse(elastic & workers.isna(), "num_workers", "the logical workers of an elastic job")
    refuse(elastic & (workers < 1), "num_workers", "1 or more for an elastic job")
    refuse(elastic & (most < 1), "max_gpus", "1 or more")
    refuse(elastic & (least < 0), "min_gpus", "0 or more")
    refuse(elastic & (least > most), "min_gpus", "at most max_gpus")
    gangs = (table["num_gpus"] >= least.fillna(1).clip(lower=1)) & (table["num_gpus"] <= most)
    refuse(elastic & ~gangs, "num_gpus", "from min_gpus (at least 1) to max_gpus, if elastic")
    refuse(elastic & (table["gpu_milli"] < 1000), "gpu_milli", "1000 for an elastic job")


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    if "job_id" not in table:
        # Ids by submission, then by content: equal rows are interchangeable, so row order of the
        # file cannot show.
        content = [c for c in table.columns if c != "submit_s"]
        order = table.assign(
            **{
                c: table[c].astype("string").fillna("")
                for c in content
                if table[c].dtype == "string"
            }
        )
        order = order.sort_values(["submit_s", *content], kind="stable", na_position="first")
        table = table.loc[order.index].reset_index(drop=True)
        table.insert(
            0, "job_id", pd.Series([f"job-{i:06d}" for i in range(len(table))], dtype="string")
        )
        return table[[c.name for c in JOB_COLUMNS]]
    submit = table["submit_s"].to_numpy()
    order_by_time = np.argsort(submit, kind="stable")
    positions = order_by_time.tolist()
    times = submit[order_by_time]
    # Natural order is dear; only jobs submitted at the same instant need it.
    starts = np.flatnonzero(np.concatenate(([True], times[1:] != times[:-1], [True])))
    ids = table["job_id"].tolist()
    for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if high - low > 1:
            positions[low:high] = sorted(positions[low:high], key=lambda i: natural_key(ids[i]))
    return table.iloc[positions].reset_index(drop=True)


def _intern(
    table: pd.DataFrame,
) -> tuple[tuple[Request, ...], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    keys = ["num_gpus", "gpu_milli", "gpu_type", "cpu_milli", "memory_mib", "single_node"]
    groups = table.groupby(keys, dropna=False, sort=True)
    request_of = groups.ngroup().to_numpy(dtype=np.int64)
    first = ~pd.Series(request_of).duplicated()
    requests: list[Request | None] = [None] * int(first.sum())
    for position in np.flatnonzero(first.to_numpy()).tolist():
        row = table.iloc[position]
        types = (
            ()
            if pd.isna(row["gpu_type"])
            else tuple(dict.fromkeys(str(row["gpu_type"]).split("|")))
        )
        requests[int(request_of[position])] = Request(
            num_gpus=int(row["num_gpus"]),
            gpu_milli=int(row["gpu_milli"]),
            gpu_types=types,
            cpu_milli=0 if pd.isna(row["cpu_milli"]) else int(row["cpu_milli"]),
            memory_mib=0 if pd.isna(row["memory_mib"]) else int(row["memory_mib"]),
            single_node=bool(row["single_node"]),
        )
    assert all(r is not None for r in requests)
    return tuple(r for r in requests if r is not None), request_of
