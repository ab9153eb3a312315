"""Operations on the rows of a matrix: softmax, layer norm, RMS norm, and their gradients.

Every sum over a row is the tree of neighbours (``arithmetic.tree_sum``) over the row, continued
with zeros to a power of two. A row's result depends on that row alone. Means are sums divided by
the row's length; variances are of differences from the mean; reciprocal roots are a square root and
a division, each rounded once. The sums over rows, for the gradients of weight and bias, are those
of ``sums``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from executor.kernels.arithmetic import exp_, log_, tree_sum
from executor.kernels.sums import add_up
from traces.errors import DataError

LONGEST_ROW = 65_536
_AT_ONCE = 2048  # elements that one program holds, if a row is shorter


@triton.jit
def _softmax(
    x,
    out,
    rows,
    columns,
    logarithm: tl.constexpr,
    at_once: tl.constexpr,
    size: tl.constexpr,
    levels: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    column = tl.arange(0, size)
    there = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    value = tl.load(x + place, mask=there, other=-float("inf"))
    most = tl.max(value, axis=1)
    # A row of -inf alone is not a number throughout, as in torch; rows behind the last are 0.
    less = value - most[:, None]
    power = tl.where(there, exp_(less), 0.0)
    total = tree_sum(power, at_once, size, levels)
    if logarithm:
        result = less - log_(total)[:, None]
    else:
        result = tl.div_rn(power, tl.broadcast_to(total[:, None], (at_once, size)))
    tl.store(out + place, result, mask=there)


@triton.jit
def _softmax_gradient(
    gradient,
    y,
    out,
    rows,
    columns,
    logarithm: tl.constexpr,
    at_once: tl.constexpr,
    size: tl.constexpr,
    levels: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    column = tl.arange(0, size)
    there = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    g = tl.load(gradient + place, mask=there, other=0.0)
    value = tl.load(y + place, mask=there, other=0.0)
    if logarithm:
        total = tree_sum(g, at_once, size, levels)
        result = g - exp_(value) * total[:, None]
    else:
        total = tree_sum(g * value, at_once, size, levels)
        result = (g - total[:, None]) * value
    tl.store(out + place, result, mask=there)


@triton.jit
def _norm(
    x,
    weight,
    bias,
    out,
    mean_out,
    scale_out,
    rows,
    columns,
    eps,
    centred: tl.constexpr,
    weighted: tl.constexpr,
    biased: tl.constexpr,
    at_once: tl.constexpr,
    size: tl.constexpr,
    levels: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    column = tl.arange(0, size)
    there = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    value = tl.load(x + place, mask=there, other=0.0)
    length = tl.full((at_once,), 1.0, tl.float32) * columns
    if centred:
        mean = tl.div_rn(tree_sum(value, at_once, size, levels), length)
        tl.store(mean_out + row, mean, mask=row < rows)
        value = tl.where(there, value - mean[:, None], 0.0)
    variance = tl.div_rn(tree_sum(value * value, at_once, size, levels), length)
    scale = tl.div_rn(tl.full((at_once,), 1.0, tl.float32), tl.sqrt_rn(variance + eps))
    tl.store(scale_out + row, scale, mask=row < rows)
    result = value * scale[:, None]
    if weighted:
        result = result * tl.load(weight + column, mask=column < columns, other=0.0)[None, :]
    if biased:
        result = result + tl.load(bias + column, mask=column < columns, other=0.0)[None, :]
    tl.store(out + place, result, mask=there)


@triton.jit
def _norm_gradient(
    gradient,
    x,
    mean,
    scale,
    weight,
    out,
    weight_part,
    rows,
    columns,
    centred: tl.constexpr,
    weighted: tl.constexpr,
    at_once: tl.constexpr,
    size: tl.constexpr,
    levels: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    column = tl.arange(0, size)
    there = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    g = tl.load(gradient + place, mask=there, other=0.0)
    value = tl.load(x + place, mask=there, other=0.0)
    by = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    if centred:
        value = value - tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
    normed = tl.where(there, value * by, 0.0)
    tl.store(weight_part + place, g * normed, mask=there)
    if weighted:
        g = g * tl.load(weight + column, mask=column < columns, other=0.0)[None, :]
    length = tl.full((at_once,), 1.0, tl.float32) * columns
    along = tl.div_rn(tree_sum(g * normed, at_once, size, levels), length)
    rest = g - normed * along[:, None]
    if centred:
        rest = rest - tl.div_rn(tree_sum(g, at_once, size, levels), length)[:, None]
    tl.store(out + place, rest * by, mask=there)


def _launch(kernel: Any, x: Tensor, *given: Any, **constants: Any) -> None:
    rows, columns = x.shape
    if columns > LONGEST_ROW:
        raise DataError(
            "level D2: a row is too long for its kernels",
            value=columns,
            expected=f"at most {LONGEST_ROW} elements",
        )
    size = max(2, triton.next_power_of_2(columns))
    at_once = max(1, _AT_ONCE // size)
    kernel[(triton.cdiv(rows, at_once),)](
        *given,
        **constants,
        at_once=at_once,
        size=size,
        levels=size.bit_length() - 1,
        num_warps=4 if size <= 4096 else 16,
        enable_fp_fusion=False,
    )


def softmax(x: Tensor, *, logarithm: bool = False) -> Tensor:
    """Return the softmax of the rows of x (R, C), or its logarithm."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _launch(_softmax, x, x, out, *x.shape, logarithm=logarithm)
    return out


def softmax_gradient(gradient: Tensor, y: Tensor, *, logarithm: bool = False) -> Tensor:
    """Return the gradient at the input, of that at the result y (R, C) of :func:`softmax`."""
    gradient, y = gradient.contiguous(), y.contiguous()
    out = torch.empty_like(y)
    if y.numel():
        _launch(_softmax_gradient, y, gradient, y, out, *y.shape, logarithm=logarithm)
    return out


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised rows of x (R, C), the means (R,) and the reciprocal deviations (R,).

    ``centred``: layer norm; otherwise RMS norm, whose means are left at 0.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    mean = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    scale = torch.zeros_like(mean)
    if x.numel():
        _launch(
            _norm,
            x,
            x,
            x if weight is None else weight.contiguous(),
            x if bias is None else bias.contiguous(),
            out,
            mean,
            scale,
            *x.shape,
            eps,
            centred=centred,
            weighted=weight is not None,
            biased=bias is not None,
        )
    return out, mean, scale


def norm_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients at x (R, C), weight (C,) and bias (C,) of :func:`norm`."""
    gradient, x = gradient.contiguous(), x.contiguous()
    out, weight_part = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        _launch(
            _norm_gradient,
            x,
            gradient,
            x,
            mean.contiguous(),
            scale.contiguous(),
            x if weight is None else weight.contiguous(),
            out,
            weight_part,
            *x.shape,
            centred=centred,
            weighted=weight is not None,
        )
    return out, add_up(weight_part), add_up(gradient)
