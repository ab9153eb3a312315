"""Baselines: each against itself written naively, one interface, bits, gradients and operations."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.baselines import BASELINES, find_baseline, hstu
from models.baselines.contract import Baseline, unmerged
from models.baselines.din import Din
from models.baselines.embedded import Embedded
from models.baselines.hstu import Hstu, HstuBlock
from models.baselines.pooled import Pooled, SumPooling
from models.baselines.transformer import Transformer
from models.baselines.twin import Twin
from models.batch import Batch
from models.config import PAPER, TINY
from models.errors import ModelError
from models.longer.attention import Block
from models.longer.execution import PARTS, Execution
from models.longer.features import age_bucket
from models.longer.kvcache import encode
from models.longer.network import loss
from models.longer.scoring import score
from tests.longercases import (
    SMALL,
    Tables,
    candidates,
    for_each,
    history,
    make_batch,
    naive_logit,
    one,
    with_columns,
)

LENGTHS = [7, 0, 20, 12, 1, 33, 12, 3, 11]
CONFIG = replace(SMALL, queries=5)  # d = 4, two heads, at most 20 events
NAMES = sorted(BASELINES)
CASES: dict[str, tuple[type[Any], dict[str, int]]] = {
    **{name: (BASELINES[name], {}) for name in NAMES},
    "din, recent 6": (Din, {"recent": 6}),
    "twin, all": (Twin, {"retrieved": 20}),
}


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def build(case: str, **more: Any) -> Baseline:
    cls, options = CASES[case]
    network: Baseline = cls(CONFIG, **options, **more)
    return network


def step(network: Baseline, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    """Return logits and all gradients, those of the tables too."""
    tables = Tables(network.config)
    rows = [table.requires_grad_() for table in tables.rows.values()]
    logits = network(batch, tables)
    wanted = [*network.parameters(), *rows]
    gradients = torch.autograd.grad(loss(logits, batch.label), wanted, allow_unused=True)
    return logits.detach(), list(gradients)


def same(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all(
        x is y or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_a_batch_becomes_one_finite_logit_each(case: str) -> None:
    network = build(case)
    logits = network(make_batch(LENGTHS, CONFIG), Tables(CONFIG))
    assert logits.shape == (len(LENGTHS),)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_jagged_batch_equals_its_samples_one_by_one(case: str) -> None:
    network, tables = build(case).double(), Tables(CONFIG)
    batch = make_batch(LENGTHS, CONFIG)
    whole = network(batch, tables)
    alone = torch.cat([network(one(batch, i), tables) for i in range(len(batch))])
    assert torch.allclose(whole, alone, rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(0, 24), min_size=1, max_size=8), data=st.data())
def test_the_order_of_samples_changes_nothing_but_the_order(
    lengths: list[int], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(list(CASES)))
    there = data.draw(st.permutations(range(len(lengths))))
    network, tables = build(case).double(), Tables(CONFIG)
    batch = make_batch(lengths, CONFIG)
    parts = [one(batch, i) for i in there]
    names = [f for f in Batch.__dataclass_fields__ if f != "offsets"]
    moved = Batch(
        offsets=torch.tensor([0, *(lengths[i] for i in there)]).cumsum(0),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
    )
    assert torch.allclose(network(moved, tables), network(batch, tables)[there], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_empty_histories_and_an_empty_batch(case: str) -> None:
    network, tables = build(case), Tables(CONFIG)
    assert torch.isfinite(network(make_batch([0, 0], CONFIG), tables)).all()
    assert network(make_batch([], CONFIG), tables).shape == (0,)
    _, gradients = step(network, make_batch([0, 5, 0], CONFIG))
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_and_every_table_learns(case: str) -> None:
    network = build(case).double()
    names = [name for name, _ in network.named_parameters()] + ["item", "category", "user", "cross"]
    _, gradients = step(network, make_batch(LENGTHS, CONFIG))
    still = {
        name
        for name, g in zip(names, gradients, strict=True)
        if g is None or (g.numel() > 0 and g.abs().max() < 1e-15)
    }
    # A bias of all keys adds the same to all scores, and a softmax does not see it. Nothing else.
    forgotten = {name for name in names if name.endswith("key.bias")}
    assert still == forgotten
    assert bool(forgotten) == (network.__class__ in {Twin, Transformer})


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_differences(case: str) -> None:
    network, tables = build(case, seed=1).double(), Tables(CONFIG)
    batch = make_batch([5, 0, 7, 1], CONFIG)
    rows = [table.requires_grad_() for table in tables.rows.values()]

    def value(*_: Tensor) -> Tensor:
        return loss(network(batch, tables), batch.label)

    wanted = [p for p in network.parameters() if p.numel() > 0]
    assert torch.autograd.gradcheck(value, (*rows, *wanted), fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_the_candidate_matters_and_so_does_the_history(case: str) -> None:
    network, tables = build(case).double(), Tables(CONFIG)
    batch = make_batch([9, 4], CONFIG)
    logits = network(batch, tables)
    for column in ("candidate_item", "candidate_category", "user"):
        other = with_columns(batch, **{column: getattr(batch, column) + torch.tensor([1, 0])})
        changed = (network(other, tables) - logits).abs()
        assert changed[0] > 1e-6
        assert changed[1] < 1e-12
    for column in ("item", "category"):
        moved = getattr(batch, column).clone()
        moved[8] += 1  # the newest event of the first sample
        changed = (network(with_columns(batch, **{column: moved}), tables) - logits).abs()
        assert changed[0] > 1e-6
        assert changed[1] < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_the_same_input_gives_the_same_bits(case: str) -> None:
    batch = make_batch(LENGTHS, CONFIG)
    first, second = (step(build(case, seed=9), batch) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert same(first[1], second[1])
    other = step(build(case, seed=10), batch)
    assert not torch.equal(first[0], other[0])
    assert not same(first[1], other[1])


@pytest.mark.parametrize("name", NAMES)
def test_building_one_uses_up_nobodys_random_numbers(name: str) -> None:
    torch.manual_seed(1)
    BASELINES[name](CONFIG, seed=4)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("case", CASES)
def test_a_longer_history_keeps_its_newest_events(case: str) -> None:
    network, tables = build(case), Tables(CONFIG)
    longest = network.config.max_length
    assert longest == (6 if case == "din, recent 6" else 20)
    long = make_batch([27], CONFIG)
    cut = with_columns(
        long,
        offsets=torch.tensor([0, longest]),
        **{n: getattr(long, n)[-longest:] for n in ("item", "category", "action", "age_s")},
    )
    assert torch.equal(network(long, tables), network(cut, tables))


@pytest.mark.parametrize("case", CASES)
def test_switches_of_execution_act_as_in_longer(case: str) -> None:
    batch = make_batch(LENGTHS, CONFIG)
    exact = step(build(case), batch)
    again = step(build(case, execution=Execution(recompute=PARTS)), batch)
    assert torch.equal(again[0], exact[0])
    assert same(again[1], exact[1])
    half, _ = step(build(case, execution=Execution(half=PARTS)), batch)
    assert half.dtype == torch.float32
    assert 0 < (half - exact[0]).abs().max() < 0.03


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", [TINY, PAPER])
def test_the_presets_run(name: str, preset: Any) -> None:
    logits = BASELINES[name](preset)(make_batch([50, 3], preset), Tables(preset))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_bad_batches_and_lookups_are_refused(name: str) -> None:
    network = BASELINES[name](CONFIG)
    batch = with_columns(make_batch([2, 2], CONFIG), action=torch.tensor([0, 1, 3, 0]))
    with pytest.raises(ModelError, match=r"action\[2\]: is unknown"):
        network(batch, Tables(CONFIG))
    with pytest.raises(ModelError, match="table user: the lookup gave vectors of another shape"):
        network(make_batch([2], CONFIG), Tables(replace(CONFIG, user_dim=5)))


def test_sizes_that_make_no_baseline_are_refused() -> None:
    with pytest.raises(ModelError, match="recent: is no size"):
        Din(CONFIG, recent=0)
    with pytest.raises(ModelError, match="hidden: is no size"):
        Din(CONFIG, hidden=0)
    with pytest.raises(ModelError, match="retrieved: is no size"):
        Twin(CONFIG, retrieved=0)
    with pytest.raises(ModelError, match="heads"):
        unmerged(replace(CONFIG, heads=3))  # divides d * merge = 12, but not d = 4


def test_names_lead_to_classes_and_wrong_ones_to_the_nearest() -> None:
    assert NAMES == ["din", "hstu", "sum-pooling", "transformer", "twin"]
    assert find_baseline("hstu") is Hstu
    assert all(issubclass(BASELINES[name], Baseline) for name in NAMES)
    assert "longer" not in BASELINES
    with pytest.raises(ModelError, match=r"no such baseline \(found 'hst'\); expected hstu\?"):
        find_baseline("hst")
    with pytest.raises(ModelError, match="expected one of sum-pooling, din, twin"):
        find_baseline("x")


def test_names_are_known_without_torch(repo: Path) -> None:
    code = "import sys; from models.baselines import BASELINES; list(BASELINES); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False).returncode == 0


# Each of them written naively, one sample at a time, from its source.


def naive_parts(network: Embedded, sample: Batch, lookup: Tables) -> tuple[Tensor, Tensor]:
    """Return tokens (S, d), oldest first, and globals (m, d) of one sample."""
    c, f = network.config, network.features
    rows = range(int(sample.offsets[1]))[-c.max_length :]
    tokens = [
        f.mlp(
            torch.cat(
                [
                    lookup("item", sample.item[row]),
                    lookup("category", sample.category[row]),
                    f.action.weight[sample.action[row]],
                    f.age.weight[age_bucket(sample.age_s[row], c.age_buckets)],
                ]
            )
            + f.position.weight[rows[-1] - row]
        )
        for row in rows
    ]
    globals_ = network.globals(
        lookup("user", sample.user),
        lookup("cross", sample.cross),
        lookup("item", sample.candidate_item),
        lookup("category", sample.candidate_category),
    )[0]
    return torch.stack(tokens) if tokens else torch.zeros(0, c.d).double(), globals_


def naive_pooled(network: Pooled, tokens: Tensor, candidate: Tensor) -> Tensor:
    c = network.config
    pooled = torch.zeros(c.d).double()
    if isinstance(network, Din):
        for e in tokens:
            hidden = torch.nn.functional.gelu(
                network.unit(torch.cat([e, candidate, e * candidate]))
            )
            pooled = pooled + network.weight(hidden) * e
        return pooled / math.sqrt(c.max_length)
    if isinstance(network, Twin):
        e = c.d // c.heads
        q = network.query(candidate)
        scores = torch.zeros(len(tokens), c.heads).double()
        for h in range(c.heads):
            at = slice(h * e, (h + 1) * e)
            scores[:, h] = network.key(tokens)[:, at] @ q[at] / math.sqrt(e)
        best = sorted(range(len(tokens)), key=lambda i: -float(scores[i].detach().mean()))
        best = best[: network.retrieved]
        found = []
        for h in range(c.heads):
            v = network.value(tokens)[best, h * e : (h + 1) * e]
            found.append(torch.softmax(scores[best, h], 0) @ v)
        return network.out(torch.cat(found))  # type: ignore[no-any-return]
    assert isinstance(network, SumPooling)
    for e in tokens:
        pooled = pooled + e
    return pooled / math.sqrt(c.max_length)


def naive_hstu_layer(block: HstuBlock, x: Tensor) -> Tensor:
    u, q = torch.nn.functional.silu(block.gate_query(block.norm(x))).chunk(2, dim=1)
    k, v = torch.nn.functional.silu(block.key_value(block.norm(x))).chunk(2, dim=1)
    e = x.shape[1] // block.heads
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(block.heads):
            at = slice(h * e, (h + 1) * e)
            out = torch.zeros(e).double()
            for j in range(i + 1):
                score_ij = q[i, at] @ k[j, at] / math.sqrt(e) + block.bias.weight[i - j, h]
                out = out + torch.nn.functional.silu(score_ij) / (i + 1) * v[j, at]
            heads.append(out)
        rows.append(torch.cat(heads))
    return x + block.out(block.out_norm(torch.stack(rows)) * u)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ["sum-pooling", "din", "din, recent 6", "twin", "twin, all"])
def test_pooling_is_what_its_source_says(case: str) -> None:
    network, tables = build(case, seed=2).double(), Tables(CONFIG)
    assert isinstance(network, Pooled)
    batch = make_batch(LENGTHS, CONFIG)
    naive = []
    for i in range(len(batch)):
        tokens, globals_ = naive_parts(network, one(batch, i), tables)
        pooled = naive_pooled(network, tokens, globals_[-1])
        naive.append(network.head(torch.cat([globals_, pooled[None]])[None]))
    assert torch.allclose(network(batch, tables), torch.cat(naive), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [256, 3])
def test_hstu_is_what_its_source_says(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hstu, "BLOCK", block)
    config = replace(CONFIG, self_layers=2, num_cls=2)
    network, tables = Hstu(config, seed=2).double(), Tables(config)
    batch = make_batch([7, 0, 9, 1, 7], config)
    naive = []
    for i in range(len(batch)):
        tokens, globals_ = naive_parts(network, one(batch, i), tables)
        x = torch.cat([tokens, globals_])
        for layer in network.layers:
            assert isinstance(layer, HstuBlock)
            x = naive_hstu_layer(layer, x)
        naive.append(network.head(x[-len(globals_) :][None]))
    assert torch.allclose(network(batch, tables), torch.cat(naive), rtol=0, atol=1e-12)
    network.execution = Execution(whole_last_layer=True)
    assert torch.allclose(network(batch, tables), torch.cat(naive), rtol=0, atol=1e-12)


def test_the_transformer_is_a_plain_causal_one() -> None:
    # Torch's own encoder layers, with the same weights and the ordinary causal mask.
    config = replace(CONFIG, self_layers=2)
    network, tables = Transformer(config, seed=2).double(), Tables(config)
    batch = make_batch([7, 0, 23, 1, 20], config)
    seen: list[tuple[Tensor, Tensor]] = []
    network.head.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    logits = network(batch, tables)
    plain = [torch_layer(block) for block in (network.cross, *network.layers)]
    naive = []
    for i in range(len(batch)):
        # The naive parts need features and globals, which a Transformer has too.
        tokens, globals_ = naive_parts(network, one(batch, i), tables)  # type: ignore[arg-type]
        x = torch.cat([tokens, globals_])[None]
        mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        for layer in plain:
            x = layer(x, src_mask=mask)
        naive.append(network.head(x[:, -len(globals_) :]))
    assert torch.allclose(logits, torch.cat(naive), rtol=0, atol=1e-12)
    printed = torch.cat([naive_logit(network, one(batch, i), tables) for i in range(len(batch))])
    assert torch.allclose(logits, printed, rtol=0, atol=1e-12)


def torch_layer(block: nn.Module) -> nn.TransformerEncoderLayer:
    """Return torch's pre-norm layer with the weights of one of our blocks."""
    assert isinstance(block, Block)
    width = block.query.in_features
    layer = nn.TransformerEncoderLayer(
        width, block.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    ).double()
    ours = {
        "self_attn.in_proj_weight": torch.cat(
            [m.weight for m in (block.query, block.key, block.value)]
        ),
        "self_attn.in_proj_bias": torch.cat(
            [m.bias for m in (block.query, block.key, block.value)]
        ),
    }
    for there, module in (
        ("self_attn.out_proj", block.out),
        ("linear1", block.up),
        ("linear2", block.down),
        ("norm1", block.norm),
        ("norm2", block.ffn_norm),
    ):
        ours |= {f"{there}.weight": module.weight, f"{there}.bias": module.bias}
    layer.load_state_dict(ours)
    return layer


