"""A delimited text file read as strings, converted column by column with exact places in errors.

Cells are read as they stand, so nothing is guessed; each conversion runs over a whole column and,
where it fails, names the first bad row by its line in the file. Rows that are set aside are
counted in :attr:`Table.repairs`. Left out: multi-character delimiters, comments.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from traces.errors import DataError, did_you_mean
from traces.formats.raw import Raw
from traces.workload import Repair

MISSING = ("", "NA", "N/A", "NaN", "nan", "None", "null", "NULL")
# Counts and shares beyond this are damage, and products of two of them must fit 64 bits.
_COUNT_LIMIT = 1e9
# 300,000 years: beyond it a float no longer tells milliseconds apart.
_NUMBER_LIMIT = 1e13
_INSTANT = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?)?"
)
_FIELDS = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_OPEN_QUOTE = re.compile(r"EOF inside string starting at row (\d+)")


class Table:
    """The rows of one delimited file.

    ``frame`` holds the cells as strings (position 0, 1, 2, ...); ``lines`` the 1-based line of the
    file on which each row begins. ``header=None`` takes the names from the first line; a sequence
    says that the file has none and what its columns are (rows must have exactly that many cells).
    ``may_lack`` cells may be missing at the end of a row; they are empty then.
    Raises :class:`DataError` for rows of the wrong width, an unclosed quote, no rows at all,
    and for column names that are missing or twice there.
    """

    def __init__(
        self,
        raw: Raw,
        *,
        delimiter: str = ",",
        header: Sequence[str] | None = None,
        may_lack: int = 0,
    ) -> None:
        self.raw = raw
        self.path = raw.path
        self.repairs: list[Repair] = []
        cells = _cells(raw, delimiter, may_lack)
        first = 0
        if header is None:
            names = [str(c).strip() for c in cells.iloc[0]]
            first = 1
        else:
            names = list(header)
            if cells.shape[1] != len(names):
                raise DataError(
                    f"{cells.shape[1]} cells in the first row",
                    file=self.path,
                    row=1,
                    expected=f"{len(names)}: " + ", ".join(names),
                )
        twice = [n for i, n in enumerate(names) if n and n in names[:i]]
        if twice:
            raise DataError("two columns of one name", file=self.path, row=1, column=twice[0])
        cells.columns = pd.Index(names)
        lines = _line_numbers(cells, raw)
        blank = (cells == "").all(axis=1).to_numpy()
        keep = ~blank
        keep[:first] = False
        self.frame = cells.loc[keep].reset_index(drop=True)
        self.lines = lines[keep]
        if not len(self.frame):
            raise DataError("no rows", file=self.path, expected="at least one job")

    @classmethod
    def of(cls, raw: Raw, frame: pd.DataFrame) -> Table:
        """Make a table of typed columns (a Parquet file's); null cells become empty ones.

        ``lines`` then counts rows from 1. Raises :class:`DataError` for a file without rows.
        """
        table = cls.__new__(cls)
        table.raw, table.path, table.repairs = raw, raw.path, []
        frame = frame.reset_index(drop=True)
        frame.columns = pd.Index([str(c) for c in frame.columns])
        if not len(frame):
            raise DataError("no rows", file=raw.path, expected="at least one job")
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise DataError("two columns of one name", file=raw.path, column=str(twice[0]))
        table.frame = pd.DataFrame({c: _as_cells(frame[c]) for c in frame.columns})
        table.lines = np.arange(1, len(frame) + 1, dtype=np.int64)
        return table

    def __len__(self) -> int:
        return len(self.frame)

    def __contains__(self, column: str) -> bool:
        return column in self.frame.columns

    def require(self, *columns: str) -> None:
        """Raise :class:`DataError` unless all these columns are there."""
        for column in columns:
            if column not in self.frame.columns:
                present = [str(c) for c in self.frame.columns if c]
                raise DataError(
                    "column is missing",
                    file=self.path,
                    row=1,
                    column=column,
                    expected=f"columns {', '.join(columns)}; {did_you_mean(column, present)}"
                    if present
                    else f"columns {', '.join(columns)}",
                )

    def refuse(self, bad: Any, column: str, problem: str, expected: str) -> None:
        """Raise :class:`DataError` for the first row where ``bad`` (a boolean array) is true."""
        wrong = np.asarray(bad, dtype=bool)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            value = self.frame[column].iloc[at] if column in self.frame.columns else None
            raise DataError(
                problem,
                file=self.path,
                row=int(self.lines[at]),
                column=column,
                value=value,
                expected=expected,
            )

    def set_aside(self, bad: Any, rule: str) -> None:
        """Take rows out, and say so in :attr:`repairs`: rule, count, first row as the example."""
        wrong = np.asarray(bad, dtype=bool)
        if not wrong.any():
            return
        self.note(wrong, rule)
        self.frame = self.frame.loc[~wrong].reset_index(drop=True)
        self.lines = self.lines[~wrong]
        if not len(self.frame):
            raise DataError(
                f"no job is left once rows are set aside: {self.repairs[-1].rule}", file=self.path
            )

    def drop_missing(self, column: str, rule: str) -> None:
        """Set aside the rows whose cell of this column is missing."""
        self.set_aside(self.text(column).isna(), rule)

    def note(self, changed: Any, rule: str) -> None:
        """Record in :attr:`repairs` that these rows were changed."""
        rows = np.asarray(changed, dtype=bool)
        if rows.any():
            at = int(np.flatnonzero(rows)[0])
            cells = ",".join(str(c) for c in self.frame.iloc[at])
            example = f"row {int(self.lines[at])}: {cells[:120]}"
            self.repairs.append(Repair(rule=rule, rows=int(rows.sum()), example=example))

    def text(self, column: str, *, nullable: bool = True, missing: Sequence[str] = MISSING) -> Any:
        """Return a column as strings, null where the cell is one of ``missing``."""
        self.require(column)
        values = self.frame[column].astype("string").str.strip()
        absent = values.isin(list(missing))
        if not nullable:
            self.refuse(absent, column, "missing value", "a value")
        return values.mask(absent)

    def number(
        self,
        column: str,
        *,
        nullable: bool = False,
        low: float | None = 0.0,
        high: float = _NUMBER_LIMIT,
        missing: Sequence[str] = MISSING,
    ) -> Any:
        """Return a column as float64, NaN where missing; ``low`` and ``high`` are inclusive."""
        values = self.text(column, nullable=nullable, missing=missing)
        numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
        numbers = pd.Series(numbers.to_numpy(dtype=np.float64, na_value=np.nan))
        present = values.notna().to_numpy(dtype=bool)
        finite = np.isfinite(numbers.to_numpy())
        self.refuse(present & ~finite, column, "not a number", "a number")
        if low is not None:
            self.refuse(present & (numbers < low), column, "too small", f"{low:g} or more")
        beyond = numbers.abs() > high
        self.refuse(present & beyond, column, "too large", f"at most {high:g}")
        return numbers

    def integer(
        self,
        column: str,
        *,
        nullable: bool = False,
        low: float | None = 0.0,
        high: float = _COUNT_LIMIT,
        missing: Sequence[str] = MISSING,
    ) -> Any:
        """Return a column as Int64, null where missing; ``4.0`` is 4, ``4.5`` is an error."""
        numbers = self.number(column, nullable=nullable, low=low, high=high, missing=missing)
        self.refuse(
            numbers.notna() & (numbers != np.floor(numbers)),
            column,
            "not a whole number",
            "a whole number",
        )
        return numbers.astype("Int64")

    def choice(
        self,
        column: str,
        meanings: dict[str, str],
        *,
        missing: str | None = None,
        other: str | None = None,
    ) -> Any:
        """Translate a column of labels.

        ``missing`` is what an empty cell means (None: an error); ``other`` is what a label that is
        not among ``meanings`` means, and is counted as a repair (None: an error).
        """
        values = self.text(column, nullable=missing is not None)
        translated = values.map(meanings)
        strange = values.notna() & translated.isna()
        if other is None:
            self.refuse(strange, column, "unknown label", "one of " + ", ".join(meanings))
        else:
            self.note(strange, f"{column} is none of {', '.join(meanings)}: {other}")
            translated = translated.mask(strange, other)
        return (translated if missing is None else translated.fillna(missing)).astype("string")

    def instant(
        self, column: str, *, nullable: bool = False, missing: Sequence[str] = MISSING
    ) -> tuple[Any, str | None]:
        """Return a column of date-times as float seconds of the epoch, and the offset they state.

        ``YYYY-MM-DD[ HH:MM:SS[.f]][+HH:MM]``, with ``T`` or a space. Without an offset a time is
        taken as if it were UTC and the second value is None; rows that disagree are an error.
        """
        values = self.text(column, nullable=nullable, missing=missing)
        present = values.notna().to_numpy(dtype=bool)
        shape = values.str.fullmatch(_INSTANT.pattern).fillna(False).to_numpy(dtype=bool)
        expected = "a date and time such as 2017-10-09 07:01:55"
        self.refuse(present & ~shape, column, "not a date and time", expected)
        offsets = values.str.extract(_INSTANT.pattern, expand=False).fillna("")[present]
        first = str(offsets.iloc[0]) if len(offsets) else ""
        other = np.zeros(len(values), dtype=bool)
        other[present] = (offsets != first).to_numpy(dtype=bool)
        self.refuse(
            other,
            column,
            "another time zone than the rows before",
            f"all times with the offset {first or '(none)'}",
        )
        times = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
        self.refuse(present & times.isna(), column, "not a date and time", expected)
        micros = times.astype("datetime64[us, UTC]").to_numpy(dtype="datetime64[us]")
        seconds = micros.astype(np.int64) / 1e6
        return pd.Series(np.where(present, seconds, np.nan)), first or None

    def unique(self, column: str) -> None:
        """Raise :class:`DataError` where a value of the column comes a second time."""
        values = self.text(column, nullable=False)
        self.refuse(values.duplicated(), column, "the id is there twice", "each id once")


def iso(epoch_s: float, offset: str | None = None) -> str:
    """Return seconds of the epoch as an ISO string, without a zone unless one was stated."""
    stamp = pd.Timestamp(round(epoch_s * 1e6), unit="us", tz="UTC")
    if offset is None:
        return str(stamp.tz_localize(None).isoformat())
    if offset not in ("Z", "UTC"):
        stamp = stamp.tz_convert(pd.Timestamp("2000-01-01T00:00:00" + offset).tz)
    return str(stamp.isoformat())


def _as_cells(values: pd.Series) -> pd.Series:
    """Write typed values as the texts a CSV file would have; floats keep all their digits."""
    null = values.isna()
    if pd.api.types.is_float_dtype(values.dtype):
        cells = values.map(lambda v: repr(float(v)), na_action="ignore")
    else:
        cells = values.map(str, na_action="ignore")
    return cells.astype("string").mask(null).fillna("").astype(str)


def _cells(raw: Raw, delimiter: str, may_lack: int) -> pd.DataFrame:
    whole = raw.text()
    text = whole.strip("\n") + "\n"
    before = len(whole) - len(whole.lstrip("\n"))
    try:
        cells = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=None,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise _parse_error(raw, str(error), before) from error
    cells = cells.fillna("")
    cells.attrs["first_line"] = 1 + before
    _refuse_short_rows(raw, text, delimiter, cells, may_lack)
    return cells


def _parse_error(raw: Raw, message: str, before: int) -> DataError:
    fields = _FIELDS.search(message)
    if fields is not None:
        return DataError(
            f"{fields[3]} cells in the row",
            file=raw.path,
            row=before + int(fields[2]),
            expected=f"{fields[1]}, as in the first row",
        )
    quote = _OPEN_QUOTE.search(message)
    if quote is not None:
        return DataError(
            'a quote (") is opened and never closed',
            file=raw.path,
            row=before + int(quote[1]) + 1,
            expected="quotes in pairs",
        )
    return DataError(f"not a table: {message.strip()}", file=raw.path, expected="CSV")


def _refuse_short_rows(
    raw: Raw, text: str, delimiter: str, cells: pd.DataFrame, may_lack: int
) -> None:
    """Pandas pads short rows; a cut line must not become a job with unknown fields."""
    rows, width = cells.shape
    first = int(cells.attrs["first_line"])
    blank = text.count("\n\n")
    if text.count(delimiter) == (rows - blank) * (width - 1):
        return
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    limit = csv.field_size_limit(max(len(text), 131_072))
    try:
        before = 0
        for row in reader:
            if row and len(row) < width - may_lack:
                raise DataError(
                    f"{len(row)} cells in the row",
                    file=raw.path,
                    row=first + before,
                    expected=f"{width}, as in the first row",
                )
            before = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"not a table: {error}", file=raw.path, row=first + reader.line_num
        ) from error
    finally:
        csv.field_size_limit(limit)


def _line_numbers(cells: pd.DataFrame, raw: Raw) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    lines = np.arange(len(cells), dtype=np.int64)
    if b'"' in raw.data:
        breaks = sum(
            cells.iloc[:, i].str.count("\n").to_numpy(dtype=np.int64) for i in range(cells.shape[1])
        )
        lines += np.concatenate(([0], np.cumsum(breaks)[:-1]))
    return lines + int(cells.attrs["first_line"])
