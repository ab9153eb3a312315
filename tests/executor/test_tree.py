"""The order of summation: any partition of the ranks over devices gives one parenthesisation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import ExecutorError
from executor.tree import Block, Fold, carries, siblings, whole_subtrees
from models.sparse.gradients import tree_sum
from models.train.step import Gradients, reduced


def paper(left: str, right: str) -> str:
    return f"({left}+{right})"


def parenthesised(num_ranks: int, cuts: list[int]) -> str:
    """Each device folds its own ranks; the owner folds what they are left with."""
    owner: Fold[str] = Fold(num_ranks, paper)
    ends = [0, *sorted(cuts), num_ranks]
    for low, high in itertools.pairwise(ends):
        device: Fold[str] = Fold(num_ranks, paper)
        for rank in range(low, high):
            device.push(Block(rank, rank + 1), str(rank))
        if low < high:
            assert [b for b, _ in device.partials] == list(whole_subtrees(low, high, num_ranks))
        for block, value in device.take():
            owner.push(block, value)
    return owner.total()


@st.composite
def partitions(draw: st.DrawFn, largest: int = 40) -> tuple[int, list[int]]:
    n = draw(st.integers(1, largest))
    return n, draw(
        st.lists(st.integers(1, max(n - 1, 1)), max_size=8, unique=True)
    ) if n > 1 else []


@given(partitions())
def test_any_partition_gives_the_same_parentheses(case: tuple[int, list[int]]) -> None:
    num_ranks, cuts = case
    assert parenthesised(num_ranks, cuts) == parenthesised(num_ranks, [])


@pytest.mark.parametrize(
    ("num_ranks", "expected"),
    [
        (1, "0"),
        (2, "(0+1)"),
        (3, "((0+1)+2)"),
        (5, "(((0+1)+(2+3))+4)"),
        (6, "(((0+1)+(2+3))+(4+5))"),
        (7, "(((0+1)+(2+3))+((4+5)+6))"),
        (8, "(((0+1)+(2+3))+((4+5)+(6+7)))"),
    ],
)
def test_parentheses_by_hand(num_ranks: int, expected: str) -> None:
    assert parenthesised(num_ranks, []) == expected


@given(partitions(), st.integers(0, 2**32 - 1))
def test_the_bits_are_those_of_the_step_of_models(case: tuple[int, list[int]], seed: int) -> None:
    num_ranks, cuts = case
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(num_ranks) * 10.0 ** rng.integers(-8, 8, num_ranks)
    parts = {
        rank: Gradients(loss=torch.tensor(0.0), dense=(torch.tensor([value]),), sparse={})
        for rank, value in enumerate(values)
    }
    expected = reduced(parts).dense[0]
    ends = [0, *sorted(cuts), num_ranks]
    owner: Fold[torch.Tensor] = Fold(num_ranks, torch.add)
    for low, high in itertools.pairwise(ends):
        device: Fold[torch.Tensor] = Fold(num_ranks, torch.add)
        for rank in range(low, high):
            device.push(Block(rank, rank + 1), torch.tensor([values[rank]]))
        for block, value in device.take():
            owner.push(block, value)
    assert torch.equal(owner.total(), expected)


def test_another_order_gives_other_bits() -> None:
    """The check above can fail: a plain left fold differs."""
    rng = np.random.default_rng(0)
    values = [torch.tensor(v, dtype=torch.float32) for v in rng.standard_normal((8, 64))]
    fold: Fold[torch.Tensor] = Fold(8, torch.add)
    left = torch.zeros(64)
    for rank, value in enumerate(values):
        fold.push(Block(rank, rank + 1), value)
        left = left + value
    assert not torch.equal(fold.total(), left)


@given(st.integers(1, 300), st.data())
def test_a_device_holds_few_partial_sums(num_ranks: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, num_ranks - 1))
    high = data.draw(st.integers(low + 1, num_ranks))
    blocks = whole_subtrees(low, high, num_ranks)
    assert len(blocks) <= max(1, 2 * (num_ranks.bit_length() - 1) + 1)
    assert [b.low for b in blocks] + [high] == [low] + [b.high for b in blocks]
    pairs = list(itertools.pairwise(blocks))
    assert not any(siblings(left, right, num_ranks) for left, right in pairs)


@given(st.integers(1, 24), st.data())
def test_the_tree_is_that_of_sparse_gradients(num_ranks: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, num_ranks - 1))
    high = data.draw(st.integers(low + 1, num_ranks))
    ranks = torch.arange(low, high)
    place, _ = tree_sum(
        torch.zeros_like(ranks), ranks, torch.ones(len(ranks)), block=(low, high), size=num_ranks
    )
    blocks = whole_subtrees(low, high, num_ranks)
    assert [b.low for b in blocks] == ranks[place].tolist()


@given(st.integers(1, 40), st.data())
def test_a_rank_is_added_to_as_many_sums_as_the_fold_adds(
    num_ranks: int, data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, num_ranks - 1))
    high = data.draw(st.integers(low + 1, num_ranks))
    fold: Fold[int] = Fold(num_ranks, int.__add__)
    for rank, carry in zip(range(low, high), carries(low, high, num_ranks), strict=True):
        before = len(fold.partials)
        fold.push(Block(rank, rank + 1), 1)
        assert before + 1 - len(fold.partials) == carry


def test_an_aligned_block_is_one_partial_sum() -> None:
    assert whole_subtrees(4, 8, 16) == (Block(4, 8),)
    assert whole_subtrees(3, 8, 16) == (Block(3, 4), Block(4, 8))
    assert whole_subtrees(8, 11, 11) == (Block(8, 11),)


def test_missing_and_misplaced_ranks_are_refused() -> None:
    fold: Fold[int] = Fold(4, int.__add__)
    fold.push(Block(0, 2), 1)
    with pytest.raises(ExecutorError, match="ranks are missing"):
        fold.total()
    with pytest.raises(ExecutorError, match="out of order"):
        fold.push(Block(3, 4), 1)
    with pytest.raises(ExecutorError, match="no such ranks"):
        whole_subtrees(2, 2, 4)
