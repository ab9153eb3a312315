"""The value a row has before it is trained: a counter hash of (seed, table, id).

It depends on nothing else, so neither the order in which ids arrive nor the number of processes nor
the eviction of a row can change it, and a server can make it for an id it has never seen.

The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014, with the constants of Stafford's variant 13), all modulo 2^64::

    mix(z):  z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB
             z ^= z >> 31
    base   = mix(seed + 1 G) ^ first 8 bytes, little-endian, of BLAKE2b(table name in UTF-8)
    key    = mix(base + id G)                     for the id read as an unsigned number
    h(c)   = mix(key + (c + 1) G)                 for column c = 0, 1, ...
    value  = ((h >> 40) - 2^23) * 2^-23 * scale   in float32

with G = 0x9E3779B97F4A7C15. ``key`` is one to one in the id. The 24-bit integer and its product
with a power of two are exact, so there is one rounding, and the bits are those of any IEEE device.
Values are uniform in [-scale, scale). Leaves out: normal values, which would need functions
that differ between devices.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def signed(number: int) -> int:
    """Return ``number`` modulo 2^64 as the int64 with the same bits."""
    return ((number + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _shifted_xor(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes the shift logical.
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))


def mix(z: Tensor) -> Tensor:
    """Return the SplitMix64 output function of int64 words, elementwise, modulo 2^64."""
    z = _shifted_xor(z, 30) * signed(_FIRST)
    z = _shifted_xor(z, 27) * signed(_SECOND)
    return _shifted_xor(z, 31)


def base_of(seed: int, table: str) -> int:
    """Return the int64 that separates the streams of (seed, table)."""
    name = int.from_bytes(hashlib.blake2b(table.encode(), digest_size=64).digest()[:8], "little")
    start = mix(torch.tensor([signed(seed + GOLDEN)], dtype=torch.int64))
    return signed(int(start.item()) ^ signed(name))


def initial_rows(base: int, ids: Tensor, dim: int, scale: float) -> Tensor:
    """Return the initial values of ``ids`` (U,) int64 as (U, dim) float32, on the ids' device.

    ``base`` is ``base_of(seed, table)``.
    """
    golden = signed(GOLDEN)
    key = mix(ids * golden + base)
    column = torch.arange(1, dim + 1, dtype=torch.int64, device=ids.device) * golden
    h = mix(key[:, None] + column[None, :])
    number = ((h >> 40) & 0xFFFFFF) - (1 << 23)
    # The product with the scale is taken in float32 and rounds once.
    return number.to(torch.float32) * (2.0**-23) * torch.tensor(scale, dtype=torch.float32)
