"""Contexts: complete, small, the same bytes wherever they have been, refused when damaged."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from executor.context import Context, borrowed_generators, captured, enter, first_context
from executor.data import Fetcher
from executor.errors import ExecutorError
from executor.moduletask import ModuleTask
from executor.task import TaskSpec
from executor.workloads import DrawnSource, mlp_task, plain_loss, workload

CPU = torch.device("cpu")


def drawn() -> list[float]:
    """One number from each of the process's generators."""
    return [random.random(), np.random.standard_normal(), float(torch.rand(()))]  # noqa: NPY002


def first(rank: int = 2) -> Context:
    task = mlp_task(num_workers=4, seed=7, device=CPU)
    return first_context(
        rank,
        7,
        generators=task.generators,
        buffers=task.buffers(),
        place=task.source.first(rank),
    )


def test_a_context_goes_on_where_it_was_left_and_leaves_the_process_alone() -> None:
    context = first()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = drawn()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    with borrowed_generators(tuple(context.generators)):
        enter(context, dict(context.buffers), None)
        whole = [drawn(), drawn()]
        enter(context, dict(context.buffers), None)
        one = drawn()
        later = captured(context, "place", {}, None)
    assert one == whole[0]
    with borrowed_generators(tuple(context.generators)):
        moved = Context.from_bytes(later.to_bytes())
        enter(moved, {}, None)
        assert drawn() == whole[1]
    assert drawn() == expected
    assert (moved.step, moved.place) == (1, "place")


def test_bytes_are_the_same_wherever_a_context_has_been_and_few() -> None:
    data = first().to_bytes()
    assert Context.from_bytes(data).to_bytes() == data
    assert len(data) < 16_000
    assert first(rank=3).to_bytes() != data


@pytest.mark.parametrize("place", [3, 13, 300, -1])
def test_a_damaged_context_is_refused(place: int) -> None:
    data = bytearray(first().to_bytes())
    data[place] ^= 1
    with pytest.raises(ExecutorError, match="context of a logical worker"):
        Context.from_bytes(bytes(data))


class Counting(nn.Module):
    """Keeps something that depends on what a rank saw."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.kind = kind
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "number":
            self.calls += 1
        if self.kind == "buffer":
            self.get_buffer("seen").add_(1)
        if self.kind == "attribute":
            self.last = x.detach()
        out: torch.Tensor = self.layer(x)
        return out


def counting(kind: str, **options: object) -> ModuleTask:
    module = nn.Sequential(nn.Linear(8, 8), Counting(kind))
    return ModuleTask(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        source=DrawnSource(0, 4, 8),
        loss=plain_loss,
        num_workers=2,
        seed=0,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("kind", "name"), [("number", "calls"), ("buffer", "seen"), ("attribute", "last")]
)
def test_rank_dependent_state_that_is_not_kept_is_refused_by_name(kind: str, name: str) -> None:
    task = counting(kind)
    batch, _ = task.source.fetch(0, task.source.first(0))
    with pytest.raises(ExecutorError, match=rf"module '1', {name}"):
        task.micro_step(0, batch)


def test_a_buffer_that_is_declared_is_kept_per_rank() -> None:
    task = counting("buffer", rank_buffers=("1.seen",))
    batch, _ = task.source.fetch(0, task.source.first(0))
    task.micro_step(0, batch)
    assert float(task.buffers()["1.seen"]) == 1
    assert not any("seen" in name for name in task.state())
    with pytest.raises(ExecutorError, match="no such buffer"):
        counting("none", rank_buffers=("2.seen",))


def test_modules_that_the_engine_cannot_train_are_refused() -> None:
    sync = nn.Sequential(nn.Linear(8, 8), nn.SyncBatchNorm(8))
    with pytest.raises(ExecutorError, match="SyncBatchNorm"):
        ModuleTask(
            module=sync,
            optimizer=torch.optim.SGD(sync.parameters(), lr=0.1),
            source=DrawnSource(0, 4, 8),
            loss=plain_loss,
            num_workers=2,
            seed=0,
        )
    part = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    with pytest.raises(ExecutorError, match=r"does not hold a parameter|1\.weight"):
        ModuleTask(
            module=part,
            optimizer=torch.optim.SGD(part[0].parameters(), lr=0.1),
            source=DrawnSource(0, 4, 8),
            loss=plain_loss,
            num_workers=2,
            seed=0,
        )


def test_batches_fetched_ahead_are_those_fetched_on_demand() -> None:
    source = DrawnSource(5, 2, 3)
    ahead, plain = Fetcher(source, 3), Fetcher(source)
    places = {rank: source.first(rank) for rank in (4, 5)}
    ahead.follow(places)
    for _ in range(6):
        for rank in (4, 5):
            (x, _), following = ahead.next(rank, places[rank])
            (y, _), same = plain.next(rank, places[rank])
            assert torch.equal(x, y)
            assert following == same
            places[rank] = following
    # A step is given up and done again: the context still has the old place.
    old = places[4]
    (x, _), _ = ahead.next(4, old)
    (again, _), following = ahead.next(4, old)
    assert torch.equal(x, again)
    assert torch.equal(ahead.next(4, following)[0][0], plain.next(4, following)[0][0])
    ahead.close()


def test_bad_task_specs_are_refused() -> None:
    with pytest.raises(ExecutorError, match="not a factory"):
        TaskSpec(factory="module")
    with pytest.raises(ExecutorError, match="JSON"):
        TaskSpec(factory="a:b", settings={"x": object()})
    with pytest.raises(ExecutorError, match="no such factory"):
        TaskSpec(factory="executor.workloads:nothing").build()
    with pytest.raises(ExecutorError, match="did you mean 'longer'"):
        workload("longr", 2)
