"""The bytes of a trace file: decompressed, hashed, decoded, with clear errors for what is not text.

gzip, bzip2 and xz are told by their first bytes, whatever the file is called. The hash is of the
decompressed bytes, so a recompressed copy of a trace is the same trace. Whole files are held in
memory: the largest public job table is a few hundred megabytes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from traces.errors import DataError
from traces.workload import Repair, Source

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", ".gz", "gzip"),
    (b"BZh", ".bz2", "bzip2"),
    (b"\xfd7zXZ\x00", ".xz", "xz"),
)
_PARQUET = b"PAR1"
_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A file's decompressed bytes and their SHA-256."""

    path: Path
    data: bytes
    sha256: str

    def text(self) -> str:
        """Decode as UTF-8 (a byte-order mark is dropped), every line ended by a single newline.

        Raises :class:`DataError`, with the line, for bytes that are not text.
        """
        if not self.data.strip():
            raise DataError("the file is empty", file=self.path, expected="a trace")
        zero = self.data.find(b"\x00")
        if zero >= 0:
            raise DataError(
                "not a text file: it has a zero byte",
                file=self.path,
                row=self.data.count(b"\n", 0, zero) + 1,
                expected="CSV, JSON or Parquet, bare or as .gz, .bz2 or .xz",
            )
        try:
            text = self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                "not UTF-8 text",
                file=self.path,
                row=self.data.count(b"\n", 0, error.start) + 1,
                value=self.data[error.start : error.start + 1],
                expected="a file encoded in UTF-8",
            ) from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @property
    def is_parquet(self) -> bool:
        """Whether it begins as a Parquet file does."""
        return self.data.startswith(_PARQUET)

    def source(
        self,
        format_name: str,
        *,
        origin: str | None = None,
        zone: str | None = None,
        repairs: tuple[Repair, ...] = (),
        notes: tuple[str, ...] = (),
        options: Mapping[str, str] | None = None,
    ) -> Source:
        """Return the record of where a workload came from."""
        return Source(
            path=str(self.path),
            format=format_name,
            sha256=self.sha256,
            origin=origin,
            zone=zone,
            repairs=repairs,
            notes=notes,
            options=dict(options or {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a format may look at to recognise its files: the name and the first bytes.

    ``name`` is the file name in lower case without a compression suffix; ``lines`` are the first
    lines as text (undecodable bytes replaced, the last, possibly cut one left out);
    ``columns`` are the column names of a Parquet file, else the comma-separated cells of the first
    line. For a directory ``names`` lists its files in lower case and the rest is empty.
    """

    path: Path
    name: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    is_parquet: bool = False
    is_dir: bool = False
    names: tuple[str, ...] = ()

    def has_columns(self, *names: str) -> bool:
        """Whether all these columns are there."""
        return set(names) <= set(self.columns)


def read_raw(path: Path) -> Raw:
    """Read a whole file; raises :class:`DataError` if it is missing, a directory or broken."""
    data = _bytes(path, None)
    return Raw(path=path, data=data, sha256=hashlib.sha256(data).hexdigest())


def read_head(path: Path) -> Head:
    """Read what is needed to recognise a file; raises as :func:`read_raw` does."""
    try:
        if path.is_dir():
            names = sorted(p.name.lower() for p in path.iterdir() if not p.name.startswith("."))
            return Head(path=path, name=path.name.lower(), is_dir=True, names=tuple(names))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error
    data = _bytes(path, _HEAD_BYTES)
    name = path.name.lower()
    for _, suffix, _ in _MAGIC:
        name = name.removesuffix(suffix)
    if not data.strip():
        raise DataError("the file is empty", file=path, expected="a trace")
    if data.startswith(_PARQUET):
        return Head(path=path, name=name, columns=_parquet_columns(path), is_parquet=True)
    text = data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if len(data) >= _HEAD_BYTES and len(lines) > 1:
        lines.pop()
    columns = tuple(c.strip().strip('"') for c in lines[0].split(","))
    return Head(path=path, name=name, lines=tuple(lines), columns=columns)


def _bytes(path: Path, limit: int | None) -> bytes:
    size = -1 if limit is None else limit
    try:
        with path.open("rb") as file:
            start = file.read(8)
            for magic, _, kind in _MAGIC:
                if start.startswith(magic):
                    return _decompressed(path, kind, size)
            for _, suffix, kind in _MAGIC:
                if path.name.lower().endswith(suffix) and start:
                    raise DataError(
                        f"named {suffix} but not {kind}",
                        file=path,
                        value=start,
                        expected=f"{kind} data, or a name without {suffix}",
                    )
            file.seek(0)
            return file.read(size)
    except FileNotFoundError as error:
        raise DataError("no such file", file=path, expected="the path of a trace") from error
    except IsADirectoryError as error:
        raise DataError(
            "is a directory", file=path, expected="a trace file, or a run directory"
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error


def _decompressed(path: Path, kind: str, size: int) -> bytes:
    openers: dict[str, Callable[[Path], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
        "gzip": gzip.GzipFile,
        "bzip2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    try:
        with openers[kind](path) as file:
            return file.read(size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"damaged {kind} data: {error}", file=path, expected="a complete file"
        ) from error


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa  # noqa: PLC0415  (most traces are text)
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return tuple(pq.read_schema(path).names)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"damaged Parquet file: {error}", file=path) from error