def test_the_transformer_serves_from_the_cache() -> None:
    network, tables = Transformer(CONFIG).double(), Tables(CONFIG)
    batch, others = make_batch([13], CONFIG), make_batch([0] * 5, CONFIG, seed=1)
    cache = encode(network, batch.user[0], history(batch, 0), tables)
    cached = score(network, cache, candidates(others), tables)
    assert torch.allclose(cached, network(for_each(batch, 0, others), tables), rtol=0, atol=1e-12)


def test_twin_keeps_the_events_that_matter_most() -> None:
    # With as many as there are it is plain attention; with fewer, what is left out does nothing.
    tables, batch = Tables(CONFIG), make_batch([20], CONFIG)
    some, all_ = Twin(CONFIG, retrieved=4).double(), Twin(CONFIG, retrieved=99).double()
    assert not torch.allclose(some(batch, tables), all_(batch, tables), atol=1e-6)
    moved = []
    for event in range(20):
        action = batch.action.clone()
        action[event] = (action[event] + 1) % CONFIG.num_actions
        other = with_columns(batch, action=action)
        changed = [n(other, tables) - n(batch, tables) for n in (some, all_)]
        moved.append([abs(float(x.detach())) > 1e-12 for x in changed])
    # A changed event may enter the four, but most of twenty do not.
    assert 4 <= sum(m[0] for m in moved) < 12
    assert all(m[1] for m in moved)


