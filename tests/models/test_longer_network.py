"""LONGER's network: against the paper written naively, against itself, and with bad input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.batch import Batch
from models.config import PRESETS, End, Sampling
from models.errors import ModelError
from models.longer.attention import Block
from models.longer.execution import PARTS, Execution
from models.longer.network import Longer, loss
from tests.longercases import SAMPLINGS, SMALL, Tables, make_batch, naive_logit, one, with_columns

LENGTHS = [7, 0, 20, 12, 1, 33, 12, 3, 11]


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def step(network: Longer, batch: Batch, tables: Tables) -> tuple[Tensor, list[Tensor]]:
    """Return logits and all gradients, those of the tables too."""
    rows = [table.requires_grad_() for table in tables.rows.values()]
    logits = network(batch, tables)
    wanted = [*network.parameters(), *rows]
    gradients = torch.autograd.grad(loss(logits, batch.label), wanted, allow_unused=True)
    return logits.detach(), [torch.zeros(0) if g is None else g for g in gradients]


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("alignment", ["newest", "oldest"])
def test_the_network_is_the_papers_written_naively(how: Sampling, alignment: End) -> None:
    config = replace(
        SMALL, sampling=how, alignment=alignment, positions=alignment, self_layers=2, num_cls=2
    )
    network, tables = Longer(config, seed=3).double(), Tables(config)
    batch = make_batch(LENGTHS, config)
    ours = network(batch, tables)
    naive = torch.cat([naive_logit(network, one(batch, i), tables) for i in range(len(batch))])
    assert torch.allclose(ours, naive, rtol=0, atol=1e-12)
    assert ours.std() > 1e-3


@pytest.mark.parametrize("how", SAMPLINGS)
def test_a_jagged_batch_equals_its_samples_one_by_one(how: Sampling) -> None:
    config = replace(SMALL, sampling=how)
    network, tables = Longer(config).double(), Tables(config)
    batch = make_batch(LENGTHS, config)
    whole = network(batch, tables)
    alone = torch.cat([network(one(batch, i), tables) for i in range(len(batch))])
    assert torch.allclose(whole, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", SAMPLINGS)
def test_gradients_agree_with_differences(how: Sampling) -> None:
    config = replace(SMALL, sampling=how, queries=2, d=2, heads=1, merge=2, head_hidden=(3,))
    network, tables = Longer(config, seed=1).double(), Tables(config)
    batch = make_batch([5, 0, 3, 1], config)
    rows = [table.requires_grad_() for table in tables.rows.values()]
    parameters = [*rows, *network.parameters()]

    def value(*_: Tensor) -> Tensor:
        return loss(network(batch, tables), batch.label)

    assert torch.autograd.gradcheck(value, parameters, fast_mode=True)
    if how == "recent":  # entry by entry
        small = [p for p in parameters if p.numel() <= 12]
        assert len(small) > 10
        assert torch.autograd.gradcheck(value, small)


def test_the_same_input_gives_the_same_bits() -> None:
    for how in SAMPLINGS:
        config = replace(SMALL, sampling=how)
        results = []
        for _ in range(2):
            network, tables = Longer(config, seed=9), Tables(config)
            results.append(step(network, make_batch(LENGTHS, config), tables))
        assert torch.equal(results[0][0], results[1][0])
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    other = Longer(config, seed=10)(make_batch(LENGTHS, config), Tables(config))
    assert not torch.equal(other, results[0][0])


def test_building_a_network_uses_up_nobodys_random_numbers() -> None:
    torch.manual_seed(1)
    Longer(SMALL, seed=4)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("parts", [PARTS, frozenset({"inner"}), frozenset({"cross", "self"})])
def test_recomputation_changes_no_bit(keep: bool, parts: frozenset[str]) -> None:
    config = replace(SMALL, dropout=0.25)
    chosen = frozenset(part for part in PARTS if part in parts)
    results = []
    for execution in (Execution(), Execution(recompute=chosen, keep_attention=keep)):
        torch.manual_seed(0)
        network = Longer(config, execution=execution)
        results.append(step(network, make_batch(LENGTHS, config), Tables(config)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_recomputation_forgets_activations() -> None:
    def saved(execution: Execution) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        network = Longer(SMALL, execution=execution)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(make_batch([20] * 30, SMALL), Tables(SMALL))
        return total

    assert saved(Execution(recompute=PARTS, keep_attention=False)) < saved(Execution()) / 3


@pytest.mark.parametrize("parts", [PARTS, frozenset({"cross"}), frozenset({"inner", "features"})])
def test_half_precision_is_near_and_leaves_float32_behind(parts: frozenset[str]) -> None:
    half = frozenset(part for part in PARTS if part in parts)
    batch = make_batch(LENGTHS, SMALL)
    exact = Longer(SMALL)(batch, Tables(SMALL))
    network = Longer(SMALL, execution=Execution(half=half))
    seen: list[torch.dtype] = []
    for module in (network.cross.norm, network.head.norm, network.cross.out):
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    logits = network(batch, Tables(SMALL))
    assert logits.dtype == torch.float32
    assert seen[0] == torch.float32  # the norm
    assert (torch.bfloat16 in seen) == ("cross" in half)
    assert 0 < (logits - exact).abs().max() < 0.03
    torch.autograd.backward(loss(logits, batch.label))
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())


def test_recomputing_in_half_precision_changes_no_bit() -> None:
    results = []
    for recompute in (frozenset(), PARTS):
        network = Longer(SMALL, execution=Execution(half=PARTS, recompute=recompute))
        results.append(step(network, make_batch(LENGTHS, SMALL), Tables(SMALL)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_only_the_globals_of_the_last_layer_matter(layers: int) -> None:
    config = replace(SMALL, self_layers=layers)
    batch, tables = make_batch(LENGTHS, config), Tables(config)
    network = Longer(config).double()
    pruned = network(batch, tables)
    network.execution = Execution(whole_last_layer=True)
    assert torch.allclose(network(batch, tables), pruned, rtol=0, atol=1e-12)


def test_an_empty_history_and_an_empty_batch() -> None:
    network, tables = Longer(SMALL), Tables(SMALL)
    logits = network(make_batch([0, 0], SMALL), tables)
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()
    assert network(make_batch([], SMALL), tables).shape == (0,)
    mixed = network(make_batch([0, 5], SMALL), tables)
    torch.autograd.backward(loss(mixed, torch.tensor([0.0, 1.0])))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("alignment", ["newest", "oldest"])
def test_a_longer_history_keeps_its_newest_events(alignment: End) -> None:
    config = replace(SMALL, alignment=alignment, positions=alignment)
    network, tables = Longer(config), Tables(config)
    long = make_batch([27], config)
    cut = with_columns(
        long,
        offsets=torch.tensor([0, 20]),
        **{name: getattr(long, name)[7:] for name in ("item", "category", "action", "age_s")},
    )
    assert torch.equal(network(long, tables), network(cut, tables))


def test_recent_behaviour_looks_equal_in_histories_of_any_length() -> None:
    # Counted from the newest event, the tokens of a complete group depend on nothing older.
    network, tables = Longer(SMALL).double(), Tables(SMALL)
    merged: list[Tensor] = []
    network.merge.register_forward_hook(lambda _m, _i, out: merged.append(out))
    long = make_batch([14], SMALL)
    short = with_columns(
        long,
        offsets=torch.tensor([0, 6]),
        **{name: getattr(long, name)[8:] for name in ("item", "category", "action", "age_s")},
    )
    network(long, tables), network(short, tables)
    assert torch.allclose(merged[0][-2:], merged[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("action", torch.tensor([0, 1, 3, 0]), "action[2]: is unknown (found 3); expected 0 to 2"),
        ("action", torch.tensor([0, -1, 0, 0]), "action[1]"),
        ("age_s", torch.tensor([0.0, 1.0, float("nan"), 2.0]), "age_s[2]"),
        ("age_s", torch.tensor([0.0, -1.0, 1.0, 2.0]), "age_s[1]"),
        ("age_s", torch.tensor([0, 1, 2, 3]), "is no number of seconds"),
        ("item", torch.zeros(4), "item: has another type"),
        ("item", torch.zeros(5, dtype=torch.int64), "another shape"),
        ("item", torch.zeros(2, 2, dtype=torch.int64), "item: has another shape"),
        ("offsets", torch.tensor([0, 2, 5]), "offsets: do not end"),
        ("offsets", torch.tensor([1, 2, 4]), "offsets: do not start"),
        ("offsets", torch.tensor([0, 5, 4]), "offsets[1]: fall"),
        ("offsets", torch.tensor([0, 4]), "offsets: has another shape"),
        ("cross", torch.zeros(2, 1, dtype=torch.int64), "cross: has another shape"),
        ("user", torch.zeros(2), "user: has another type"),
        ("label", torch.tensor([0.0, 0.5]), "label[1]: is no label (found 0.5); expected 0 or 1"),
        ("label", torch.tensor([0.0, float("nan")]), "label[1]"),
        ("candidate_item", torch.zeros(3, dtype=torch.int64), "candidate_item"),
    ],
)
def test_a_batch_that_is_none_is_refused(column: str, value: Tensor, words: str) -> None:
    batch = with_columns(make_batch([2, 2], SMALL), **{column: value})
    with pytest.raises(ModelError) as caught:
        Longer(SMALL)(batch, Tables(SMALL))
    assert words in str(caught.value)


def test_a_lookup_of_another_width_is_refused() -> None:
    tables = Tables(replace(SMALL, user_dim=5))
    with pytest.raises(ModelError, match="table user: the lookup gave vectors of another shape"):
        Longer(SMALL)(make_batch([2], SMALL), tables)


def test_switches_of_unknown_parts_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="half: unknown part of the network"):
        Execution(half=frozenset({"tail"}))  # type: ignore[arg-type]
    for change, words in (
        ({"heads": 5}, "a divisor of merge"),
        ({"merge": 0}, "merge: is no size"),
        ({"queries": -1}, "queries: is no size"),
        ({"self_layers": 1.5}, "self_layers: is no size"),
        ({"dropout": 1.0}, "dropout"),
        ({"sampling": "newest"}, "expected one of recent, uniform, learnable"),
        ({"alignment": "left"}, "expected one of newest, oldest"),
        ({"head_hidden": (8, 0)}, "head_hidden"),
    ):
        with pytest.raises(ModelError, match=words):
            replace(SMALL, **change)


def test_a_block_has_the_parameters_the_paper_counts() -> None:
    block = Block(32, heads=4, ffn_factor=4, dropout=0.0)
    assert sum(p.numel() for p in block.parameters()) == 12 * 32**2 + 13 * 32


@torch.no_grad()
def test_slots_of_a_merged_token_begin_apart_and_need_not_stay_so() -> None:
    config = replace(SMALL, merge=3, d=8, heads=3)
    network = Longer(config)
    rows = torch.randn(5, config.width)
    other = rows.clone()
    other[:, 8:16] += 1  # the middle slot alone
    for block in (network.cross, *network.layers):
        for linear in (block.query, block.key, block.value):
            changed = (linear(rows) != linear(other)).any(dim=0).view(3, 8)
            assert changed[1].all()
            assert not changed[[0, 2]].any()
            # Of the same size as any other linear map of the network: one over the root of inputs.
            own = linear.weight[:8, :8]
            assert 0.5 < own.std() * 8**0.5 < 1.5
        assert (block.out(rows) != block.out(other)).all()  # where they come together
    gradient = torch.autograd.grad
    with torch.enable_grad():
        value = network(make_batch([9, 6], config), Tables(config)).sum()
        (found,) = gradient(value, [network.cross.value.weight])
    assert (found[:8, 8:] != 0).any()


@pytest.mark.parametrize("name", ["tiny", "paper", "long"])
def test_the_presets_run(name: str) -> None:
    config = PRESETS[name]
    logits = Longer(config)(make_batch([50, 3], config), Tables(config))
    assert torch.isfinite(logits).all()


def test_it_learns_what_only_candidate_and_history_together_tell() -> None:
    config = replace(SMALL, num_cross=0, max_length=6, num_actions=2)
    network, tables = Longer(config), Tables(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for i in range(190):
        batch = make_batch([6] * 64, config, seed=i)
        kind = batch.candidate_category % 2
        newest = batch.action.view(64, 6)[:, -1]
        batch = with_columns(batch, candidate_category=kind, label=(newest == kind).float())
        optimizer.zero_grad()
        value = loss(network(batch, tables), batch.label)
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[0] > 0.6
    assert sum(losses[-20:]) / 20 < 0.3
