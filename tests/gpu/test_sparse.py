"""Embedding tables on a CUDA device: the CPU's bits, whatever lies in which tier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.sparse import (
    EmbeddingTable,
    Eviction,
    Published,
    RowAdagrad,
    RowAdam,
    RowOptimizer,
    TableSet,
    Tiers,
    load_tables,
    publish,
    save_tables,
)
from models.sparse.optimizer import mean_square, root
from tests.gpucases import DEVICE, GPU, same_bits

pytestmark = GPU
OPTIMIZERS = [RowAdagrad(), RowAdam(lr=0.01)]


def trained(
    device: torch.device,
    *,
    optimizer: RowOptimizer | None = None,
    tiers: Tiers | None = None,
    dim: int = 12,
    seed: int = 3,
) -> TableSet:
    """A table after eight steps of given gradients, with admission and eviction; ids repeat."""
    table = EmbeddingTable(
        "item",
        dim,
        seed,
        optimizer=optimizer or RowAdam(lr=0.01),
        admit_after=2,
        eviction=Eviction(every_steps=3, idle_steps=4, max_ids=150),
        tiers=tiers,
        device=device,
    )
    tables = TableSet([table])
    draw = torch.Generator().manual_seed(1)
    for step in range(8):
        ids = (200 ** torch.rand(300, generator=draw, dtype=torch.float64)).long() * 7_777_777_777
        grad = torch.randn(300, dim, generator=draw)
        rows = tables("item", ids.to(device))
        torch.autograd.backward(rows, grad.to(device))
        tables.apply(step)
    return tables


def contents(tables: TableSet) -> list[Tensor]:
    """All that training changes."""
    saved = tables.table("item").state()
    return [saved.ids, saved.count, saved.last_step, saved.records]


@pytest.mark.parametrize("shape", [(100_003, 1), (3001, 12), (3001, 32)])
def test_each_operation_rounds_as_on_the_cpu(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(shape, generator=draw), torch.rand(shape, generator=draw) + 0.1
    column = b[:, :1].clone()

    def results(a: Tensor, b: Tensor, column: Tensor) -> list[Tensor]:
        return [
            a + b,
            a - b,
            a * b,
            a * 0.05,
            a / b,
            a / column,
            column + 1e-8,
            1 - column,
            root(column),
            mean_square(a),
            mean_square(a[:, :1]) / torch.full_like(column[:1], 7),
        ]

    there = results(*(x.to(DEVICE) for x in (a, b, column)))
    here = results(a, b, column)
    differing = [
        i
        for i, pair in enumerate(zip(there, here, strict=True))
        if not same_bits([pair[0]], [pair[1]])
    ]
    assert differing == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [1, 12, 32])
def test_the_device_gives_the_bits_of_the_cpu(optimizer: RowOptimizer, dim: int) -> None:
    there = trained(DEVICE, optimizer=optimizer, dim=dim)
    here = trained(torch.device("cpu"), optimizer=optimizer, dim=dim)
    assert same_bits(contents(there), contents(here))
    other = trained(DEVICE, optimizer=optimizer, dim=dim, seed=4)
    assert not same_bits(contents(there), contents(other))


@pytest.mark.parametrize(
    "tiers",
    [Tiers(hot_rows=0), Tiers(hot_rows=20), Tiers(hot_rows=20, host_rows=10), Tiers(hot_rows=1000)],
)
def test_no_size_of_any_tier_changes_a_bit(tiers: Tiers) -> None:
    assert same_bits(contents(trained(DEVICE, tiers=tiers)), contents(trained(DEVICE)))


def test_hot_rows_lie_on_the_device() -> None:
    table = trained(DEVICE, tiers=Tiers(hot_rows=20, host_rows=10)).table("item")
    hot, host, file = table.rows_in_tiers()
    assert (hot, host) == (20, 10)
    assert file > 0
    assert table.values(torch.arange(3)).device.type == DEVICE.type


def test_look_ups_are_those_of_the_cpu() -> None:
    ids = torch.tensor([-(2**63), -1, 0, 1, 2**63 - 1, 7_777_777_777, 15_555_555_554])
    there, here = trained(DEVICE), trained(torch.device("cpu"))
    with torch.no_grad():
        assert same_bits([there("item", ids.to(DEVICE))], [here("item", ids)])


def test_files_are_those_of_the_cpu(tmp_path: Path) -> None:
    there, here = trained(DEVICE), trained(torch.device("cpu"))
    save_tables(there, tmp_path / "there.bin")
    save_tables(here, tmp_path / "here.bin")
    assert (tmp_path / "there.bin").read_bytes() == (tmp_path / "here.bin").read_bytes()
    other = trained(DEVICE, seed=3)
    load_tables(other, tmp_path / "here.bin")
    assert same_bits(contents(other), contents(there))
    version = publish(tmp_path / "versions", {"head": torch.zeros(3, device=DEVICE)}, there)
    served = Published.open(tmp_path / "versions", version)
    ids = torch.tensor([7_777_777_777, 5])
    with torch.no_grad():
        assert same_bits([served.tables("item", ids)], [there("item", ids.to(DEVICE))])
