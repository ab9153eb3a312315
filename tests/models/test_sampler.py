"""The sampler: every epoch a partition, the same stream for any number of ranks, from any step."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.sampler import Sampler, permute
from models.errors import ModelError

sizes = st.integers(1, 700)


@given(size=sizes, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**48 - 1))
def test_a_permutation_hits_everything_once(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(max_examples=30)
@given(size=sizes, batch=st.integers(9, 300), seed=st.integers(0, 100), epoch=st.integers(0, 5))
def test_an_epoch_is_a_partition(size: int, batch: int, seed: int, epoch: int) -> None:
    sampler = Sampler(num_samples=size, global_batch=batch, seed=seed, last="short")
    steps = [sampler.indices(epoch, step) for step in range(sampler.steps_per_epoch)]
    assert np.array_equal(np.sort(np.concatenate(steps)), np.arange(size))
    assert {len(step) for step in steps[:-1]} <= {batch}
    assert sampler.left_out == 0


@settings(max_examples=30)
@given(size=sizes, batch=st.integers(9, 300), seed=st.integers(0, 100))
def test_dropping_the_rest_repeats_nothing_and_says_how_many(
    size: int, batch: int, seed: int
) -> None:
    if batch > size:
        with pytest.raises(ModelError, match="global_batch"):
            Sampler(num_samples=size, global_batch=batch, seed=seed)
        return
    sampler = Sampler(num_samples=size, global_batch=batch, seed=seed)
    seen = np.concatenate([sampler.indices(0, s) for s in range(sampler.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == size - sampler.left_out
    assert sampler.left_out == size % batch


@settings(max_examples=30)
@given(
    batch=st.integers(1, 64),
    ranks=st.integers(1, 70),
    step=st.integers(0, 10**6),
    order=st.sampled_from(["shuffled", "sequential"]),
)
def test_any_number_of_ranks_sees_the_same_batch(
    batch: int, ranks: int, step: int, order: str
) -> None:
    sampler = Sampler(num_samples=1009, global_batch=batch, seed=3, order=order)  # type: ignore[arg-type]
    parts = [sampler.at(step, rank, ranks) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), sampler.at(step))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # A process that starts here gets what one that was here all along gets.
    again = Sampler(num_samples=1009, global_batch=batch, seed=3, order=order)  # type: ignore[arg-type]
    assert np.array_equal(again.at(step), sampler.at(step))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    size = 5000
    orders = [permute(np.arange(size), size, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    orders.append(permute(np.arange(size), size, 1, 2**32))
    for i, one in enumerate(orders):
        for other in [*orders[:i], np.arange(size)]:
            # Two random permutations agree at one place on average.
            assert np.count_nonzero(one == other) < 10
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(size)


def test_where_an_index_lands_is_even_over_seeds() -> None:
    """Chi-square over the image of each of 12 positions, 12,000 keys: 11 degrees of freedom."""
    images = np.stack([permute(np.arange(12), 12, seed, 0) for seed in range(2000)])
    for position in range(12):
        counts = np.bincount(images[:, position], minlength=12)
        chi_square = float(((counts - 2000 / 12) ** 2 / (2000 / 12)).sum())
        assert chi_square < 37  # one in 10,000
    pairs = np.bincount(images[:, 0] * 12 + images[:, 1], minlength=144).reshape(12, 12)
    assert not np.diagonal(pairs).any()
    assert float(((pairs[~np.eye(12, dtype=bool)] - 2000 / 132) ** 2).sum() / (2000 / 132)) < 200


def test_a_late_step_of_a_huge_epoch_is_no_dearer() -> None:
    sampler = Sampler(num_samples=10**15, global_batch=1024, seed=9)
    start = time.perf_counter()
    indices = sampler.at(10**11)
    assert time.perf_counter() - start < 1.0
    assert len(np.unique(indices)) == 1024
    assert indices.max() < 10**15


def test_steps_count_over_epochs() -> None:
    sampler = Sampler(num_samples=10, global_batch=3)
    assert sampler.steps_per_epoch == 3
    assert sampler.locate(7) == (2, 1)
    assert np.array_equal(sampler.at(7), sampler.indices(2, 1))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_samples": 0, "global_batch": 1}, "num_samples"),
        ({"num_samples": 4, "global_batch": 0}, "global_batch"),
        ({"num_samples": 4, "global_batch": 1, "seed": -1}, "seed"),
        ({"num_samples": 4, "global_batch": 1, "order": "odd"}, "order"),
        ({"num_samples": 4, "global_batch": 1, "last": "odd"}, "last"),
    ],
)
def test_what_cannot_be_sampled(options: dict[str, object], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        Sampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "place", [(-1, 0, 0, 1), (0, 3, 0, 1), (0, -1, 0, 1), (0, 0, 2, 2), (0, 0, -1, 2), (0, 0, 0, 0)]
)
def test_places_that_do_not_exist(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(ModelError, match="no such"):
        Sampler(num_samples=10, global_batch=3).indices(*place)
    with pytest.raises(ModelError, match="no such"):
        Sampler(num_samples=10, global_batch=3).at(-1)
    with pytest.raises(ModelError, match="outside"):
        permute(np.array([10]), 10, 0, 0)
