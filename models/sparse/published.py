"""Versions for serving: dense state and tables of one step, handed over whole or not at all.

A version is a folder ``v000001``, ``v000002``, ... with the dense tensors, one file of weights per
table (no optimizer state, no ids that have no row yet), and ``manifest.json``, which lists each
file's size and SHA-256 and says what was published (``about``). It is made under a temporary name,
flushed to the disk, and renamed: a folder named like a version is complete, and a publish that
fails leaves the versions that were.
Whoever holds an open version keeps it; files of a version never change. Old versions go by
``retire``, the name first, so that what has a name is whole until the end. The paper keeps training
and serving on one state (LONGER, section 3, "no parameter server"); how versions are handed over is
not disclosed. Leaves out: differences between versions, and folders under a temporary name that a
killed publisher left (``.making-...``; nobody reads them, and they may be removed).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.errors import ModelError
from models.sparse.arrayfile import flush_folder, read_arrays, write_arrays
from models.sparse.initial import base_of, initial_rows
from models.sparse.tableset import TableSet

SCHEMA = 1
DENSE_KIND = b"TANDEMDN"
TABLE_KIND = b"TANDEMSV"
MANIFEST = "manifest.json"
_VERSION = re.compile(r"^v(\d{6,})$")


def versions(folder: str | Path) -> list[int]:
    """Return the complete versions in a folder, oldest first; none if the folder is not there.

    Raises ModelError if the disk refuses.
    """
    try:
        found = [_VERSION.match(p.name) for p in Path(folder).glob("v*") if p.is_dir()]
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=folder) from error
    return sorted(int(match[1]) for match in found if match)


def path_of(folder: str | Path, version: int) -> Path:
    """Return the folder of a version."""
    return Path(folder) / f"v{version:06d}"


def retire(folder: str | Path, *, keep: int) -> list[int]:
    """Remove all but the newest ``keep`` (1 or more) versions, and return which are gone.

    Who has one of them open goes on with it; who is opening one is told that it cannot be read.
    Raises ModelError if the disk refuses; versions that are still named are then whole.
    """
    if keep < 1:
        raise ModelError("no version would stay", where="keep", value=keep, expected="1 or more")
    gone = []
    try:
        for version in versions(folder)[:-keep]:
            hidden = Path(folder) / f".gone-{secrets.token_hex(6)}"
            try:
                path_of(folder, version).rename(hidden)
            except FileNotFoundError:
                continue  # another one retired it
            shutil.rmtree(hidden)
            gone.append(version)
    except OSError as error:
        raise ModelError(f"cannot be removed: {error.strerror}", where=folder) from error
    return gone


def publish(
    folder: str | Path, dense: Mapping[str, Tensor], tables: TableSet, *, about: Any = None
) -> int:
    """Write the next version of ``folder`` (made if need be) and return its number.

    ``dense``: tensors by name, as of ``Module.state_dict()``, of the same step as ``tables``.
    ``about``: JSON values that say what network it is.

    Raises ModelError, with the versions as they were, if look-ups are waiting for a step, if a
    dense value is not a tensor, or if the disk refuses (if only the last flush of the folder's name
    fails, the version is there, and whole, but may not outlast a power cut).
    """
    folder = Path(folder)
    if tables.pending:
        raise ModelError(
            "look-ups are waiting for a step", where=folder, expected="publish after apply"
        )
    for name, value in dense.items():
        if not isinstance(value, Tensor):
            raise ModelError("not a tensor", where=f"dense {name!r}", value=type(value).__name__)
    making = folder / f".making-{secrets.token_hex(6)}"
    try:
        making.mkdir(parents=True)
        try:
            files = _write(making, dense, tables)
            return _name(folder, making, tables.step, files, about)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot publish: {error.strerror}", where=folder) from error


def _write(making: Path, dense: Mapping[str, Tensor], tables: TableSet) -> dict[str, Any]:
    files = {"dense.bin": _put(making / "dense.bin", DENSE_KIND, None, dict(dense))}
    for number, (name, table) in enumerate(sorted(tables.tables.items())):
        state = table.state()
        arrays = {
            "ids": state.ids[state.admitted],
            "weights": state.records[:, : table.dim].contiguous(),
        }
        config = table.config()
        meta = {"table": name} | {key: config[key] for key in ("dim", "seed", "scale")}
        # Table names are free; file names are numbers.
        file = f"table-{number}.bin"
        files[file] = _put(making / file, TABLE_KIND, meta, arrays)
    return files


def _put(path: Path, kind: bytes, meta: Any, arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    with path.open("xb") as file:
        write_arrays(file, kind, SCHEMA, meta, arrays)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(folder: Path, making: Path, step: int, files: dict[str, Any], about: Any) -> int:
    """Give the folder the next free number; another publisher may take one at the same time."""
    version = max(versions(folder), default=0)
    while True:
        version += 1
        manifest = {"schema": SCHEMA, "version": version, "step": step, "files": files}
        manifest["about"] = about
        manifest["check"] = _check_of(manifest)
        with (making / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(_canonical(manifest))
            file.flush()
            os.fsync(file.fileno())
        flush_folder(making)
        target = path_of(folder, version)
        try:
            making.rename(target)
        except OSError:
            if target.exists():
                continue
            raise
        flush_folder(folder)
        return version


def _canonical(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True, indent=1) + "\n"


def _check_of(manifest: dict[str, Any]) -> str:
    """The SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "check"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


