"""The canonical job table and inventory as CSV or Parquet, column by column as in the schema.

Required: ``submit_s`` and ``num_gpus`` (jobs), ``node``, ``gpu_type`` and ``num_gpus`` (nodes);
other columns may be left out and take their defaults. An empty CSV cell is null. Times are kept as
they stand. A table that ``tandem traces convert`` wrote brings its history along
(:mod:`traces.provenance`). The columns are in :mod:`traces.schema`; ``docs/traces/canonical.md``
shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from traces.cluster import ClusterSpec, Node
from traces.errors import DataError, did_you_mean
from traces.formats.options import Option
from traces.formats.raw import Head, Raw, read_raw
from traces.formats.table import Table
from traces.provenance import recall
from traces.schema import JOB_COLUMNS, JOB_DEFAULTS, NODE_COLUMNS, Column
from traces.workload import Workload

OPTIONS: tuple[Option, ...] = ()
_JOB_NAMES = tuple(c.name for c in JOB_COLUMNS)
_NODE_NAMES = tuple(c.name for c in NODE_COLUMNS)
_PARQUET_ERRORS = (OSError, ValueError, TypeError, OverflowError, pa.ArrowException)
_FITS: dict[str, Callable[[pa.DataType], bool]] = {
    "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    "float": pa.types.is_floating,
    "int": lambda t: pa.types.is_integer(t) and t != pa.uint64(),
    "bool": pa.types.is_boolean,
}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def sniff(head: Head) -> bool:
    """Whether it has the required columns, and all of its columns are canonical."""
    return head.has_columns("submit_s", "num_gpus") and set(head.columns) <= set(_JOB_NAMES)


def read(path: Path, options: Mapping[str, str]) -> Workload:
    """Read a canonical job table."""
    raw = read_raw(path)
    typed = _typed_jobs(raw) if raw.is_parquet else None
    if typed is not None:
        here = raw.source("canonical", options=options)
        return Workload(typed, recall(path, raw.sha256, _metadata(raw), here))
    table = parquet_table(raw) if raw.is_parquet else Table(raw)
    _known(table, _JOB_NAMES)
    table.require("submit_s", "num_gpus")
    jobs = pd.DataFrame({c.name: convert(table, c, c.name) for c in JOB_COLUMNS if c.name in table})
    if "duration_s" not in jobs:
        jobs["duration_s"] = float("nan")
    if "job_id" in jobs:
        table.unique("job_id")
    now = raw.source("canonical", repairs=tuple(table.repairs), options=options)
    metadata = _metadata(raw) if raw.is_parquet else None
    return Workload(jobs, recall(path, raw.sha256, metadata, now))


def sniff_nodes(head: Head) -> bool:
    """Whether it has the inventory's required columns."""
    return head.has_columns("node", "gpu_type", "num_gpus") and set(head.columns) <= set(
        _NODE_NAMES
    )


def read_nodes(path: Path) -> ClusterSpec:
    """Read a canonical inventory; nodes keep the order of the file."""
    raw = read_raw(path)
    table = parquet_table(raw) if raw.is_parquet else Table(raw)
    _known(table, _NODE_NAMES)
    table.require("node", "gpu_type", "num_gpus")
    table.unique("node")
    columns = {c.name: convert(table, c, c.name) for c in NODE_COLUMNS if c.name in table}
    plain = pd.DataFrame(columns).astype(object)
    nodes = []
    for row in plain.where(plain.notna(), None).to_dict("records"):
        values = {str(k): v for k, v in row.items() if k != "node"}
        nodes.append(Node(name=str(row["node"]), **values))
    return ClusterSpec(tuple(nodes))


def convert(table: Table, column: Column, name: str, missing: tuple[str, ...] = ("",)) -> pd.Series:
    """Convert the file's column ``name`` as the canonical ``column`` is typed.

    Raises :class:`DataError` with row, column and value for a cell that does not fit.
    """
    nullable = column.nullable or column.name in JOB_DEFAULTS
    if column.dtype == "string":
        values = table.text(name, nullable=nullable, missing=missing)
    elif column.dtype == "float":
        low = None if column.name in ("submit_s", "start_s") else 0.0
        values = table.number(name, nullable=nullable, low=low, missing=missing)
    elif column.dtype == "int":
        low, high = (1.0, 1000.0) if column.name == "gpu_milli" else (0.0, 1e12)
        values = table.integer(name, nullable=nullable, low=low, high=high, missing=missing)
    else:
        values = _booleans(table, name, missing)
    default = JOB_DEFAULTS.get(column.name)
    return values if default is None else values.fillna(default)


def parquet_table(raw: Raw) -> Table:
    """Read a Parquet file as a table of cells; row 1 of an error is its first row."""
    try:
        frame = pq.read_table(pa.BufferReader(raw.data)).to_pandas()
    except _PARQUET_ERRORS as error:
        raise DataError(f"damaged Parquet file: {error}", file=raw.path) from error
    return Table.of(raw, frame)


def _metadata(raw: Raw) -> Mapping[bytes, bytes]:
    return pq.read_schema(pa.BufferReader(raw.data)).metadata or {}


def _typed_jobs(raw: Raw) -> pd.DataFrame | None:
    """Read a Parquet job table whose columns have the canonical types already, as ours have.

    None where some column has another name or type: it is then read cell by cell, which takes
    ten times as long and names the row of what does not fit.
    """
    try:
        table = pq.read_table(pa.BufferReader(raw.data))
    except _PARQUET_ERRORS as error:
        raise DataError(f"damaged Parquet file: {error}", file=raw.path) from error
    wanted = {c.name: c for c in JOB_COLUMNS}
    names = table.column_names
    if len(set(names)) < len(names) or not {"submit_s", "num_gpus"} <= set(names):
        return None
    for field in table.schema:
        column = wanted.get(field.name)
        if column is None or not _FITS[column.dtype](field.type):
            return None
    if not table.num_rows:
        raise DataError("no rows", file=raw.path, expected="at least one job")
    try:
        return table.to_pandas(types_mapper=_pandas_type, ignore_metadata=True)
    except _PARQUET_ERRORS as error:
        raise DataError(f"damaged Parquet file: {error}", file=raw.path) from error


def _pandas_type(kind: pa.DataType) -> Any:
    """Keep nulls of integers and truth values as nulls: by default they turn into floats."""
    if pa.types.is_integer(kind):
        return pd.Int64Dtype()
    return pd.BooleanDtype() if pa.types.is_boolean(kind) else None


def _known(table: Table, names: tuple[str, ...]) -> None:
    for column in table.frame.columns:
        if column not in names:
            raise DataError(
                "not a canonical column",
                file=table.path,
                row=1,
                column=str(column),
                expected=did_you_mean(str(column), names),
            )


def _booleans(table: Table, name: str, missing: tuple[str, ...]) -> pd.Series:
    text = table.text(name, missing=missing).str.lower()
    true, false = text.isin(_TRUE), text.isin(_FALSE)
    table.refuse(text.notna() & ~true & ~false, name, "not a truth value", "true or false")
    return true.astype("boolean").mask(text.isna())
