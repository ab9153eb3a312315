"""Counter-based random numbers: known answers, and no dependence but on the counter."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.philox import Stream, below, check_seed, philox, unit, words
from models.errors import ModelError

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ONES, ONES, ONES, ONES),
            (ONES, ONES),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_the_reference_library(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


def test_a_vector_is_its_counters_one_by_one() -> None:
    index = np.array([0, 1, 2**32, 2**40 + 7])
    position = np.array([[0], [3]])
    together = words(2**63 + 5, Stream.EVENT, index, position)
    assert all(word.shape == (2, 4) for word in together)
    for i, j in np.ndindex(2, 4):
        alone = words(2**63 + 5, Stream.EVENT, int(index[j]), int(position[i, 0]))
        assert [int(w[i, j]) for w in together] == [int(w) for w in alone]


def test_streams_seeds_and_indices_do_not_meet() -> None:
    seen = {
        tuple(int(w) for w in words(seed, stream, index, position))
        for seed in (0, 1, 2**32)
        for stream in Stream
        for index in (0, 1, 2**32)
        for position in (0, 1)
    }
    assert len(seen) == 3 * len(Stream) * 3 * 2


def test_numbers_fill_their_range_evenly() -> None:
    a, b, _, _ = words(7, Stream.SAMPLE, np.arange(60_000))
    counts = np.bincount(below(a, 6), minlength=6)
    assert counts.sum() == 60_000
    assert np.abs(counts - 10_000).max() < 4 * np.sqrt(10_000 * 5 / 6)
    uniform = unit(a, b)
    assert 0 < uniform.min() < 1e-3
    assert 1 - 1e-3 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 / np.sqrt(12 * 60_000)
    extremes = unit(np.array([0, ONES], dtype=np.uint64), np.array([0, ONES], dtype=np.uint64))
    assert 0 < extremes[0] < extremes[1] < 1


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_does_not_fit(seed: int) -> None:
    with pytest.raises(ModelError, match="seed"):
        check_seed(seed)
