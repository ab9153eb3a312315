"""What travels with a canonical file: where its jobs came from and what was repaired on the way.

A canonical table has columns only. So its :class:`~traces.workload.Source` goes into the Parquet
file's metadata, and for CSV into ``<file>.source.json`` beside it, with the SHA-256 of the table's
bytes: a table that was edited since is told apart, and its old record is no longer believed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.errors import DataError
from traces.workload import Repair, Source

PARQUET_KEY = b"tandem.source"


def record_path(table: Path) -> Path:
    """Return the path of the record beside a CSV table."""
    return table.with_name(table.name + ".source.json")


def to_json(source: Source, *, table_sha256: str = "") -> str:
    """Write a source as JSON text; ``table_sha256`` binds it to the bytes of a table."""
    record = {"tandem_source": 1, "table_sha256": table_sha256, **dataclasses.asdict(source)}
    return json.dumps(record, indent=1, default=str) + "\n"


def from_json(text: str | bytes, *, file: Path) -> tuple[Source, str]:
    """Read what :func:`to_json` wrote: the source and ``table_sha256``.

    Raises :class:`DataError` for anything else.
    """
    try:
        record = json.loads(text)
        if record["tandem_source"] != 1:
            raise DataError(
                "a record of another version",
                file=file,
                value=record["tandem_source"],
                expected="1",
            )
        return _source(record), str(record["table_sha256"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"not a record of a table's source: {error!r}",
            file=file,
            expected="what 'tandem traces convert' wrote, or no such file",
        ) from error


def recall(table: Path, sha256: str, metadata: Mapping[bytes, bytes] | None, now: Source) -> Source:
    """Return ``now``, the source of a table just read, with what its record says of its past.

    ``metadata`` is the Parquet file's (None for CSV, whose record is looked for beside it). Repairs
    and notes of the past come first; origin, zone and options are the past's.
    """
    if metadata is not None:
        if PARQUET_KEY not in metadata:
            return now
        past, _ = from_json(metadata[PARQUET_KEY], file=table)
    else:
        beside = record_path(table)
        if not beside.is_file():
            return now
        try:
            past, bound_to = from_json(beside.read_bytes(), file=beside)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", file=beside) from error
        if bound_to != sha256:
            note = f"the record {beside.name} is of another version of this table: not used"
            return dataclasses.replace(now, notes=(*now.notes, note))
    return dataclasses.replace(
        now,
        origin=past.origin,
        zone=past.zone,
        repairs=(*past.repairs, *now.repairs),
        notes=(*past.notes, *now.notes),
        options={**past.options, **now.options},
    )


def _source(record: Mapping[str, Any]) -> Source:
    def text(name: str) -> str | None:
        return None if record[name] is None else str(record[name])

    return Source(
        path=str(record["path"]),
        format=str(record["format"]),
        sha256=str(record["sha256"]),
        origin=text("origin"),
        zone=text("zone"),
        repairs=tuple(
            Repair(rule=str(r["rule"]), rows=int(r["rows"]), example=str(r["example"]))
            for r in record["repairs"]
        ),
        notes=tuple(str(n) for n in record["notes"]),
        options={str(k): v for k, v in record["options"].items()},
    )
