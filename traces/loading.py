"""Read any trace or inventory: recognise its format, or take the one that is named.

Everything a loader changes or sets aside stands in the workload's ``source``; nothing is dropped
silently. The formats are registered in :mod:`traces.formats`, one page each in ``docs/traces``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from traces.cluster import ClusterSpec
from traces.errors import DataError, UsageError
from traces.formats import FORMATS, Head, find_format, recognise, recognise_nodes
from traces.formats.options import resolve
from traces.formats.raw import read_head
from traces.workload import Workload

_INVENTORY_ENDINGS = (".csv", ".parquet", ".gz", ".bz2", ".xz", ".json", ".txt")


def load(
    path: str | os.PathLike[str],
    format: str = "auto",  # noqa: A002  (the word every user expects here)
    options: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Workload:
    """Read a trace.

    ``format`` is a name of :data:`traces.formats.FORMATS`, or ``auto`` to recognise it.
    ``options`` are the format's own (texts; unknown ones are refused). ``columns`` maps canonical
    columns to columns of the file and implies the format ``table``:

    >>> load("jobs.csv", columns={"submit_s": "when", "num_gpus": "gpus"})  # doctest: +SKIP

    Raises :class:`DataError` for a file that cannot be read, with file, row, column and value,
    and :class:`UsageError` for a format, option or column map that does not exist.
    """
    path = Path(path)
    if columns and format not in ("auto", "table"):
        raise UsageError(f"a column map is for the format 'table', not for {format!r}")
    if columns or format == "table":
        return _load_table(path, dict(options or {}), dict(columns or {}))
    if format != "auto":
        chosen = find_format(format)
    else:
        head = read_head(path)
        found = recognise(head)
        if found is None:
            raise _unrecognised(head)
        chosen = found
    module = chosen.load()
    resolved = resolve(module.OPTIONS, options or {}, chosen.name)
    return module.read(path, resolved)


def load_cluster(text_or_path: str | os.PathLike[str]) -> ClusterSpec:
    """Read an inventory: ``64x8:v100`` and the like (:meth:`ClusterSpec.parse`), or a file.

    A file is a canonical inventory (CSV or Parquet), a publisher's node table, or a run directory
    (the inventory it had). Raises :class:`UsageError` for a text that is neither and
    :class:`DataError` for a file that cannot be read.
    """
    path = Path(text_or_path)
    text = str(text_or_path)
    is_file = _exists(path)
    looks_like_file = (
        not isinstance(text_or_path, str)
        or os.sep in text
        or text.lower().endswith(_INVENTORY_ENDINGS)
    )
    if not text or (not is_file and not looks_like_file):
        return ClusterSpec.parse(text)
    if not is_file:
        raise DataError(
            "no such file", file=path, expected="an inventory, or a text such as 64x8:v100"
        )
    head = read_head(path)
    if head.is_dir and "run.json" in head.names:
        from traces.runlog import RunLog  # noqa: PLC0415  (brings in pyarrow)

        return RunLog.open(path).spec
    found = recognise_nodes(head)
    if found is None:
        known = [f.title for f in FORMATS.values() if f.nodes]
        raise DataError(
            "not an inventory of a known format",
            file=path,
            value=", ".join(head.columns) or None,
            expected="a table with node, gpu_type and num_gpus, or of " + "; ".join(known),
        )
    return found.load().read_nodes(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # an inventory's text can be too long for a file name
        return False


def _load_table(path: Path, options: Mapping[str, str], columns: Mapping[str, str]) -> Workload:
    from traces.formats import column_map  # noqa: PLC0415  (formats are imported when needed)

    return column_map.read(path, resolve(column_map.OPTIONS, options, "table"), columns)


def _unrecognised(head: Head) -> DataError:
    from traces.formats.column_map import HOW  # noqa: PLC0415  (formats are imported when needed)

    seen = ", ".join(head.names if head.is_dir else head.columns)
    return DataError(
        "no known format",
        file=head.path,
        value=seen or None,
        expected=f"one of {', '.join(FORMATS)} (--format NAME), or a column map: {HOW}",
    )
