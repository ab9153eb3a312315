"""Precision and recomputation, part by part; and that jagged histories cost what they hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.bench.workload import Drawn
from models.config import TINY
from models.device import deterministic
from models.longer import attention
from models.longer.attention import Segment, Segments, attend, causal_argument
from models.longer.execution import PARTS, Execution, Part
from models.longer.layout import merged_tokens
from models.longer.network import Longer, loss
from models.longer.sampling import lower_right
from models.train.config import TrainConfig, build
from models.train.state import dense_state
from models.train.step import train_step
from tests.longercases import SMALL, Tables, make_batch

LENGTHS = [7, 0, 20, 12, 1, 33]
CONFIG = replace(SMALL, inner_layers=2, self_layers=2)


def part_of(name: str) -> Part:
    """Which part of the network a module of this name belongs to."""
    first = name.partition(".")[0]
    parts: dict[str, Part] = {
        "features": "features",
        "globals": "features",
        "merge": "inner",
        "cross": "cross",
        "layers": "self",
        "head": "head",
    }
    return parts[first]


def observed(network: Longer, kind: type[nn.Module]) -> dict[str, set[torch.dtype]]:
    """What the modules of a kind give out in a forward pass, by name."""
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in network.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: seen.setdefault(name, set()).add(out.dtype)
            )
    network(make_batch(LENGTHS, CONFIG), Tables(CONFIG))
    return seen


@pytest.mark.parametrize("part", sorted(PARTS))
def test_each_part_alone_is_computed_in_half_precision(part: Part) -> None:
    network = Longer(CONFIG, execution=Execution(half=frozenset({part})))
    for name, dtypes in observed(network, nn.Linear).items():
        wanted = torch.bfloat16 if part_of(name) == part else torch.float32
        assert dtypes == {wanted}, name


def test_norms_and_what_passes_between_parts_stay_float32() -> None:
    norms = observed(Longer(CONFIG, execution=Execution(half=PARTS)), nn.LayerNorm)
    assert len(norms) == 2 * (2 + 1 + 2) + 1
    assert all(dtypes == {torch.float32} for dtypes in norms.values())
    network = Longer(CONFIG, execution=Execution(half=PARTS))
    between = observed(network, type(network.cross)) | observed(network, type(network.merge))
    assert all(dtypes == {torch.float32} for dtypes in between.values())


def test_softmax_statistics_are_float32() -> None:
    # Added up in bfloat16, 4,096 equal weights would stop growing at 256.
    keys = 4096
    segments = Segments.of([Segment(1, 1, keys, lower_right(1, keys))], device=torch.device("cpu"))
    q = torch.zeros(1, 1, 16, dtype=torch.bfloat16)
    v = torch.rand(keys, 1, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    mean = v.double().mean(0).flatten()
    out = attend(q, torch.zeros_like(v), v, segments).double().flatten()
    assert (out - mean).abs().max() < 2**-8
    total, one = torch.zeros((), dtype=torch.bfloat16), torch.ones((), dtype=torch.bfloat16)
    for _ in range(keys):
        total = total + one
    assert float(total) == 256


def test_loss_gradients_parameters_and_moments_are_float32() -> None:
    config = TrainConfig(model=TINY, execution=Execution(half=PARTS), global_batch=6)
    state = config.state(build(config, 0), 0)
    batch = Drawn(max_length=64, min_length=0).batch(range(6))
    logits = state.network(batch, state.tables)
    value = loss(logits, batch.label)
    assert (logits.dtype, value.dtype) == (torch.float32, torch.float32)
    torch.autograd.backward(value)
    gradients = [p.grad for p in state.network.parameters()]
    assert {g.dtype for g in gradients if g is not None} == {torch.float32}
    sparse = state.tables.gradients()
    assert {g.grads.dtype for g in sparse.values()} == {torch.float32}
    train_step(state, [batch])
    assert {t.dtype for t in dense_state(state).values()} == {torch.float32}
    assert {t.state().records.dtype for t in state.tables.tables.values()} == {torch.float32}


def test_the_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    logits = torch.tensor([0.1, -3.0], dtype=torch.bfloat16)
    label = torch.tensor([1.0, 0.0])
    assert torch.equal(loss(logits, label), loss(logits.float(), label))


def kept_bytes(execution: Execution) -> int:
    """What a forward pass keeps for the backward pass."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    network = Longer(CONFIG, execution=execution)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(make_batch([20] * 8, CONFIG), Tables(CONFIG))
    return total


