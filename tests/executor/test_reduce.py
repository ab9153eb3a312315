"""Dense gradients summed during backward: the bits and signs of a fold after it, and the memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from torch import Tensor, nn

from executor.agent import Agent
from executor.board import Board
from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.finite import Look
from executor.reduce import DenseReducer, order_of
from executor.ring import links, ring_sum
from executor.tree import Block, Fold
from executor.workloads import workload
from tests.executorcases import digests_of, first_difference, job, on, trained

ARRIVED = (4, 3, 1, 2, 0)
WIDTH = 72  # 20 KiB a layer, so that its gradient is added by itself


class Branches(nn.Module):
    """A large layer for every rank, one for odd ranks only, and a small one whose signs are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.odd = nn.Linear(WIDTH, WIDTH)
        self.signs = nn.Parameter(torch.zeros(3))

    def loss(self, rank: int) -> Tensor:
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(rank))
        out: Tensor = self.shared(x)
        if rank % 2:
            out = out + self.odd(out)
        return out.square().mean() + (self.signs * torch.tensor([-0.0, 0.0, 1.0])).sum()


def gradients(module: Branches, rank: int) -> list[Tensor]:
    try:
        torch.autograd.backward(module.loss(rank))
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    finally:
        for parameter in module.parameters():
            parameter.grad = None


def folded(module: Branches, num_ranks: int, scale: float) -> list[Tensor]:
    """The reference: all gradients kept, then added along the tree."""
    sums = []
    per_rank = [gradients(module, rank) for rank in range(num_ranks)]
    for parts in zip(*per_rank, strict=True):
        fold: Fold[Tensor] = Fold(num_ranks, torch.add)
        for rank, part in enumerate(parts):
            fold.push(Block(rank, rank + 1), part)
        sums.append(fold.total() * scale)
    return sums


def ringed(module: Branches, num_ranks: int, scale: float) -> list[Tensor]:
    """The reference of the ring: buckets as one vector of every rank, added up by its chains."""
    parameters = list(module.parameters())
    per_rank = [[g * scale for g in gradients(module, rank)] for rank in range(num_ranks)]
    sums: dict[int, Tensor] = {}
    for bucket in order_of(parameters, num_ranks, arrived=ARRIVED).buckets:
        flat = [torch.cat([of_rank[i].reshape(-1) for i in bucket]) for of_rank in per_rank]
        total = ring_sum(flat, 0, tuple(links(len(flat[0]), 4, num_ranks)))
        for i, part in zip(
            bucket, torch.split(total, [parameters[i].numel() for i in bucket]), strict=True
        ):
            sums[i] = part.view(parameters[i].shape)
    return [sums[i] for i in range(len(parameters))]


def reduced(
    counts: tuple[int, ...], scale: float, *, armed: bool, steps: int = 2, ring: bool = False
) -> list[Tensor]:
    """Sums by devices that are threads, the same on all of them."""
    total = sum(counts)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    blocks = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def device(index: int) -> list[Tensor]:
        exchange = Exchange(board.address, "reduce", index, len(counts))
        module = made()
        parameters = list(module.parameters())
        order = order_of(parameters, total, bucket_bytes=30_000, arrived=ARRIVED if ring else None)
        reducer = DenseReducer(parameters, order, blocks, exchange, scale=scale)
        for _ in range(steps):
            reducer.begin()
            for rank in blocks[index]:
                if armed:
                    reducer.arm(rank)
                reducer.push(rank, gradients(module, rank))
            found = [t.clone() for t in reducer.finish()]
        assert reducer.own_finite()
        reducer.close()
        exchange.close()
        return found

    with closing(Board()) as board, ThreadPoolExecutor(len(counts)) as pool:
        first, *others = pool.map(device, range(len(counts)))
    for other in others:
        assert same(first, other)
    return first


def made() -> Branches:
    # Threads share torch's generator.
    module = Branches()
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) / 8)
    return module


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal in every bit, signs of zeros too."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in pairs)


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize(
    "counts", [(1,), (2,), (5,), (8,), (1, 1), (2, 2), (1, 3), (3, 2), (2, 1, 2), (1, 1, 1)]
)
def test_sums_during_backward_have_the_bits_of_the_fold(
    counts: tuple[int, ...], armed: bool
) -> None:
    scale = 1.0 / sum(counts)
    assert same(reduced(counts, scale, armed=armed), folded(made(), sum(counts), scale))


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("counts", [(1,), (3,), (4,), (1, 1), (2, 2), (1, 3), (2, 1, 2)])
def test_sums_in_the_order_of_the_ring_do_not_depend_on_the_map(
    counts: tuple[int, ...], armed: bool
) -> None:
    scale, total = 1.0 / sum(counts), sum(counts)
    found = reduced(counts, scale, armed=armed, ring=True)
    assert same(found, ringed(made(), total, scale))
    assert same(found, folded(made(), total, scale)) == (total <= 2)


