"""LONGER on a CUDA device: the variable-length kernel agrees with the segments, and bits repeat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import TINY
from models.longer import attention
from models.longer.attention import Segment, Segments, attend
from models.longer.execution import PARTS, Execution
from models.longer.network import Longer, loss
from models.longer.sampling import lower_right
from tests.longercases import Tables, make_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [7, 0, 64, 12, 1, 90, 12, 3, 11]


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("causal", [True, False])
def test_the_variable_length_kernel_agrees_with_the_segments(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    shapes = [(3, 2, 5), (1, 4, 4), (2, 3, 17)] if causal else [(3, 8, 8), (2, 5, 5)]
    parts = [Segment(b, n, s, lower_right(n, s) if causal else None) for b, n, s in shapes]
    segments = Segments.of(parts, device=device)
    generator = torch.Generator(device).manual_seed(0)
    query_rows, key_rows = sum(b * n for b, n, _ in shapes), sum(b * s for b, _, s in shapes)

    def rows(count: int) -> Tensor:
        return torch.randn(
            count, 2, 16, device=device, dtype=torch.bfloat16, generator=generator
        ).requires_grad_()

    q, k, v = rows(query_rows), rows(key_rows), rows(key_rows)
    results = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(attention, "_variable_length_serves", lambda *_: False)
        out = attend(q, k, v, segments)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("half", [frozenset(), PARTS])
def test_the_same_step_gives_the_same_bits(half: frozenset[str]) -> None:
    config = replace(TINY, inner_layers=1)
    parts = frozenset(part for part in PARTS if part in half)
    results = []
    for _ in range(2):
        network = Longer(config, execution=Execution(half=parts)).cuda()
        tables = Tables(config)
        tables.rows = {name: rows.cuda() for name, rows in tables.rows.items()}
        batch = make_batch(LENGTHS, config).to("cuda")
        logits = network(batch, tables)
        gradients = torch.autograd.grad(loss(logits, batch.label), list(network.parameters()))
        results.append([logits, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    exact = Longer(config)(make_batch(LENGTHS, config), Tables(config))
    assert torch.allclose(results[0][0].cpu(), exact, rtol=0, atol=0.05 if half else 1e-4)
