"""A training step: pure, the same however its batch is split out, refused whole when not finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.batch import Batch, Lookup
from models.data.sampler import Sampler
from models.errors import ModelError
from models.longer.network import Longer, loss
from models.train.config import TrainConfig
from models.train.curriculum import Curriculum, parse_curriculum
from models.train.step import (
    DenseOptimizer,
    Gradients,
    State,
    apply_step,
    micro_step,
    reduced,
    train_step,
)
from tests.traincases import CONFIG, DATA, MODEL, differing, everything, strictly


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with strictly():
        yield


def fresh(config: TrainConfig = CONFIG, seed: int = 0) -> State:
    return config.state(Longer(config.model, seed=seed), seed)


def batches(step: int, ranks: int = 3, size: int = 12) -> list[Batch]:
    sampler = Sampler(num_samples=100, global_batch=size, seed=0)
    return [DATA.batch(sampler.at(step, rank, ranks)) for rank in range(ranks)]


def ran(steps: int, seed: int = 0) -> State:
    state = fresh(seed=seed)
    for step in range(steps):
        train_step(state, batches(step))
    return state


def test_thirty_steps_give_the_same_bits_twice() -> None:
    first, second = ran(30), ran(30)
    assert first.step == 30
    assert differing(everything(first), everything(second)) == []


def test_another_seed_or_one_changed_bit_shows() -> None:
    first, second = everything(ran(5)), everything(ran(5, seed=1))
    assert "network/head.layers.0.weight" in differing(first, second)
    assert "item/records" in differing(first, second)
    twin = {name: value.clone() for name, value in first.items()}
    name = next(n for n in twin if n.endswith("exp_avg_sq"))
    twin[name].view(-1)[0] = math.nextafter(float(twin[name].view(-1)[0]), 1.0) + 1e-9
    assert differing(first, twin) == [name]


def test_somebody_elses_random_numbers_change_nothing_and_are_not_used_up() -> None:
    torch.manual_seed(1)
    first = ran(3)
    used = torch.rand(1)
    torch.manual_seed(1)
    torch.manual_seed(2)
    second = ran(3)
    assert differing(everything(first), everything(second)) == []
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), used)


def test_ranks_may_be_computed_and_given_in_any_order() -> None:
    parts = batches(0, ranks=5)
    found = []
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        state = fresh()
        given = {rank: micro_step(state, parts[rank], rank, 12) for rank in order}
        apply_step(state, reduced(given))
        found.append(everything(state))
    assert differing(*found) == []


@pytest.mark.parametrize("block", [[0, 1], [2, 3], [4]])
def test_a_holder_may_close_whole_subtrees_itself(block: list[int]) -> None:
    # Ranks 0..4: node {0, 1} stands at place 0 of the level above, {2, 3} at 1, {4} at 2.
    state, parts = fresh(), batches(0, ranks=5)
    given = {rank: micro_step(state, parts[rank], rank, 12) for rank in range(5)}
    whole = reduced(given)
    pairs = [[0, 1], [2, 3], [4]]
    assert block in pairs
    nodes = {j: reduced({r: given[r] for r in ranks}) for j, ranks in enumerate(pairs)}
    again = reduced({j: _dense_only(node) for j, node in nodes.items()})
    assert all(map(torch.equal, whole.dense, again.dense))
    assert torch.equal(whole.loss, again.loss)


def _dense_only(part: Gradients) -> Gradients:
    return replace(part, sparse={})


def test_the_parts_of_a_step_leave_the_state_alone() -> None:
    state = ran(2)
    before = everything(state)
    micro_step(state, batches(2)[0], 0, 12)
    assert differing(before, everything(state)) == []
    assert all(p.grad is None for p in state.network.parameters())
    assert not state.tables.pending


@pytest.mark.parametrize("ranks", [2, 3, 5, 12])
def test_micro_batches_sum_to_the_whole_batch(ranks: int) -> None:
    config = replace(CONFIG, model=replace(MODEL, dropout=0.0))
    state = config.state(Longer(config.model).double(), 0)
    whole = micro_step(state, batches(0, ranks=1)[0], 0, 12)
    parts = {
        rank: micro_step(state, part, rank, 12) for rank, part in enumerate(batches(0, ranks=ranks))
    }
    total = reduced(parts)
    assert torch.allclose(total.loss, whole.loss, rtol=1e-13, atol=0)
    for ours, theirs in zip(total.dense, whole.dense, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)
    for name, rows in whole.sparse.items():  # tables are float32 whatever the network is
        assert torch.equal(total.sparse[name].ids, rows.ids)
        assert torch.equal(total.sparse[name].sightings, rows.sightings)
        assert torch.allclose(total.sparse[name].grads, rows.grads, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    config = replace(CONFIG, model=replace(MODEL, dropout=0.0))
    state = config.state(Longer(config.model).double(), 0)
    batch = batches(0, ranks=1)[0]
    ours = micro_step(state, batch, 0, 12)
    state.tables.training = False
    mean = loss(state.network(batch, state.tables), batch.label)
    theirs = torch.autograd.grad(mean, list(state.network.parameters()), materialize_grads=True)
    assert torch.allclose(ours.loss, mean.double())
    for a, b in zip(ours.dense, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-15)


def test_ranks_with_nothing_to_do_add_nothing() -> None:
    one, three = fresh(), fresh()
    empty = DATA.batch([])
    parts = batches(0, ranks=2)
    train_step(one, parts)
    train_step(three, [*parts, empty])
    assert differing(everything(one), everything(three)) == []


class Broken(nn.Module):
    """LONGER, whose logits are spoilt at one step."""

    def __init__(self, inner: Longer, spoil: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        self.inner, self.spoil, self.at, self.calls = inner, spoil, at, itertools.count()

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        logits: Tensor = self.inner(batch, lookup)
        return self.spoil(logits) if next(self.calls) == self.at else logits


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.nan


def _bad_gradient(logits: Tensor) -> Tensor:
    out: Tensor = _BadGradient.apply(logits)  # type: ignore[no-untyped-call]
    return out


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x * math.nan, "step 2, rank 1: the loss is not finite"),
        (lambda x: x * math.inf, "step 2, rank 1: the loss is not finite"),
        (_bad_gradient, "step 2, inner.* gradient is not finite"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_step(
    spoil: Callable[[Tensor], Tensor], said: str
) -> None:
    state = CONFIG.state(Broken(Longer(MODEL), spoil, at=2 * 3 + 1), 0)
    for step in range(2):
        train_step(state, batches(step))
    before = everything(state)
    with pytest.raises(ModelError, match=said):
        train_step(state, batches(2))
    assert differing(before, everything(state)) == []
    train_step(state, batches(2))  # the next try is a step like any other
    assert state.step == 3


def test_a_step_without_samples_is_refused() -> None:
    state = fresh()
    with pytest.raises(ModelError, match="step 0: an empty batch"):
        train_step(state, [DATA.batch([])])
    with pytest.raises(ModelError, match="a step without a micro-batch"):
        reduced({})


def test_learning_rates_rise_and_fall() -> None:
    schedule = DenseOptimizer(warmup_steps=4, decay_steps=14, final_scale=0.1)
    assert [schedule.scale(s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.scale(9) == pytest.approx(0.55)
    assert schedule.scale(14) == schedule.scale(1000) == pytest.approx(0.1)
    assert DenseOptimizer().scale(10**9) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"beta1": 1.0}, {"warmup_steps": -1}, {"warmup_steps": 5, "decay_steps": 5}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(reversed(wrong))):
        DenseOptimizer(**wrong)  # type: ignore[arg-type]


def test_a_curriculum_is_a_function_of_the_step() -> None:
    given = parse_curriculum("0:4, 10:16,30:all")
    assert given == Curriculum(stages=((0, 4), (10, 16), (30, None)))
    assert [given.visible(s) for s in (0, 9, 10, 29, 30, 999)] == [4, 4, 16, 16, None, None]


@pytest.mark.parametrize("text", ["", "4", "1:4", "0:4,0:8", "0:-1", "0:x", "0:4,"])
def test_no_curriculum(text: str) -> None:
    with pytest.raises(ModelError):
        parse_curriculum(text)
