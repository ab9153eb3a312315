"""Named arrays in one checked file, written whole or not at all.

Layout, little-endian::

    8 bytes   kind, e.g. b"TANDEMTB"
    4 bytes   schema version of that kind
    8 bytes   length of the header
    header    JSON: {"meta": ..., "arrays": [[name, dtype, [shape]], ...]}
    arrays    one after another, without gaps, in the header's order
    32 bytes  SHA-256 of everything before

The same arrays give the same bytes. A file is written under a temporary name in the same folder,
flushed to the disk, and renamed, so its name always stands for a whole file: the old or the new
one. Tensors of torch's dtypes go in and come out as they are (bfloat16 too). No pickles: reading a
file can run no code. Leaves out: machines that are big-endian, which are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from models.errors import ModelError

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
_PREFIX = struct.Struct("<8sIQ")
_DIGEST = 32
_CHUNK = 1 << 24


def write_arrays(
    file: IO[bytes], kind: bytes, schema: int, meta: Any, arrays: Mapping[str, Tensor]
) -> None:
    """Write ``arrays`` and ``meta`` (JSON values) to an open file, in the mapping's order.

    Raises ModelError on a dtype that is not in ``DTYPES``.
    """
    _little_endian()
    names = []
    for name, array in arrays.items():
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype not in DTYPES or array.layout != torch.strided:
            expected = "a dense tensor of " + ", ".join(DTYPES)
            raise ModelError("cannot be saved", where=name, value=dtype, expected=expected)
        names.append([name, dtype, list(array.shape)])
    header = json.dumps({"meta": meta, "arrays": names}, sort_keys=True).encode()
    digest = hashlib.sha256()

    def put(part: bytes | memoryview) -> None:
        digest.update(part)
        file.write(part)

    put(_PREFIX.pack(kind, schema, len(header)))
    put(header)
    for array in arrays.values():
        data = _bytes_of(array.detach().cpu().contiguous())
        for start in range(0, len(data), _CHUNK):
            put(data[start : start + _CHUNK])
    file.write(digest.digest())


def read_arrays(path: Path, kind: bytes, schema: int) -> tuple[Any, dict[str, Tensor]]:
    """Return (meta, arrays) of a file. Raises ModelError unless it is whole and of this schema."""
    _little_endian()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(file, size, path, kind, schema)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path) from error


def _read(
    file: IO[bytes], size: int, path: Path, kind: bytes, schema: int
) -> tuple[Any, dict[str, Tensor]]:
    def refuse(problem: str, value: object = None, expected: str | None = None) -> ModelError:
        return ModelError(problem, where=path, value=value, expected=expected)

    if size < _PREFIX.size + _DIGEST:
        raise refuse("cut short", f"{size} bytes", "a whole file")
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:  # since its size was asked; later cuts fail the checksum
        raise refuse("cut short", f"{len(prefix)} bytes", "a whole file")
    found_kind, found_schema, header_size = _PREFIX.unpack(prefix)
    if found_kind != kind:
        raise refuse("another kind of file", found_kind, repr(kind))
    if found_schema != schema:
        raise refuse("another schema version", found_schema, str(schema))
    if header_size > size - _PREFIX.size - _DIGEST:
        raise refuse("cut short or damaged", f"{size} bytes", "room for the header")
    digest = hashlib.sha256(prefix)
    header = file.read(header_size)
    digest.update(header)
    listed, meta = _header(header, refuse)
    expected = sum(_size_of(dtype, shape) for _, dtype, shape in listed)
    if size != _PREFIX.size + header_size + expected + _DIGEST:
        wanted = f"{_PREFIX.size + header_size + expected + _DIGEST} bytes"
        raise refuse("cut short or damaged", f"{size} bytes", wanted)
    arrays = {}
    for name, dtype, shape in listed:
        array = torch.empty(shape, dtype=DTYPES[dtype])
        data = _bytes_of(array)
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            file.readinto(part)  # type: ignore[attr-defined]
            digest.update(part)
        arrays[name] = array
    if file.read() != digest.digest():
        raise refuse("damaged: the checksum does not match", expected="the file as it was written")
    return meta, arrays


def _header(
    header: bytes, refuse: Callable[..., ModelError]
) -> tuple[list[tuple[str, str, list[int]]], Any]:
    try:
        parsed = json.loads(header)
        listed = [(str(n), str(d), [int(s) for s in shape]) for n, d, shape in parsed["arrays"]]
        meta = parsed["meta"]
    except (ValueError, TypeError, KeyError) as error:
        raise refuse("damaged: the header cannot be read") from error
    for name, dtype, shape in listed:
        if dtype not in DTYPES or min(shape, default=0) < 0:
            raise refuse("damaged: the header lists no such array", f"{name} {dtype} {shape}")
    return listed, meta


def _size_of(dtype: str, shape: list[int]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def _bytes_of(array: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    flat = array.reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data.cast("B")


def _little_endian() -> None:
    if sys.byteorder != "little":
        raise ModelError("this machine is big-endian", expected="a little-endian one")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name ``path`` when the block ends without an error.

    Raises ModelError, with whatever ``path`` was left as it was, if the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_folder(path.parent)
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror}", where=path) from error


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
