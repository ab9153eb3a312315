"""Digests of a task's state, tensor by tensor: what "the same bits" means here.

Two states are equal if the same names have equal digests; a digest covers dtype, shape and every
bit, so -0.0 differs from 0.0 and a NaN from another NaN. ``checksum`` is one cheap number over
everything, for replicas that watch each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from executor.context import Context
from executor.packing import bytes_of


def digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor by name."""
    found = {}
    for name, value in sorted(state.items()):
        digest = hashlib.blake2b(f"{value.dtype} {tuple(value.shape)} ".encode(), digest_size=16)
        digest.update(bytes_of(value))
        found[name] = digest.hexdigest()
    return found


def context_digests(contexts: Iterable[Context]) -> dict[str, str]:
    """Return the digest of each context under ``context/rank``."""
    return {
        f"context/{c.rank:04d}": hashlib.blake2b(c.to_bytes(), digest_size=16).hexdigest()
        for c in contexts
    }


def combined(named: Mapping[str, str]) -> str:
    """Return one digest of many."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(named.items()):
        digest.update(f"{name} {value}\n".encode())
    return digest.hexdigest()


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return a signed 64-bit sum over the bits of tensors; one flipped bit changes it."""
    total = 0
    for value in tensors:
        flat = value.detach().contiguous().reshape(-1)
        if flat.element_size() in {4, 8}:
            words = flat.view(torch.int32 if flat.element_size() == 4 else torch.int64)
            part = int(words.sum(dtype=torch.int64))
        else:
            part = int(flat.view(torch.uint8).sum(dtype=torch.int64)) if flat.numel() else 0
        # An odd factor can be undone modulo 2^64, so a change of one part changes the total.
        total = (total * 1_000_003 + part) % (1 << 64)
    return total - (1 << 64) if total >> 63 else total