def test_equal_relevance_keeps_the_newest() -> None:
    network = Twin(CONFIG, retrieved=3).double()
    nn.init.zeros_(network.query.weight)
    tables, batch = Tables(CONFIG), make_batch([20], CONFIG)
    oldest = with_columns(batch, item=batch.item + (torch.arange(20) < 17))
    newer = with_columns(batch, item=batch.item + (torch.arange(20) == 17))
    assert torch.equal(network(oldest, tables), network(batch, tables))
    assert not torch.equal(network(newer, tables), network(batch, tables))


# Operations.


def counted(network: Baseline, lengths: list[int]) -> int:
    """Operations of matrix products and attention, as torch counts them."""
    tables = Tables(network.config)
    with FlopCounterMode(display=False) as counter:
        network(make_batch(lengths, network.config), tables)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case: str) -> None:
    lengths = [7, 0, 20, 12, 33, 12]
    network = build(case)
    theirs = counted(network, lengths)
    ours = network.flops(lengths, executed=True)
    if isinstance(network, Transformer):  # torch does not count the fused attention of a CPU
        assert theirs == ours.forward - ours.cross_attention - ours.self_attention
    else:
        assert theirs == ours.forward


def test_operations_of_a_whole_last_layer() -> None:
    for name in ("hstu", "transformer"):
        network = build(name, execution=Execution(whole_last_layer=True))
        assert network.flops([9, 4], executed=True) == network.flops([9, 4])
        pruned = build(name)
        assert pruned.flops([9, 4], executed=True).forward < pruned.flops([9, 4]).forward
    network = build("hstu", execution=Execution(whole_last_layer=True))
    assert counted(network, [9, 4]) == network.flops([9, 4]).forward


