"""A battery of operators: a digest of each one's result, and of its gradients, on this process.

Two processes that give equal digests run kernels of the same arithmetic for these operators, at
these sizes; where digests differ, the operator is named. It is how a job finds out, at its start
and without trusting a table, whether its lanes agree. Inputs are drawn by NumPy, because torch's
own ``randn`` differs between CPU capabilities too. Takes some 50 ms after torch is loaded.

Leaves out: sizes other than these. A library may change its kernel at some size, so equality here
is evidence and inequality is proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

Function = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator: ``shapes`` of its float inputs, all of which get a gradient."""

    function: Function
    shapes: tuple[tuple[int, ...], ...]


def _embedding(rows: Tensor) -> Tensor:
    index = torch.arange(200, device=rows.device).remainder(37).mul(5).remainder(rows.shape[0])
    return F.embedding(index, rows)


def _cross_entropy(logits: Tensor) -> Tensor:
    label = torch.arange(logits.shape[0], device=logits.device).remainder(2).float()
    return F.binary_cross_entropy_with_logits(logits, label, reduction="sum")


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _dropout(rows: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[rows.device.index] if rows.is_cuda else []):
        torch.manual_seed(7)
        return F.dropout(rows, 0.1)


def _batch_norm(images: Tensor) -> Tensor:
    return F.batch_norm(images, None, None, training=True)


def _conv2d(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight, padding=1)


_ROWS = ((64, 96),)
_HEADS = ((4, 4, 33, 16),) * 3

OPERATORS: Mapping[str, Operator] = {
    "add": Operator(function=lambda x, y: x * 3 + y, shapes=_ROWS * 2),
    "exp": Operator(function=torch.exp, shapes=_ROWS),
    "log1p": Operator(function=lambda x: torch.log1p(x.abs()), shapes=_ROWS),
    "sigmoid": Operator(function=torch.sigmoid, shapes=_ROWS),
    "tanh": Operator(function=torch.tanh, shapes=_ROWS),
    "gelu": Operator(function=F.gelu, shapes=_ROWS),
    "silu": Operator(function=F.silu, shapes=_ROWS),
    "sum": Operator(function=lambda x: x.sum(0), shapes=((300, 96),)),
    "mean": Operator(function=lambda x: x.mean(), shapes=((300, 96),)),
    "softmax": Operator(function=lambda x: F.softmax(x, -1), shapes=_ROWS),
    "layer_norm": Operator(function=lambda x: F.layer_norm(x, (96,)), shapes=_ROWS),
    "rms_norm": Operator(function=lambda x: F.rms_norm(x, (96,)), shapes=_ROWS),
    "matmul": Operator(function=torch.matmul, shapes=((64, 96), (96, 80))),
    "bmm": Operator(function=torch.matmul, shapes=((8, 33, 48), (8, 48, 20))),
    "linear": Operator(function=F.linear, shapes=((64, 96), (80, 96), (80,))),
    "attention": Operator(function=F.scaled_dot_product_attention, shapes=_HEADS),
    "causal_attention": Operator(function=_causal_attention, shapes=_HEADS),
    "embedding": Operator(function=_embedding, shapes=((50, 16),)),
    "cross_entropy": Operator(function=_cross_entropy, shapes=((64,),)),
    "dropout": Operator(function=_dropout, shapes=_ROWS),
    "conv2d": Operator(function=_conv2d, shapes=((2, 3, 16, 16), (8, 3, 3, 3))),
    "batch_norm": Operator(function=_batch_norm, shapes=((4, 6, 8, 8),)),
}
"""By name. ``adamw`` and ``randn``, which are no functions with gradients, come beside."""


def inputs(name: str, device: torch.device | str = "cpu") -> list[Tensor]:
    """Return the inputs of one operator, the same numbers everywhere, ready for gradients."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(seed))
    return [
        torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        .to(device)
        .requires_grad_()
        for shape in OPERATORS[name].shapes
    ]


def results(name: str, device: torch.device | str = "cpu") -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the result of one operator on its inputs, and the gradients of a weighted sum of it.

    The weights are small whole numbers, so that the sum's own gradient is exact.
    """
    given = inputs(name, device)
    out = OPERATORS[name].function(*given)
    weights = torch.arange(out.numel(), device=out.device).remainder(7).view(out.shape) - 3.0
    return out.detach(), torch.autograd.grad(out, given, grad_outputs=weights)


def digests(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return a digest (16 hexadecimal digits) of every operator and of its gradient, by name."""
    found: dict[str, str] = {}
    for name in OPERATORS:
        out, gradients = results(name, device)
        found[name] = digest(out)
        found[f"{name} gradient"] = digest(*gradients)
    found["adamw"] = digest(_adamw(device))
    generator = torch.Generator(device).manual_seed(7)
    found["randn"] = digest(torch.randn(1000, generator=generator, device=device))
    return found


def differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Return the names whose digests differ, or that only one side has, in the battery's order."""
    names = list(first) + [name for name in second if name not in first]
    return [name for name in names if first.get(name) != second.get(name)]


def digest(*tensors: Tensor) -> str:
    """Return 16 hexadecimal digits of the tensors' bits."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _adamw(device: torch.device | str) -> Tensor:
    generator = np.random.Generator(np.random.Philox(11))

    def drawn() -> Tensor:
        return torch.from_numpy(generator.standard_normal((97, 33), dtype=np.float32)).to(device)

    parameter = nn.Parameter(drawn())
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    for _ in range(3):
        parameter.grad = drawn()
        optimizer.step()
    return parameter.detach()
