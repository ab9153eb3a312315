"""Write a workload as a canonical table, CSV or Parquet, that loads as the same workload.

Reading the file back gives the same :meth:`Workload.digest`: numbers are written so that they come
back bit for bit, and the order is the total order. What the loader repaired travels along
(:mod:`traces.provenance`). Columns that hold nothing but null or their default are left out, which
changes nothing in what is read back.

Left out: Arrow or JSON output; partitioned Parquet.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from traces.cluster import ClusterSpec
from traces.errors import DataError, UsageError
from traces.loading import load
from traces.provenance import PARQUET_KEY, record_path, to_json
from traces.scale import scale_to_load
from traces.schema import JOB_COLUMNS, JOB_DEFAULTS
from traces.workload import Source, Workload

ENDINGS = (".parquet", ".csv", ".csv.gz")


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str = "auto",  # noqa: A002  (as in traces.load)
    options: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    load_factor: float | None = None,
    cluster: ClusterSpec | None = None,
    force: bool = False,
) -> Workload:
    """Load a trace in any format and :func:`write` it canonically; returns the workload.

    ``load_factor`` with ``cluster`` stretches time on the way, until the jobs offer that fraction
    of its GPUs (:func:`traces.scale.scale_to_load`). Raises what :func:`traces.load`,
    :func:`write` and ``scale_to_load`` raise.
    """
    check_target(Path(target), force=force)
    if (load_factor is None) != (cluster is None):
        raise UsageError("a load and a cluster belong together: 0.9 of 64x8:v100")
    workload = load(source, format, options=options, columns=columns)
    if load_factor is not None and cluster is not None:
        workload = scale_to_load(workload, load_factor, cluster)
    write(workload, target, force=force)
    return workload


def write(
    workload: Workload, target: str | os.PathLike[str], *, force: bool = False
) -> tuple[Path, ...]:
    """Write ``workload`` to ``target`` (.parquet, .csv or .csv.gz); returns the files written.

    A CSV has its record beside it. Everything is written under a temporary name and renamed.
    Raises :class:`UsageError` for another ending or, without ``force``, a file that is there, and
    :class:`DataError` for text that would not come back.
    """
    target = Path(target)
    ending = check_target(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    _refuse_lost_text(workload, target)
    past = _with_history(workload.source)
    if ending == ".parquet":
        return (_put(target, _parquet(workload, past)),)
    data = _csv(workload)
    bytes_ = gzip.compress(data, mtime=0) if ending == ".csv.gz" else data
    record = to_json(past, table_sha256=hashlib.sha256(data).hexdigest()).encode()
    # The record first: a table without its record would load with its history forgotten, a record
    # without its table is not believed.
    beside = _put(record_path(target), record)
    return (_put(target, bytes_), beside)


def check_target(target: str | os.PathLike[str], *, force: bool = False) -> str:
    """Return the ending of a target that may be written.

    Raises :class:`UsageError` for a directory, another ending or, without ``force``, a file that is
    there. Commands ask before they work.
    """
    target = Path(target)
    if target.is_dir():
        raise UsageError(f"{target}: is a directory; name a file ending in {', '.join(ENDINGS)}")
    if target.exists() and not force:
        raise UsageError(f"{target}: exists already; --force replaces it")
    name = target.name.lower()
    for ending in ENDINGS:
        if name.endswith(ending) and name != ending:
            return ending
    raise UsageError(f"{target}: cannot tell the format; end it in one of {', '.join(ENDINGS)}")


def _with_history(source: Source) -> Source:
    if source.format == "canonical" or not source.path:
        return source
    note = f"converted from {Path(source.path).name} ({source.format}, sha256 {source.sha256[:12]})"
    return dataclasses.replace(source, notes=(*source.notes, note))


def _kept(workload: Workload) -> pd.DataFrame:
    """The columns that say something; the required ones always."""
    names = []
    for column in JOB_COLUMNS:
        values = workload.table[column.name]
        if column.name in JOB_DEFAULTS:
            silent = bool((values == JOB_DEFAULTS[column.name]).all())
        else:
            silent = column.nullable and bool(values.isna().all())
        if not silent or column.name == "duration_s":
            names.append(column.name)
    return workload.table[names]


def _refuse_lost_text(workload: Workload, target: Path) -> None:
    """Canonical cells are read without the spaces around them, and an empty one is null."""
    for column in JOB_COLUMNS:
        if column.dtype != "string":
            continue
        text = workload.table[column.name]
        lost = (text != text.str.strip()) | (text == "") | text.str.contains("\r", regex=False)
        lost = lost.fillna(False)
        if lost.any():
            raise DataError(
                "text that would not come back: it is empty or has spaces around it",
                file=target,
                column=column.name,
                value=text[lost].iloc[0],
                expected="null, or text that begins and ends with a visible character",
            )


def _csv(workload: Workload) -> bytes:
    buffer = io.StringIO()
    _kept(workload).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue().encode()


def _parquet(workload: Workload, source: Source) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  (CSV does not need it)
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.Table.from_pandas(_kept(workload), preserve_index=False)
    metadata = {PARQUET_KEY: to_json(source).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _put(target: Path, data: bytes) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
