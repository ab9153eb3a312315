"""Publishers' CSV files, read whole and strictly: what does not parse is an error, never a gap.

pyarrow reads them column by column (files of gigabytes); ``.gz`` is unpacked on the way. Rows are
counted from 1 and the header counts. Leaves out: any guessing of types, delimiters or encodings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from models.errors import ModelError

Kind = Literal["int", "float", "text"]


@dataclass(frozen=True, slots=True)
class Text:
    """A column of words: ``values[codes[i]]`` is the word in row i."""

    codes: NDArray[np.int64]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The wanted columns of one file; ``first_row`` is the file's row of index 0."""

    path: Path
    first_row: int
    numbers: Mapping[str, NDArray[Any]]
    texts: Mapping[str, Text]

    def ints(self, name: str) -> NDArray[np.int64]:
        """Return a column of integers."""
        return self.numbers[name]

    def refuse(self, bad: NDArray[np.bool_], name: str, problem: str, expected: str) -> None:
        """Raise :class:`ModelError` for the first row where ``bad`` holds, if there is one."""
        if not bad.any():
            return
        index = int(np.argmax(bad))
        if name in self.texts:
            text = self.texts[name]
            value: object = text.values[int(text.codes[index])]
        else:
            value = self.numbers[name][index].item()
        where = f"{self.path}, row {self.first_row + index}, column {name!r}"
        raise ModelError(problem, where=where, value=value, expected=expected)

    def ids(self, name: str) -> NDArray[np.int64]:
        """Return a column of ids: integers, 0 or more."""
        column = self.ints(name)
        self.refuse(column < 0, name, "an id cannot be negative", "0 to 2^63-1")
        return column

    def match(
        self, key: str, values: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Return the value of each wanted id (0: not in this file), and how many were not.

        Raises :class:`ModelError` if an id stands in two rows.
        """
        ids = self.ids(key)
        order = np.argsort(ids, kind="stable")
        known = ids[order]
        twice = np.zeros(len(ids), dtype=bool)
        twice[order[1:]] = known[1:] == known[:-1]
        self.refuse(twice, key, "described twice", "each id once")
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found = known[place] == wanted
        return np.where(found, values[order][place], 0), int((~found).sum())


def read_csv(
    path: str | Path, kinds: Mapping[str, Kind], *, header: Sequence[str] | None = None
) -> Table:
    """Return the columns named in ``kinds``; a file without a header has the names of ``header``.

    Raises :class:`ModelError` for a file that cannot be read, has no rows, lacks a column, or has
    a value that is not of its column's kind.
    """
    path = Path(path)
    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "text": pa.dictionary(pa.int32(), pa.utf8()),
    }
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            table = pa_csv.read_csv(
                stream,
                # One thread: only then does an error name its row.
                read_options=pa_csv.ReadOptions(
                    use_threads=False, column_names=None if header is None else list(header)
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: types[kind] for name, kind in kinds.items()},
                    include_columns=list(kinds),
                    null_values=[],
                    strings_can_be_null=False,
                    quoted_strings_can_be_null=False,
                ),
            )
    except pa.ArrowKeyError as error:
        raise ModelError(
            f"a column is missing: {error}", where=path, expected=", ".join(kinds)
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read: {error}", where=path) from error
    if table.num_rows == 0:
        raise ModelError("has no rows", where=path)
    return _columns(path, table, kinds, first_row=1 if header is not None else 2)


def _columns(path: Path, table: Any, kinds: Mapping[str, Kind], first_row: int) -> Table:
    """Turn pyarrow's columns into NumPy's."""
    numbers: dict[str, NDArray[Any]] = {}
    texts: dict[str, Text] = {}
    table = table.unify_dictionaries().combine_chunks()
    for name, kind in kinds.items():
        column = table.column(name).combine_chunks()
        if kind == "text":
            chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            codes = np.asarray(chunk.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
            texts[name] = Text(codes, tuple(chunk.dictionary.to_pylist()))
        else:
            numbers[name] = column.to_numpy(zero_copy_only=False)
    found = Table(path, first_row, numbers, texts)
    for name, kind in kinds.items():
        if kind == "float":
            found.refuse(~np.isfinite(numbers[name]), name, "not a number", "a finite number")
    return found
