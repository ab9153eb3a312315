"""The order of summation: who adds what first is fixed, so bits do not depend on who adds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.sparse.gradients import (
    SparseGradient,
    accumulate,
    gather,
    joined,
    occurrence_sums,
    tree_sum,
    unique,
)


def rough(rows: int, dim: int, seed: int) -> Tensor:
    """Numbers of very different size, whose float32 sum depends on the order."""
    draw = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-4, 5, (rows, dim), generator=draw)
    return torch.randn(rows, dim, generator=draw) * size


def tree_by_hand(values: dict[int, Tensor], height: int) -> Tensor | None:
    """The sum of one group by recursion over the binary tree of ``2 ** height`` numbers."""

    def node(low: int, level: int) -> Tensor | None:
        if level == 0:
            return values.get(low)
        left, right = node(low, level - 1), node(low + (1 << (level - 1)), level - 1)
        if left is None or right is None:
            return right if left is None else left
        return left + right

    return node(0, height)


@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(0, 99))
def test_unique_sorts_by_id_then_position(ids: list[int], seed: int) -> None:
    index = unique(torch.tensor(ids, dtype=torch.int64))
    assert index.ids.tolist() == sorted(set(ids))
    assert index.ids[index.inverse].tolist() == ids
    assert index.order.tolist() == sorted(range(len(ids)), key=lambda i: (ids[i], i))
    assert index.counts.tolist() == [ids.count(i) for i in sorted(set(ids))]


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 99))
def test_duplicates_are_summed_along_the_tree(ids: list[int], seed: int) -> None:
    index = unique(torch.tensor(ids, dtype=torch.int64))
    rows = torch.zeros(len(index.ids), 3, requires_grad=True)
    grads = rough(len(ids), 3, seed)
    gather(rows, index).backward(grads)  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    for at, wanted in enumerate(index.ids.tolist()):
        positions = [i for i, found in enumerate(ids) if found == wanted]
        by_hand = tree_by_hand({n: grads[i] for n, i in enumerate(positions)}, 6)
        assert by_hand is not None
        assert torch.equal(rows.grad[at], by_hand)
        assert torch.allclose(rows.grad[at].double(), grads[positions].double().sum(0), rtol=1e-3)


def test_the_order_matters_so_the_comparisons_above_can_fail() -> None:
    grads = rough(64, 3, 0)
    index = unique(torch.zeros(64, dtype=torch.int64))
    _, tree = tree_sum(index.group, index.ordinal, grads)
    one_by_one = torch.zeros(3)
    for row in grads:
        one_by_one = one_by_one + row
    assert not torch.equal(tree[0], one_by_one)
    assert not torch.equal(tree, tree_sum(index.group, index.ordinal, grads.roll(1, 0))[1])


@st.composite
def workers(draw: st.DrawFn) -> tuple[int, list[int], list[list[int]]]:
    """(ranks, cuts into contiguous blocks, ids seen by each rank)."""
    ranks = draw(st.integers(1, 13))
    cuts = draw(st.lists(st.integers(1, 12), max_size=4, unique=True))
    seen = st.lists(st.integers(-2, 2), max_size=5, unique=True)
    return (
        ranks,
        sorted({0, ranks, *(c for c in cuts if c < ranks)}),
        [draw(seen) for _ in range(ranks)],
    )


def leaves(seen: list[list[int]], seed: int) -> SparseGradient:
    pairs = [(i, rank) for rank, ids in enumerate(seen) for i in ids]
    columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return SparseGradient(
        ids=columns[:, 0],
        order_key=columns[:, 1],
        grads=rough(len(pairs), 2, seed),
        sightings=torch.arange(len(pairs)),
    )


@settings(max_examples=50)
@given(workers(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_any_mapping_of_ranks_to_devices_gives_the_same_bits(
    case: tuple[int, list[int], list[list[int]]], seed: int, shuffle: object
) -> None:
    ranks, cuts, seen = case
    all_leaves = leaves(seen, seed)
    whole = joined([all_leaves])
    parts = []
    for low, high in pairwise(cuts):
        mine = (all_leaves.order_key >= low) & (all_leaves.order_key < high)
        part = accumulate(
            all_leaves.ids[mine],
            all_leaves.grads[mine],
            all_leaves.order_key[mine],
            sightings=all_leaves.sightings[mine],
            block=(low, high),
            num_ranks=ranks,
        )
        parts.append(part)
        # O(log n) partial sums per id, not one per rank.
        if len(part.ids):
            most = int(torch.unique(part.ids, return_counts=True)[1].max())
            assert most <= 2 * max(1, (high - low).bit_length())
    together = joined(parts[::-1])
    assert together.ids.tolist() == sorted({i for ids in seen for i in ids})
    assert torch.equal(whole.grads, together.grads)
    assert torch.equal(whole.sightings, together.sightings)
    for at, wanted in enumerate(whole.ids.tolist()):
        mine = all_leaves.ids == wanted
        by_rank = dict(
            zip(all_leaves.order_key[mine].tolist(), all_leaves.grads[mine], strict=True)
        )
        by_hand = tree_by_hand(by_rank, 4)
        assert by_hand is not None
        assert torch.equal(whole.grads[at], by_hand)


def test_a_device_that_adds_more_than_its_subtrees_is_found_out() -> None:
    grads = rough(4, 8, 3)
    ids = torch.zeros(4, dtype=torch.int64)
    ranks = torch.arange(4)
    right = joined([accumulate(ids, grads, ranks)])
    # Ranks 1 and 2 belong to different subtrees; a device that holds both must send two sums.
    middle = accumulate(ids[1:3], grads[1:3], ranks[1:3], block=(1, 3), num_ranks=4)
    assert middle.order_key.tolist() == [1, 2]
    greedy = accumulate(ids[1:3], grads[1:3], ranks[1:3])
    rest = [accumulate(ids[i], grads[i], ranks[i]) for i in (slice(0, 1), slice(3, 4))]
    assert torch.equal(joined([middle, *rest]).grads, right.grads)
    assert not torch.equal(joined([greedy, *rest]).grads, right.grads)


def test_an_aligned_block_is_one_sum() -> None:
    ids, ranks = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    grads = rough(6, 2, 1)
    part = accumulate(ids[4:], grads[4:], ranks[4:], block=(4, 6), num_ranks=6)
    assert part.order_key.tolist() == [4]
    assert accumulate(ids, grads, ranks, block=(0, 6), num_ranks=6).order_key.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(2)}, "ids: wrong column"),
        ({"order_key": torch.zeros(3, dtype=torch.int64)}, "order_key: wrong column"),
        ({"grads": torch.zeros(2, 2, dtype=torch.float64)}, "grads: wrong column"),
        ({"grads": torch.zeros(2)}, "grads: wrong column"),
        ({"order_key": torch.tensor([-1, 0])}, "rank outside"),
        ({"block": (0, 1), "order_key": torch.tensor([0, 1])}, "expected ranks 0..0"),
        ({"num_ranks": 1, "order_key": torch.tensor([0, 1])}, "rank outside"),
        ({"order_key": torch.tensor([5, 5])}, "two partial sums of one"),
    ],
)
def test_wrong_partial_sums_are_refused(change: dict[str, object], message: str) -> None:
    given_values: dict[str, object] = {
        "ids": torch.zeros(2, dtype=torch.int64),
        "grads": torch.zeros(2, 2),
        "order_key": torch.tensor([0, 1]),
    }
    with pytest.raises(ModelError, match=message):
        accumulate(**(given_values | change))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no partial sums"):
        joined([])


def test_nothing_sums_to_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    total = accumulate(none, torch.empty(0, 4), none, block=(0, 2), num_ranks=2)
    assert total.grads.shape == (0, 4)


@given(st.lists(st.integers(-3, 3), max_size=90), st.integers(0, 2**32 - 1))
def test_sums_over_occurrences_have_the_bits_of_the_tree(ids: list[int], seed: int) -> None:
    index = unique(torch.tensor(ids, dtype=torch.int64))
    values = torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(seed))
    values[values.abs() < 0.3] = -0.0  # adding what is absent must not make it 0.0
    _, tree = tree_sum(index.group, index.ordinal, values[index.order])
    sums = occurrence_sums(values, index)
    assert sums.numpy().tobytes() == tree.numpy().tobytes()


def test_sums_over_occurrences_depend_on_the_order() -> None:
    index = unique(torch.zeros(7, dtype=torch.int64))
    values = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(occurrence_sums(values, index), occurrence_sums(values.flip(0), index))
