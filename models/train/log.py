"""The tables that a run leaves: CSV, a row per step or per evaluation, cut back on resuming.

Rows are held until ``flush``; a checkpoint is written after it, so every checkpoint has its rows. A
run that goes on from an earlier step drops the rows after it and writes them anew. Numbers are
written so that reading gives the same bits; an empty cell is a number that is not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.errors import ModelError
from models.sparse.arrayfile import replacing

Cell = int | float | None


class Log:
    """One table with columns ``columns``, the first of which is ``step``, rising.

    ``after``: None begins a new file; a step keeps the rows up to it, from a file that may be
    there. Raises ModelError if that file is another table or cannot be read.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, after: int | None = None) -> None:
        self.path = path
        self.columns = tuple(columns)
        self._waiting: list[str] = []
        kept = self._read(after) if after is not None and path.exists() else []
        self.last_step = int(kept[-1][0]) if kept else None
        with replacing(path) as file:
            file.write(_line(self.columns).encode() + "".join(map(_line, kept)).encode())

    def _read(self, after: int) -> list[list[str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
                kept = [row for row in rows if int(row[0]) <= after]
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=self.path) from error
        except (ValueError, IndexError, csv.Error) as error:
            raise ModelError("damaged table", where=self.path) from error
        if tuple(header) != self.columns:
            raise ModelError(
                "another table",
                where=self.path,
                value=",".join(header),
                expected=",".join(self.columns),
            )
        return kept

    def add(self, row: Mapping[str, Cell]) -> None:
        """Add a row; a cell that is missing or None stays empty."""
        cells = [row.get(column) for column in self.columns]
        self._waiting.append(_line(["" if cell is None else repr(cell) for cell in cells]))
        self.last_step = int(row["step"] or 0)

    def flush(self) -> None:
        """Write the rows that are waiting. Raises ModelError if the disk refuses."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            raise ModelError(f"cannot be written: {error.strerror}", where=self.path) from error
        self._waiting.clear()


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
