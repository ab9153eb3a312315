"""LONGER on a CUDA device: kernels agree with one another and with the CPU, and bits repeat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import TINY, Sampling
from models.longer import attention
from models.longer.attention import MOST_SAMPLES, Segment, Segments, attend
from models.longer.execution import PARTS, Execution
from models.longer.network import Longer, loss
from models.longer.sampling import lower_right
from tests.gpucases import DEVICE, GPU, network_on_device, same_bits, tables_on_device
from tests.longercases import SAMPLINGS, Tables, make_batch

pytestmark = GPU
LENGTHS = [7, 0, 64, 12, 1, 90, 12, 3, 11]
CAUSAL = [(3, 2, 5), (1, 4, 4), (2, 3, 17), (2, 60, 200)]
FULL = [(3, 8, 8), (2, 5, 5), (1, 3, 3)]


def attended(
    segments: Segments,
    shapes: list[tuple[int, int, int]],
    width: int,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:
    """Attention and its gradients in some precision, for the same bfloat16 rows every time."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def rows(count: int) -> Tensor:
        drawn = torch.randn(count, 2, width, device=DEVICE, generator=generator)
        return drawn.bfloat16().to(dtype).requires_grad_()

    q = rows(sum(b * n for b, n, _ in shapes))
    k, v = (rows(sum(b * s for b, _, s in shapes)) for _ in range(2))
    out = attend(q, k, v, segments)
    wide = torch.promote_types(dtype, torch.float32)
    return [out, *torch.autograd.grad(out.to(wide).square().sum(), (q, k, v))]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error of the tensors, each over its tensor's size."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def segments_of(shapes: list[tuple[int, int, int]], causal: bool) -> Segments:
    parts = [Segment(b, n, s, lower_right(n, s) if causal else None) for b, n, s in shapes]
    return Segments.of(parts, device=DEVICE)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the kernel is CUDA's")
@pytest.mark.parametrize("width", [8, 32, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_the_variable_length_kernel_agrees_with_the_segments(
    causal: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = CAUSAL if causal else FULL
    segments = segments_of(shapes, causal)
    calls: list[int] = []
    at_once = attention._attend_at_once

    def counted(q: Tensor, k: Tensor, v: Tensor, held: Segments) -> Tensor:
        calls.append(1)
        return at_once(q, k, v, held)

    monkeypatch.setattr(attention, "_attend_at_once", counted)
    fused = attended(segments, shapes, width)
    assert calls == [1]
    assert same_bits(fused, attended(segments, shapes, width))
    monkeypatch.setattr(attention, "_variable_length_serves", lambda *_: False)
    one_by_one = attended(segments, shapes, width)
    assert len(calls) == 2
    # By size, not entry by entry: a sum that cancels keeps the rounding of what was added.
    exact = [x.detach() for x in attended(segments, shapes, width, torch.float64)]
    wrong = attended(segments_of(shapes, not causal), shapes, width)
    with torch.no_grad():
        assert error(fused, exact) < 0.01
        assert error(one_by_one, exact) < 0.01
        # The other alignment of the mask would not have passed.
        assert error(wrong, exact) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_samples_than_a_kernel_takes_at_once(dtype: torch.dtype) -> None:
    # 65,536 merge groups of a batch and more: launched at once, the kernels fail.
    groups = 66_000 if DEVICE.type == "cuda" else MOST_SAMPLES + 10
    segments = Segments.of([Segment(groups, 8, 8, None)], device=DEVICE)
    last = Segments.of([Segment(100, 8, 8, None)], device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    rows = torch.randn(groups * 8, 1, 8, device=DEVICE, generator=generator).to(dtype)
    rows.requires_grad_()
    out = attend(rows, rows, rows, segments)
    (grad,) = torch.autograd.grad(out.float().square().sum(), (rows,))
    tail = rows.detach()[-800:].requires_grad_()
    alone = attend(tail, tail, tail, last)
    (grad_alone,) = torch.autograd.grad(alone.float().square().sum(), (tail,))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for a, b in ((out[-800:], alone), (grad[-800:], grad_alone)):
        assert torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def step(execution: Execution, how: Sampling = "recent", *, seed: int = 0) -> list[Tensor]:
    """Logits and all gradients of a jagged batch."""
    config = replace(TINY, inner_layers=1, sampling=how, dropout=0.1)
    torch.manual_seed(3)
    network = network_on_device(config, execution=execution, seed=seed)
    tables = tables_on_device(config, torch.float32)
    rows = [table.requires_grad_() for table in tables.rows.values()]
    batch = make_batch(LENGTHS, config).to(DEVICE)
    logits = network(batch, tables)
    wanted = [*network.parameters(), *rows]
    found = torch.autograd.grad(loss(logits, batch.label), wanted, allow_unused=True)
    return [logits, *(g for g in found if g is not None)]


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("half", [False, True])
def test_the_same_step_gives_the_same_bits(half: bool, how: Sampling) -> None:
    execution = Execution(half=PARTS if half else frozenset())
    once = step(execution, how)
    for _ in range(3):
        assert same_bits(once, step(execution, how))
    assert not same_bits(once, step(execution, how, seed=1))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_recomputation_changes_no_bit(half: bool, keep: bool) -> None:
    parts = PARTS if half else frozenset[str]()
    plain = step(Execution(half=frozenset(p for p in PARTS if p in parts)))
    again = step(
        Execution(
            half=frozenset(p for p in PARTS if p in parts), recompute=PARTS, keep_attention=keep
        )
    )
    assert same_bits(plain, again)


@pytest.mark.parametrize("how", SAMPLINGS)
def test_the_device_computes_what_the_cpu_does(how: Sampling) -> None:
    config = replace(TINY, sampling=how)
    batch = make_batch(LENGTHS, config)
    exact = Longer(config).double()(batch, Tables(config))
    network, there = network_on_device(config), batch.to(DEVICE)
    double = network.double()(there, tables_on_device(config)).cpu()
    assert torch.allclose(double, exact, rtol=0, atol=1e-12)
    single = network.float()(there, tables_on_device(config)).cpu()
    assert torch.allclose(single.double(), exact, rtol=0, atol=1e-4)
    network.execution = Execution(half=PARTS)
    half = network(there, tables_on_device(config)).cpu()
    assert 0 < (half - exact).abs().max() < 0.05


def test_gradients_agree_with_differences() -> None:
    config = replace(TINY, d=2, heads=1, merge=2, queries=2, max_length=6, head_hidden=(3,))
    network, tables = network_on_device(config, seed=1).double(), tables_on_device(config)
    batch = make_batch([5, 0, 3, 1], config).to(DEVICE)
    parameters = [*network.parameters()]

    def value(*_: Tensor) -> Tensor:
        return loss(network(batch, tables), batch.label)

    assert torch.autograd.gradcheck(value, parameters, fast_mode=True)
