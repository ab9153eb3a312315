"""What a device tells every other in a step, beside its gradients.

To all: flags, a checksum of the replica (0 if there is no audit), the losses of its ranks. To the
device that keeps copies of them: its ranks' contexts after the step. To each device: partial sums
of the sparse rows that it sums. A checksum covers all but the rows, which have their own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from executor import packing, sparse
from executor.errors import ExecutorError, GarbageError
from models.sparse.gradients import SparseGradient

_SEAL = struct.Struct("<qI")  # how many bytes come before the rows, and their checksum
_FIXED = struct.Struct("<qqii")  # flags, checksum, numbers of losses and of contexts
_CONTEXT = struct.Struct("<qq")  # rank, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What one device said of a step.

    ``contexts``: packed, by rank; ``sums``: partial sums of sparse rows by table.
    """

    flags: int
    checksum: int
    losses: tuple[float, ...]
    contexts: Mapping[int, bytes] = field(default_factory=dict)
    sums: Mapping[str, SparseGradient] = field(default_factory=dict)


def written(
    said: Notice, size: int, *, to: frozenset[int], summer: sparse.Summer | None = None
) -> list[bytes]:
    """Return a message for each of ``size`` devices; ``to``: those that get the contexts.

    ``summer`` says whose a row is, as in ``sparse.split``.
    """
    rows = sparse.split(said.sums, size, summer) if said.sums else [{} for _ in range(size)]
    losses = struct.pack(f"<{len(said.losses)}d", *said.losses)
    copies = [
        part
        for rank, data in said.contexts.items()
        for part in (_CONTEXT.pack(rank, len(data)), data)
    ]
    found = []
    for device in range(size):
        given = copies if device in to else []
        head = _FIXED.pack(said.flags, said.checksum, len(said.losses), len(given) // 2)
        body = b"".join((head, losses, *given))
        packed = packing.pack(None, rows[device]) if rows[device] else b""
        found.append(_SEAL.pack(len(body), zlib.crc32(body)) + body + packed)
    return found


def read(message: bytes, device: int, step: int) -> Notice:
    """Return what a device wrote. Raises GarbageError if it is damaged."""
    try:
        body, rest = _unsealed(message)
        flags, checksum, num_losses, num_contexts = _FIXED.unpack_from(body)
        at = _FIXED.size
        losses = struct.unpack_from(f"<{num_losses}d", body, at)
        at += 8 * num_losses
        contexts = {}
        for _ in range(num_contexts):
            rank, size = _CONTEXT.unpack_from(body, at)
            at += _CONTEXT.size
            contexts[rank] = body[at : at + size]
            at += size
        rows = packing.unpack(rest)[1] if rest else {}
    except (ExecutorError, struct.error) as error:
        raise GarbageError(
            "what a device sent is damaged",
            culprits=(device,),
            where=f"device {device}, step {step}: {error}",
        ) from None
    return Notice(
        flags=flags,
        checksum=checksum,
        losses=losses,
        contexts=contexts,
        sums=sparse.gradients(rows),
    )


def _unsealed(message: bytes) -> tuple[bytes, bytes]:
    """Return what comes before the rows, and the rows."""
    length, seal = _SEAL.unpack_from(message)
    body = message[_SEAL.size :][:length]
    if zlib.crc32(body) != seal:
        raise ExecutorError("wrong checksum", where="what is not rows")
    return body, message[_SEAL.size + length :]


def audit(notices: Sequence[Notice], step: int) -> None:
    """Compare the checksums. Raises GarbageError if replicas differ, and names who is outvoted."""
    sums = [said.checksum for said in notices]
    if len(set(sums)) > 1:
        most = max(sums, key=sums.count)
        # Without a majority nobody can say who is wrong.
        sure = 2 * sums.count(most) > len(sums)
        odd = tuple(i for i, s in enumerate(sums) if s != most) if sure else ()
        raise GarbageError(
            "replicas differ", culprits=odd, where=f"step {step}, device {odd or 'unknown'}"
        )
