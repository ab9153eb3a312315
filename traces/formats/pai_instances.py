"""PAI's instance table, read in pieces: when each job's instances first ran, and for how long.

The table has 7.5 million rows, so its cells as strings would not fit in a laptop's memory. It is
cut at line ends into pieces of a few hundred thousand rows; each piece is parsed and checked as
every table is, and only five numbers per row are kept. Rows of one worker are told by a 64-bit
hash of its name (two workers of one hash in 7.5 million: about one in a million). The last row by
(status, start, end) of each worker counts, as the authors' scripts have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from traces.errors import DataError
from traces.formats.raw import Raw
from traces.formats.table import Table
from traces.workload import Repair

PIECE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Instances as numbers, all (rows,): the job's position (-1: no such job), and so on."""

    job: Any
    worker: Any
    status: Any
    start: Any
    end: Any
    line: Any

    def take(self, which: Any) -> _Rows:
        return _Rows(**{name: getattr(self, name)[which] for name in self.__slots__})


def run_times(
    raw: Raw, columns: Sequence[str], job_names: Sequence[str], *, piece_bytes: int = PIECE_BYTES
) -> tuple[pd.DataFrame, list[Repair]]:
    """Return ``start`` (first, s) and ``duration`` (mean, s) by job name, and what was repaired.

    ``columns`` are the table's names where it has no header line. Raises :class:`DataError` with
    row and column, as a table read in one piece would.
    """
    names = pd.Index(job_names).unique()
    rows = _all_rows(raw, columns, names, piece_bytes)
    repairs: list[Repair] = []

    def note(which: Any, rule: str) -> None:
        if which.any():
            example = f"row {int(rows.line[which].min())} of {raw.path.name}"
            repairs.append(Repair(rule=rule, rows=int(which.sum()), example=example))

    orphan = rows.job < 0
    note(orphan, "an instance of no job: not used")
    rows = rows.take(~orphan)
    # NaN sorts last in NumPy; a time that is missing comes before all others.
    order = np.lexsort(
        (rows.job, _missing_first(rows.end), _missing_first(rows.start), rows.status, rows.worker)
    )
    rows = rows.take(order)
    last = np.append(rows.worker[1:] != rows.worker[:-1], True)[: len(rows.worker)]
    note(~last, "several rows of one worker: the last by (status, start, end) is kept")
    rows = rows.take(last)
    duration = rows.end - rows.start
    short = duration <= 0
    note(short, "run time of 0 s or less: taken as 1 s")
    duration[short] = 1.0
    return _by_job(names, rows, duration), repairs


def _missing_first(times: Any) -> Any:
    return np.where(np.isnan(times), -np.inf, times)


def _by_job(names: pd.Index, rows: _Rows, duration: Any) -> pd.DataFrame:
    first = np.full(len(names), np.inf)
    started = ~np.isnan(rows.start)
    np.minimum.at(first, rows.job[started], rows.start[started])
    order = np.lexsort((duration, rows.job))  # sums of floats need one order
    order = order[~np.isnan(duration[order])]
    count = np.bincount(rows.job[order], minlength=len(names)).astype(np.float64)
    total = np.bincount(rows.job[order], duration[order], minlength=len(names))
    mean = np.divide(total, count, out=np.full(len(names), np.nan), where=count > 0)
    return pd.DataFrame(
        {"start": np.where(np.isinf(first), np.nan, first), "duration": mean}, index=names
    )


def _all_rows(raw: Raw, columns: Sequence[str], names: pd.Index, piece_bytes: int) -> _Rows:
    statuses: dict[str, int] = {}
    parts: list[_Rows] = []
    has_header = raw.data[:400].removeprefix(b"\xef\xbb\xbf").startswith(",".join(columns).encode())
    for piece, lines_before in _pieces(raw, piece_bytes):
        header = None if has_header and not parts else columns
        parts.append(_numbers(_parsed(piece, header, lines_before), names, statuses))
    # Codes are by first appearance; ranks are by name, so the order of the file does not show.
    by_name = np.argsort(np.argsort(list(statuses)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _Rows.__slots__
    }
    joined["status"] = by_name[joined["status"]]
    return _Rows(**joined)


def _pieces(raw: Raw, piece_bytes: int) -> Iterator[tuple[Raw, int]]:
    """Yield pieces that end at a line's end, and the number of lines before each."""
    data, low, lines = raw.data, 0, 0
    if not data or data.isspace():
        yield raw, 0  # the table says that it is empty
    while low < len(data):
        high = data.find(b"\n", min(low + piece_bytes, len(data)))
        high = len(data) if high < 0 else high + 1
        piece = data[low:high]
        if not piece.isspace():
            yield Raw(path=raw.path, data=piece, sha256=raw.sha256), lines
        lines += piece.count(b"\n")
        low = high


def _parsed(piece: Raw, header: Sequence[str] | None, lines_before: int) -> Table:
    try:
        table = Table(piece, header=header)
    except DataError as error:
        row = None if error.row is None else error.row + lines_before
        raise DataError(
            error.problem,
            file=error.file,
            row=row,
            column=error.column,
            value=error.value,
            expected=error.expected,
        ) from error
    table.lines = table.lines + lines_before
    return table


def _numbers(table: Table, names: pd.Index, statuses: dict[str, int]) -> _Rows:
    start = table.number("start_time", nullable=True)
    end = table.number("end_time", nullable=True)
    job = table.text("job_name", nullable=False)
    own = job + "/" + table.frame["task_name"] + "/" + table.frame["inst_name"]
    worker = table.text("worker_name").fillna(own)
    status = table.text("status").fillna("").tolist()
    return _Rows(
        job=names.get_indexer(job),
        worker=pd.util.hash_array(worker.to_numpy(dtype=object), categorize=False),
        status=np.array([statuses.setdefault(s, len(statuses)) for s in status], dtype=np.int64),
        start=start.mask(start == 0).to_numpy(dtype=np.float64),
        end=end.mask(end == 0).to_numpy(dtype=np.float64),
        line=table.lines,
    )