def test_hidden_pairs_that_are_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hstu, "BLOCK", 4)
    for whole in (True, False):
        network = build("hstu", execution=Execution(whole_last_layer=whole))
        executed = network.flops([9, 20], executed=True)
        assert counted(network, [9, 20]) == executed.forward
        assert executed.self_visible < executed.self_attention
        assert executed.forward < network.flops([9, 20]).forward


@pytest.mark.parametrize("case", CASES)
def test_operations_of_a_batch_are_those_of_its_samples(case: str) -> None:
    network = build(case)
    total = network.sample_flops(3) + network.sample_flops(8) + network.sample_flops(8)
    assert network.flops([8, 3, 8]) == total
    longest = network.config.max_length
    assert network.sample_flops(longest + 7) == network.sample_flops(longest)
    assert total.forward_visible <= total.forward
    assert total.training == 3 * total.forward


def test_operations_at_the_papers_size() -> None:
    # LONGER (arXiv 2505.04421), Table 2, "no merge, 2000": 3.73 GFLOPs. Three times the layers, and
    # the tenth on top that fits all rows of that table, come within 3 %.
    layers = Transformer(PAPER).sample_flops(2000).layers
    assert 3 * layers * 1.10 == pytest.approx(3.73e9, rel=0.03)
    sizes = {name: BASELINES[name](PAPER).sample_flops(2000).forward for name in NAMES}
    assert sorted(sizes, key=sizes.__getitem__) == [
        "sum-pooling",
        "twin",
        "din",
        "hstu",
        "transformer",
    ]


