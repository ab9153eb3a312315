"""Random numbers as a pure function of (key, counter): Philox4x32-10, vectorised over counters.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11), section
3.3; checked in the tests against the known answers published with its reference library. NumPy
has the 64-bit variant, but one Python object per counter; here one call serves a whole batch.

Leaves out: anything stateful. Nothing is drawn in order, so nothing depends on who drew before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import ModelError

_ROUNDS = 10
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9  # fractional part of the golden ratio
_WEYL_1 = 0xBB67AE85  # fractional part of the square root of 3
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


class Stream(IntEnum):
    """What a number is for; streams of one seed never meet."""

    SAMPLE = 1
    HISTORY = 2
    EVENT = 3
    PAIR = 4
    PERMUTATION = 5
    NEGATIVE = 6
    DROPOUT = 7


def philox(
    counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return four words of 32 bits (as uint64) for each counter; all parts are 32 bits wide.

    The four parts of ``counter`` are broadcast against each other; the words have their shape.
    """
    c0, c1, c2, c3 = (np.asarray(part).astype(np.uint64) for part in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 bits fit 64, so the two halves of each product cost a shift and a mask.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT_32) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW_32,
            (product_0 >> _SHIFT_32) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(
    seed: int, stream: Stream, index: ArrayLike, position: ArrayLike = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return four 32-bit words for each (index, position) of one stream.

    ``index`` takes 64 bits, ``position`` 32; both are 0 or more and broadcast. ``seed`` takes 64
    bits (:func:`check_seed`).
    """
    wide = np.asarray(index).astype(np.uint64)
    return philox(
        (wide & _LOW_32, wide >> _SHIFT_32, position, int(stream)),
        (seed & 0xFFFFFFFF, seed >> 32),
    )


def check_seed(seed: int) -> None:
    """Raise :class:`ModelError` unless ``seed`` fits the 64 bits of the key."""
    if not 0 <= seed < 2**64:
        raise ModelError("the seed does not fit", where="seed", value=seed, expected="0 to 2^64-1")


def below(word: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Map words of 32 bits to 0..bound-1; ``bound`` up to 2^31.

    By multiplication, not by rejection, so that one word is always enough; no value is more than
    2^-32 too likely.
    """
    return ((word * np.uint64(bound)) >> _SHIFT_32).astype(np.int64)


def unit(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map two words to the open interval (0, 1), 52 bits, never 0 and never 1."""
    bits = (high << np.uint64(20)) | (low >> np.uint64(12))
    return (bits.astype(np.float64) + 0.5) * 2.0**-52
