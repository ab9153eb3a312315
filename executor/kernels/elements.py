"""Element by element: exponentials, gates and their gradients, and dropout by counter.

Dropout: element i is kept if the Philox word (Salmon et al., SC'11; ``tl.philox``) of key ``seed``
and counter (i, offset) is at least p; torch's own CUDA dropout gives each *thread* a counter, so
its masks change with the number of threads that a GPU's size allows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from executor.kernels.arithmetic import erf_, exp_, log1p_, sigmoid_, tanh_

_WIDTH = 1024
EXP: int = 0
SIGMOID: int = 1
TANH: int = 2
GELU: int = 3
GELU_TANH: int = 4
SILU: int = 5
LOG_SIGMOID: int = 6


@triton.jit
def _forward(x, out, count, which: tl.constexpr, width: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    value = tl.load(x + place, mask=place < count, other=0.0)
    if which == 0:
        result = exp_(value)
    elif which == 1:
        result = sigmoid_(value)
    elif which == 2:
        result = tanh_(value)
    elif which == 3:
        result = (0.5 * value) * (1.0 + erf_(value * 0.7071067811865476))
    elif which == 4:
        cube = value * value * value
        inner = 0.7978845608028654 * (value + 0.044715 * cube)
        result = (0.5 * value) * (1.0 + tanh_(inner))
    elif which == 5:
        result = value * sigmoid_(value)
    else:
        result = tl.minimum(value, 0.0) - log1p_(exp_(-tl.abs(value)))
    tl.store(out + place, result, mask=place < count)


@triton.jit
def _backward(gradient, x, out, count, which: tl.constexpr, width: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    value = tl.load(x + place, mask=place < count, other=0.0)
    g = tl.load(gradient + place, mask=place < count, other=0.0)
    if which == 3:
        below = 0.5 * (1.0 + erf_(value * 0.7071067811865476))
        density = exp_(-0.5 * (value * value)) * 0.3989422804014327
        slope = below + value * density
    elif which == 4:
        square = value * value
        inner = 0.7978845608028654 * (value + 0.044715 * (square * value))
        t = tanh_(inner)
        inner_slope = 0.7978845608028654 * (1.0 + 0.134145 * square)
        slope = 0.5 * (1.0 + t) + (0.5 * value) * ((1.0 - t * t) * inner_slope)
    elif which == 5:
        s = sigmoid_(value)
        slope = s * (1.0 + value * (1.0 - s))
    else:
        slope = sigmoid_(-value)
    tl.store(out + place, g * slope, mask=place < count)


@triton.jit(do_not_specialize=["seed", "offset"])
def _dropout(x, out, kept, count, p, scale, seed, offset, width: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    value = tl.load(x + place, mask=place < count, other=0.0)
    low = place.to(tl.int32)
    high = (place >> 32).to(tl.int32)
    nothing = low * 0
    word, _, _, _ = tl.philox(seed, low, high, nothing + offset, nothing)
    keep = tl.uint_to_uniform_float(word) >= p
    tl.store(out + place, tl.where(keep, value * scale, 0.0), mask=place < count)
    tl.store(kept + place, keep, mask=place < count)


def forward(x: Tensor, which: int) -> Tensor:
    """Return a function, ``EXP`` to ``LOG_SIGMOID``, of every element."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), _WIDTH),)
        _forward[grid](x, out, x.numel(), which, _WIDTH, num_warps=4, enable_fp_fusion=False)
    return out


def backward(gradient: Tensor, x: Tensor, which: int) -> Tensor:
    """Return the gradient at x of ``GELU``, ``GELU_TANH``, ``SILU`` or ``LOG_SIGMOID``."""
    gradient, x = gradient.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), _WIDTH),)
        _backward[grid](
            gradient, x, out, x.numel(), which, _WIDTH, num_warps=4, enable_fp_fusion=False
        )
    return out


def dropout(x: Tensor, p: float, *, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    """Return x with elements dropped and the others scaled by 1 / (1 - p), and which were kept.

    ``seed``: 64 bits; ``offset``: 31 bits that tell one dropout of a step from the next.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    kept = torch.empty_like(x, dtype=torch.bool)
    if x.numel():
        scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
        grid = (triton.cdiv(x.numel(), _WIDTH),)
        _dropout[grid](
            x,
            out,
            kept,
            x.numel(),
            p,
            scale,
            seed,
            offset & 0x7FFFFFFF,
            _WIDTH,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out, kept