def test_signs_of_zeros_are_told_apart() -> None:
    """The check above can fail: the sums hold negative zeros, which 0.0 + x would lose."""
    signs, *_ = folded(made(), 1, 1.0)
    assert torch.signbit(signs).tolist() == [True, False, False]
    assert not same([signs], [signs + 0.0])


def test_a_gradient_goes_into_the_memory_of_the_sum_before_it() -> None:
    module = made()
    parameters = list(module.parameters())
    nobody = Exchange("", "", 0, 1)
    reducer = DenseReducer(parameters, order_of(parameters, 2), [range(2)], nobody)
    reducer.begin()
    kept = gradients(module, 0)
    reducer.push(0, kept)
    reducer.arm(1)
    torch.autograd.backward(module.loss(1))
    _, weight, *_ = parameters
    assert weight.grad is not None
    assert weight.grad.data_ptr() == kept[1].data_ptr()
    reducer.close()


def test_a_gradient_that_arrives_twice_is_refused() -> None:
    module = made()
    parameters = list(module.parameters())
    nobody = Exchange("", "", 0, 1)
    reducer = DenseReducer(parameters, order_of(parameters, 2), [range(2)], nobody)
    reducer.begin()
    reducer.push(0, gradients(module, 0))
    reducer.arm(1)
    torch.autograd.backward(module.loss(1))
    with pytest.raises(ExecutorError, match="arrived twice"):
        torch.autograd.backward(module.loss(1))
    reducer.close()


def test_a_large_layer_has_the_same_bits_on_every_map(agent: Agent) -> None:
    task = workload("dense", 5, seed=2, width=WIDTH, layers=2, batch=4)
    expected = digests_of(trained(agent, job(task, 5, 4), [(4, on(5))]))
    for overlap, schedule in (
        (False, [(4, on(5))]),
        (True, [(2, on(2, 3)), (4, on(1, 3, 1))]),
        (True, [(1, on(4, 1)), (4, on(2, 2, 1))]),
    ):
        found = digests_of(trained(agent, job(task, 5, 4, overlap=overlap), schedule))
        assert first_difference(expected, found) is None


def summed_up(
    counts: tuple[int, ...], spoil: tuple[int, int] | None
) -> list[tuple[bool, list[Tensor]]]:
    """What every device has, as a thread, of one step: whether it is seen to be finite, the sums.

    ``spoil``: a rank, and the number of its first layer's weight that is infinite.
    """
    total = sum(counts)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    blocks = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def device(index: int) -> tuple[bool, list[Tensor]]:
        exchange = Exchange(board.address, "finite", index, len(counts))
        module = made()
        parameters = list(module.parameters())
        reducer = DenseReducer(parameters, order_of(parameters, total, 30_000), blocks, exchange)
        reducer.begin()
        for rank in blocks[index]:
            found = gradients(module, rank)
            if spoil is not None and spoil[0] == rank:
                found[1].view(-1)[spoil[1]] = torch.inf
            reducer.push(rank, found)
        sums = [t.clone() for t in reducer.finish()]
        reducer.close()
        exchange.close()
        return reducer.finite, sums

    with closing(Board()) as board, ThreadPoolExecutor(len(counts)) as pool:
        return list(pool.map(device, range(len(counts))))


@pytest.mark.parametrize("number", [0, 1, WIDTH * WIDTH // 3, WIDTH * WIDTH - 1])
@pytest.mark.parametrize("counts", [(1,), (3,), (1, 1), (1, 3), (1, 1, 1), (2, 1, 2)])
def test_what_is_not_finite_is_seen_by_all_and_stays_where_it_is(
    counts: tuple[int, ...], number: int
) -> None:
    clean = summed_up(counts, None)
    assert all(finite for finite, _ in clean)
    for finite, sums in summed_up(counts, (sum(counts) - 1, number)):
        assert not finite
        expected = [t.clone() for t in clean[0][1]]
        expected[1].view(-1)[number] = torch.inf
        assert same(sums, expected)


def test_sums_that_overflow_only_together_are_not_called_finite_nor_changed() -> None:
    """Each number is finite, their sum is not: the task has to look itself."""
    look = Look(4, torch.device("cpu"))
    look.at(torch.full((4,), 3e38))
    assert not look.finite
    look.begin()
    look.at(torch.ones(3))
    assert not look.finite  # one has not been shown
    look.at(torch.ones(1))
    assert look.finite
