"""The saved state of a table set: one file, ids ascending, so equal tables make equal files.

Saved is all that training changes (ids, counts, last steps, weights, optimizer state, the last step
applied) with the settings its meaning depends on (dim, seed, scale, optimizer, admission,
eviction). Where rows lie is not saved: a state may be loaded into other tiers or on another device
and goes on with the same bits. Leaves out: differences between two states, and files in parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models.errors import ModelError
from models.sparse.arrayfile import read_arrays, replacing, write_arrays
from models.sparse.table import TableState
from models.sparse.tableset import TableSet

KIND = b"TANDEMTB"
SCHEMA = 1
_COLUMNS = ("ids", "count", "last_step", "admitted", "records")


def save_tables(tables: TableSet, path: str | Path) -> None:
    """Write the state to ``path``: the old file or the whole new one, never a part.

    Raises ModelError if look-ups are waiting for ``apply`` (save between steps), or if the file
    cannot be written.
    """
    if tables.pending:
        raise ModelError(
            "look-ups are waiting for a step", where=path, expected="save after apply or discard"
        )
    arrays: dict[str, Tensor] = {}
    for name, table in sorted(tables.tables.items()):
        state = table.state()
        arrays |= {f"{name}/{column}": getattr(state, column) for column in _COLUMNS}
    meta = {
        "step": tables.step,
        "tables": {name: table.config() for name, table in tables.tables.items()},
    }
    with replacing(Path(path)) as file:
        write_arrays(file, KIND, SCHEMA, meta, arrays)


def load_tables(tables: TableSet, path: str | Path) -> None:
    """Make ``tables`` the ones that were saved; look-ups that were waiting are forgotten.

    Raises ModelError, with ``tables`` as they were, if the file is cut short, damaged or of another
    schema, or if its tables have other names or settings.
    """
    path = Path(path)
    meta, arrays = read_arrays(path, KIND, SCHEMA)
    _check_settings(tables, meta["tables"], path)
    states = {
        name: TableState(**{column: arrays[f"{name}/{column}"] for column in _COLUMNS})
        for name in tables.tables
    }
    for name, state in states.items():
        tables.tables[name].check(state)
    for name, state in states.items():
        tables.tables[name].restore(state)
    tables.step = int(meta["step"])
    tables.discard()


def _check_settings(tables: TableSet, saved: dict[str, dict[str, Any]], path: Path) -> None:
    if sorted(saved) != sorted(tables.tables):
        raise ModelError(
            "other tables",
            where=path,
            value=", ".join(sorted(saved)),
            expected=", ".join(sorted(tables.tables)),
        )
    for name, table in sorted(tables.tables.items()):
        for setting, value in table.config().items():
            if saved[name].get(setting) != value:
                raise ModelError(
                    f"saved with another {setting}",
                    where=f"{path}, table {name!r}",
                    value=saved[name].get(setting),
                    expected=repr(value),
                )