@pytest.mark.parametrize("part", sorted(PARTS))
def test_each_part_alone_forgets_its_activations(part: Part) -> None:
    only = Execution(recompute=frozenset({part}), keep_attention=False)
    assert kept_bytes(Execution(recompute=PARTS, keep_attention=False)) < kept_bytes(only)
    assert kept_bytes(only) < kept_bytes(Execution())


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How often attention's forward operator runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += str(func) == "aten._scaled_dot_product_flash_attention_for_cpu.default"
        return func(*args, **(kwargs or {}))


def attention_calls(execution: Execution) -> int:
    network = Longer(CONFIG, execution=execution)
    batch, tables = make_batch([20] * 3, CONFIG), Tables(CONFIG)
    count = _Count()
    with count:
        torch.autograd.backward(loss(network(batch, tables), batch.label))
    return count.calls


def test_recomputation_keeps_attention_unless_told_otherwise() -> None:
    plain = attention_calls(Execution())
    assert plain > 0
    assert attention_calls(Execution(recompute=PARTS)) == plain
    assert attention_calls(Execution(recompute=PARTS, keep_attention=False)) == 2 * plain


def rows_seen(lengths: list[int]) -> dict[str, int]:
    """How many rows each linear map is given for a batch of histories."""
    network = Longer(CONFIG)
    seen: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda m, i, _o, name=name: seen.update(
                    {name: seen.get(name, 0) + i[0].numel() // m.in_features}
                )
            )
    network(make_batch(lengths, CONFIG), Tables(CONFIG))
    return seen


def test_no_row_is_a_padded_one() -> None:
    lengths = [7, 0, 20, 12, 1, 20]
    seen = rows_seen(lengths)
    events, samples, m = sum(lengths), len(lengths), CONFIG.num_globals
    merged = [merged_tokens(n, CONFIG) for n in lengths]
    chosen = sum(min(CONFIG.queries, n) for n in merged)
    assert seen["features.mlp.first"] == events
    for name in ("query", "key", "value", "out", "up", "down"):
        assert seen[f"merge.blocks.0.{name}"] == events
        assert seen[f"merge.blocks.1.{name}"] == events
    for name in ("key", "value"):
        assert seen[f"cross.{name}"] == sum(merged) + samples * m
        assert seen[f"layers.1.{name}"] == chosen + samples * m
    for name in ("query", "out", "up", "down"):
        assert seen[f"cross.{name}"] == chosen + samples * m
        assert seen[f"layers.0.{name}"] == chosen + samples * m
        assert seen[f"layers.1.{name}"] == samples * m  # the last layer, for the head's rows alone
    padded = rows_seen([max(lengths)] * samples)
    assert padded["features.mlp.first"] == 120 > 2 * 0.9 * events


def test_samples_beyond_one_call_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(5, 3, 4), (9, 2, 7)]
    parts = [Segment(b, n, s, lower_right(n, s)) for b, n, s in shapes]
    segments = Segments.of(parts, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(b * n for b, n, _ in shapes), 2, 8, generator=generator)
    k, v = (
        torch.randn(sum(b * s for b, _, s in shapes), 2, 8, generator=generator) for _ in range(2)
    )
    whole = attend(q, k, v, segments)
    monkeypatch.setattr(attention, "MOST_SAMPLES", 4)
    assert torch.equal(attend(q, k, v, segments), whole)
    stretches = attention._stretches(parts, torch.device("cpu"))
    assert [s.query_rows for s in stretches] == [12, 3 + 6, 8, 4]
    assert [s.key_rows for s in stretches] == [16, 4 + 21, 28, 14]
    assert stretches[1].cumulative_queries.tolist() == [0, 3, 5, 7, 9]
    assert (stretches[1].most_queries, stretches[1].most_keys) == (3, 7)


def test_deterministic_algorithms_are_put_back_as_they_were() -> None:
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    cpu = torch.device("cpu")
    with deterministic(cpu):
        assert torch.are_deterministic_algorithms_enabled()
        assert not settings.fill_uninitialized_memory
        with deterministic(cpu, strict=False):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert settings.fill_uninitialized_memory == before


def test_both_names_of_the_causal_mask_are_known() -> None:
    def old(q: Tensor, is_causal: bool = False) -> None: ...
    def new(q: Tensor, *, window_size: tuple[int, int] = (-1, -1)) -> None: ...

    assert causal_argument(old, causal=True) == {"is_causal": True}
    assert causal_argument(new, causal=True) == {"window_size": (-1, 0)}
    assert causal_argument(new, causal=False) == {"window_size": (-1, -1)}
