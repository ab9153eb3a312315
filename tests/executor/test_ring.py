"""The order of gloo's ring, against gloo itself; and the buckets of DistributedDataParallel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from executor.board import Board
from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.reduce import Order, order_of
from executor.ring import arrival, ddp_buckets, links, ring_sum
from executor.tree import Block, Fold
from executor.workloads import workload
from tests.executorcases import job

RANKS = (2, 3, 4, 8)
SIZES = (5, 1000, 700_003)  # a mebibyte has 262,144 numbers of four bytes


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def drawn(num_ranks: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Numbers of very different sizes, so that another order has other bits."""
    generator = torch.Generator().manual_seed(size)
    made = torch.randn((num_ranks, size), generator=generator)
    return [part.to(dtype) for part in made * 10.0 ** torch.arange(num_ranks)[:, None]]


def by_gloo(board: Board, name: str, parts: list[Tensor]) -> list[Tensor]:
    """Sums of one all-reduce of gloo among threads, a group for each."""

    def rank(index: int) -> Tensor:
        exchange = Exchange(board.address, name, index, len(parts))
        own = parts[index].clone()
        exchange._groups["cpu"].allreduce([own]).wait()
        exchange.close()
        return own

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(rank, range(len(parts))))


def along_the_tree(parts: list[Tensor]) -> Tensor:
    fold: Fold[Tensor] = Fold(len(parts), torch.add)
    for rank, part in enumerate(parts):
        fold.push(Block(rank, rank + 1), part)
    return fold.total()


@pytest.mark.parametrize(
    ("num_ranks", "dtype"), [*((n, torch.float32) for n in RANKS), (4, torch.float64)]
)
def test_sums_have_the_bits_of_gloo(board: Board, num_ranks: int, dtype: torch.dtype) -> None:
    for size in SIZES:
        parts = drawn(num_ranks, size, dtype)
        gloo = by_gloo(board, f"{dtype}/{num_ranks}/{size}", parts)
        chain = tuple(links(size, parts[0].element_size(), num_ranks))
        for theirs in gloo:
            assert torch.equal(theirs, ring_sum(parts, 0, chain)), (size, num_ranks)


def test_the_tree_has_others() -> None:
    """The check above can fail."""
    parts = drawn(4, 1000)
    assert not torch.equal(along_the_tree(parts), ring_sum(parts, 0, tuple(links(1000, 4, 4))))


@pytest.mark.parametrize("cuts", [(0, 500, 1000), (0, 1, 334, 335, 1000), (0, 250, 1000)])
def test_a_bucket_may_be_summed_in_pieces(cuts: tuple[int, ...]) -> None:
    parts, chain = drawn(3, 1000), tuple(links(1000, 4, 3))
    pieces = [
        ring_sum([part[low:high] for part in parts], low, chain) for low, high in pairwise(cuts)
    ]
    assert torch.equal(torch.cat(pieces), ring_sum(parts, 0, chain))


def test_numbers_beyond_the_bucket_are_zero() -> None:
    chain = tuple(links(3, 4, 2))
    padded = [torch.tensor([1.0, 2.0, 3.0, 7.0])] * 2
    assert ring_sum(padded, 0, chain).tolist() == [2.0, 4.0, 6.0, 0.0]


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("size", SIZES)
def test_links_cover_every_number_once_with_every_rank(num_ranks: int, size: int) -> None:
    chain = list(links(size, 4, num_ranks))
    assert [link.low for link in chain] == [0, *(link.high for link in chain[:-1])]
    assert chain[-1].high == size
    assert all(sorted(link.ranks) == list(range(num_ranks)) for link in chain)


def test_buckets_are_those_of_distributed_data_parallel() -> None:
    """In the first step all of a dtype; later closed when they have a mebibyte, and 25."""
    mebi = 1 << 18
    sizes = [3 * mebi, 20 * mebi, 6 * mebi, mebi // 2, mebi // 2 + 1, 5]
    parameters = [nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    first, later = ddp_buckets(parameters, (5, 4, 3, 2, 1, 0))
    assert first == ((0, 1, 2, 3, 4, 5),)
    assert later == ((5, 4, 3), (2, 1), (0,))
    assert ddp_buckets(parameters, (5, 0, 1, 2, 3, 4))[1] == ((5, 0), (1, 2), (3, 4))
    double = nn.Parameter(torch.empty(4, dtype=torch.float64, device="meta"))
    first, later = ddp_buckets([double, *parameters], range(6, -1, -1))
    assert first == ((0,), (1, 2, 3, 4, 5, 6))
    assert later == ((6, 5, 4), (3, 2), (1,), (0,))


def test_distributed_data_parallel_says_so_itself(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ddpbuckets", str(tmp_path / "out.json")]
    subprocess.run(command, cwd=repo, check=True, timeout=120)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ours"] == found["theirs"]
    assert [len(sizes) for sizes in found["ours"][0]] == [1, 2]


def test_gradients_arrive_in_an_order_of_their_own() -> None:
    """A batch normalisation has its weight's before its bias's; a module in a row backwards."""
    task: Any = workload("mlp", 2, seed=3).build("cpu")
    names = [name for name, _ in task.module.named_parameters()]
    found = [names[i] for i in arrival(task)]
    assert sorted(found) == sorted(names)
    assert found[:2] == ["last.bias", "last.weight"]
    assert found.index("norm.weight") < found.index("norm.bias")


def test_an_order_is_read_as_it_was_written() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    ring = order_of(parameters, 3, arrived=(1, 0))
    assert Order.from_json(ring.to_json()) == ring
    assert ring.at(0).buckets == ((0, 1),)
    assert ring.at(1).buckets == ((1, 0),)
    tree = order_of(parameters, 3)
    assert Order.from_json(tree.to_json()) == tree
    assert "first" not in tree.to_json()
    with pytest.raises(ExecutorError, match=r"unknown order.*star.*tree or ring"):
        Order.from_json(tree.to_json() | {"kind": "star"})
    with pytest.raises(ExecutorError, match=r"unknown order.*star"):
        replace(job("mlp", 2, 2), reduction="star")
