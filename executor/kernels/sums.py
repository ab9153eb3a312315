"""Sums along an axis, and the gradient of an embedding: additions in a stated order.

A column of R numbers is cut into pieces of :data:`PIECE`; a piece is added from its first number to
its last, beginning with 0; the pieces' sums are a column again, until one number is left. Zeros
behind the last number change nothing. Float32 and float64.

The gradient of an embedding is a sum of rows by index: positions are sorted by (index, position),
and each index adds its rows in that order, one after another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 128
_COLUMNS = 128


@triton.jit
def _fold(
    x,
    out,
    rows,
    columns,
    stride_row,
    stride_column,
    piece: tl.constexpr,
    width: tl.constexpr,
):
    part = tl.program_id(1)
    column = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    start = part * piece
    acc = tl.zeros((width,), dtype=x.dtype.element_ty)
    place = x + start.to(tl.int64) * stride_row + column * stride_column
    for _ in range(start, tl.minimum(start + piece, rows)):
        acc += tl.load(place, mask=column < columns, other=0.0)
        place += stride_row
    tl.store(out + part.to(tl.int64) * columns + column, acc, mask=column < columns)


def add_up(x: Tensor) -> Tensor:
    """Return the sums (C,) of the columns of x (R, C), of float32 or float64."""
    rows, columns = x.shape
    if rows == 0 or columns == 0:
        return x.new_zeros(columns)
    while True:
        parts = triton.cdiv(rows, PIECE)
        out = torch.empty((parts, columns), dtype=x.dtype, device=x.device)
        _fold[(triton.cdiv(columns, _COLUMNS), parts)](
            x,
            out,
            rows,
            columns,
            *x.stride(),
            piece=PIECE,
            width=_COLUMNS,
            num_warps=4,
            enable_fp_fusion=False,
        )
        if parts == 1:
            return out[0]
        x, rows = out, parts


def over(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """Return the sum of x over some axes (none given: all), in their order, the first slowest."""
    reduced = sorted(d % max(x.dim(), 1) for d in dims) if dims else list(range(x.dim()))
    kept = [d for d in range(x.dim()) if d not in reduced]
    shape = [x.shape[d] for d in kept]
    columns = 1
    for size in shape:
        columns *= size
    matrix = x.permute([*reduced, *kept]).reshape(-1, columns) if x.dim() else x.view(1, 1)
    out = add_up(matrix)
    if keepdim:
        return out.view([1 if d in reduced else x.shape[d] for d in range(x.dim())])
    return out.view(shape)


@triton.jit
def _segments(
    gradient,
    order,
    bounds,
    out,
    columns,
    width: tl.constexpr,
):
    index = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    start = tl.load(bounds + index)
    end = tl.load(bounds + index + 1)
    acc = tl.zeros((width,), dtype=tl.float32)
    for at in range(start, end):
        row = tl.load(order + at)
        acc += tl.load(gradient + row * columns + column, mask=column < columns, other=0.0)
    tl.store(out + index * columns + column, acc, mask=column < columns)


def by_index(gradient: Tensor, index: Tensor, count: int) -> Tensor:
    """Return (count, C): row i is the sum of the rows of ``gradient`` (N, C) whose index is i."""
    columns = gradient.shape[1]
    out = torch.empty((count, columns), dtype=torch.float32, device=gradient.device)
    if out.numel() == 0:
        return out
    ordered, order = torch.sort(index, stable=True)
    bounds = torch.searchsorted(
        ordered, torch.arange(count + 1, dtype=ordered.dtype, device=ordered.device)
    )
    for first in range(0, count, 65_535):
        stop = min(count, first + 65_535)
        _segments[(triton.cdiv(columns, _COLUMNS), stop - first)](
            gradient.contiguous(),
            order,
            bounds[first:],
            out[first:],
            columns,
            width=_COLUMNS,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out