def last_losses(network: Baseline, *, rate: float, steps: int) -> float:
    """Return the mean loss of the last twenty steps: was the candidate the third of six items?"""
    config, tables = network.config, Tables(network.config)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    losses = []
    for i in range(steps):
        batch = make_batch([6] * 64, config, seed=i)
        seen = batch.label.bool()
        item = torch.where(seen, batch.item.view(64, 6)[:, 2], batch.candidate_item)
        batch = with_columns(batch, candidate_item=item, category=batch.item * 0)
        optimizer.zero_grad()
        value = loss(network(batch, tables), batch.label)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[0] > 0.6
    return sum(losses[-20:]) / 20


def test_din_learns_whether_the_candidate_was_seen() -> None:
    config = replace(CONFIG, num_cross=0, max_length=6, num_actions=1)
    assert last_losses(Din(config), rate=1e-2, steps=150) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "d", "rate", "steps"),
    [
        ("sum-pooling", 4, 1e-2, 300),
        ("twin", 4, 1e-2, 400),
        ("hstu", 12, 3e-3, 400),
        ("transformer", 16, 1e-3, 1200),
    ],
)
def test_the_others_learn_it_too(name: str, d: int, rate: float, steps: int) -> None:
    # Deep causal layers search for long before they find the match; then they find all of it.
    config = replace(CONFIG, d=d, num_cross=0, max_length=6, num_actions=1)
    assert last_losses(BASELINES[name](config), rate=rate, steps=steps) < 0.5
