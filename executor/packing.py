"""Named tensors and JSON values as checked bytes: contexts, and what devices send each other.

Layout, little-endian: 8 bytes kind and version, 4 bytes CRC-32 of what follows, 8 bytes length
of the header, the header (JSON: meta and the list of arrays), then the arrays without gaps. No
pickles: reading runs no code. A CRC finds damage on the way; checkpoints carry a SHA-256 besides.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from executor.errors import ExecutorError
from models.sparse.arrayfile import DTYPES

_PREFIX = struct.Struct("<8sIQ")
_KIND = b"TANDEMX1"


def pack(meta: Any, arrays: Mapping[str, Tensor]) -> bytes:
    """Return ``meta`` (JSON values) and ``arrays`` as bytes, equal for equal ones.

    Raises ExecutorError on a tensor that is not dense, or of a dtype that is not in
    ``models.sparse.arrayfile.DTYPES``.
    """
    listed = []
    for name, array in arrays.items():
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype not in DTYPES or array.layout != torch.strided:
            raise ExecutorError("cannot be sent", where=name, value=f"{dtype} {array.layout}")
        listed.append([name, dtype, list(array.shape)])
    header = json.dumps({"meta": meta, "arrays": listed}, sort_keys=True).encode()
    body = b"".join((header, *map(bytes_of, arrays.values())))
    return _PREFIX.pack(_KIND, _checksum(body, len(header)), len(header)) + body


def unpack(data: bytes | memoryview, where: object = "message") -> tuple[Any, dict[str, Tensor]]:
    """Return (meta, arrays) of what ``pack`` made. Raises ExecutorError for anything else."""
    header_size = check(data, where)
    body = memoryview(data)[_PREFIX.size :]
    header = json.loads(bytes(body[:header_size]))
    arrays = {}
    at = header_size
    for name, dtype_name, shape in header["arrays"]:
        dtype = DTYPES[dtype_name]
        size = math.prod(shape) * dtype.itemsize
        array = torch.empty(shape, dtype=dtype)
        if size:
            flat = array.reshape(-1).view(torch.uint8)
            flat.copy_(torch.frombuffer(bytearray(body[at : at + size]), dtype=torch.uint8))
        arrays[name] = array
        at += size
    return header["meta"], arrays


def check(data: bytes | memoryview, where: object = "message") -> int:
    """Raise ExecutorError for anything but what ``pack`` made; return the size of its header."""
    view = memoryview(data)
    if len(view) < _PREFIX.size or bytes(view[:8]) != _KIND:
        raise ExecutorError("is not a packed message", where=where, value=f"{len(view)} bytes")
    _, checksum, header_size = _PREFIX.unpack(view[: _PREFIX.size])
    if _checksum(view[_PREFIX.size :], header_size) != checksum:
        raise ExecutorError("damaged: the checksum does not match", where=where)
    return int(header_size)


def _checksum(body: bytes | memoryview, header_size: int) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<Q", header_size)))


def bytes_of(array: Tensor) -> bytes:
    """Return the numbers of a tensor, in row order."""
    flat = array.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