class ServingTables:
    """Look-ups in a published version; a ``models.batch.Lookup`` that never changes.

    Gives the bits that the training tables gave at the step of the version, also for ids that had
    no row: their initial value is a function of the id.
    """

    def __init__(self, tables: Mapping[str, tuple[dict[str, Any], Tensor, Tensor]]) -> None:
        self._tables = dict(tables)

    def to(self, device: torch.device | str) -> ServingTables:
        """Return the same tables on another device; ids are then given there."""
        moved = {n: (m, i.to(device), w.to(device)) for n, (m, i, w) in self._tables.items()}
        return ServingTables(moved)

    @property
    def dims(self) -> dict[str, int]:
        """Width of each table's rows."""
        return {name: meta["dim"] for name, (meta, _, _) in self._tables.items()}

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each table; other ids have their initial value."""
        return {name: len(ids) for name, (_, ids, _) in self._tables.items()}

    def __call__(self, table: str, ids: Tensor) -> Tensor:
        """Return (..., dim) float32 for ``ids`` (...,) int64; errors as of ``TableSet``."""
        if table not in self._tables:
            raise ModelError("unknown table", value=table, expected=", ".join(sorted(self._tables)))
        if ids.dtype != torch.int64:
            raise ModelError(
                "ids of another type", where=f"table {table!r}", value=ids.dtype, expected="int64"
            )
        meta, known, weights = self._tables[table]
        flat = ids.reshape(-1)
        if len(known):
            place = torch.searchsorted(known, flat).clamp(max=len(known) - 1)
            rows = weights[place]
            without = (known[place] != flat).nonzero()[:, 0]
        else:
            rows = weights.new_empty((len(flat), meta["dim"]))
            without = torch.arange(len(flat), device=flat.device)
        # Most ids have a row, and hashing one is dear beside reading it.
        if len(without):
            rows[without] = initial_rows(meta["base"], flat[without], meta["dim"], meta["scale"])
        return rows.reshape(*ids.shape, meta["dim"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One version, checked and in memory: dense tensors by name, and tables to look up in.

    ``about`` is what its publisher said of it, None if nothing.
    """

    version: int
    step: int
    about: Any
    dense: dict[str, Tensor]
    tables: ServingTables

    @staticmethod
    def open(folder: str | Path, version: int | Literal["latest"] = "latest") -> Published:
        """Open a version and check every byte of it.

        Raises ModelError if it is unknown, cut short, damaged or of another schema; a server then
        keeps the version it has.
        """
        folder = Path(folder)
        known = versions(folder)
        if not known or (version != "latest" and version not in known):
            raise ModelError(
                "unknown version",
                where=folder,
                value=version,
                expected=f"one of {known}" if known else "a folder with published versions",
            )
        number = known[-1] if version == "latest" else version
        place = path_of(folder, number)
        manifest = _read_manifest(place / MANIFEST, number)
        dense: dict[str, Tensor] = {}
        tables = {}
        for name, wanted in manifest["files"].items():
            _check_file(place / name, wanted)
            if name == "dense.bin":
                _, dense = read_arrays(place / name, DENSE_KIND, SCHEMA)
            else:
                meta, arrays = read_arrays(place / name, TABLE_KIND, SCHEMA)
                meta["base"] = base_of(meta["seed"], meta["table"])
                tables[meta["table"]] = (meta, arrays["ids"], arrays["weights"])
        return Published(
            version=number,
            step=manifest["step"],
            about=manifest.get("about"),
            dense=dense,
            tables=ServingTables(tables),
        )


def _read_manifest(path: Path, version: int) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        if manifest["schema"] != SCHEMA:
            raise ModelError(
                "another schema version", where=path, value=manifest["schema"], expected=str(SCHEMA)
            )
        whole = manifest["version"] == version and _canonical(manifest) == text
        whole = whole and manifest["check"] == _check_of(manifest)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path) from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError("damaged manifest", where=path) from error
    if not whole:
        raise ModelError("damaged manifest", where=path, expected="the file as it was written")
    return manifest


def _check_file(path: Path, wanted: dict[str, Any]) -> None:
    try:
        found = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path) from error
    if found != wanted:
        raise ModelError(
            "cut short or damaged", where=path, value=found["bytes"], expected="the file listed"
        )
