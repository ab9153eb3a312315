"""Matrix products of float32 along one order.

Element (m, n) of A B, with K inner elements: K is cut into pieces of :data:`PIECE`; within a piece,
``acc = fma(a[m, k], b[k, n], acc)`` for k ascending from 0; the pieces' sums are added left to
right (``sums``). Tiles, grid and batch are not in that sentence, so they change no bit, nor do rows
of zeros behind the last k. Tensor cores are not used: their products are shorter and the order of
their sums is not documented. ``alpha`` and ``beta`` multiply and add as operations of their own.

That ``tl.dot`` with ``input_precision="ieee"`` makes such a chain is how Triton lowers it (a loop
over k within a thread); ``tests/gpu/test_d2.py`` compares it with a chain computed on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from executor.kernels.sums import add_up

PIECE = 1024
_TILE_M, _TILE_N, _TILE_K = 64, 64, 32
_WARPS = 4


@triton.jit
def _product(
    a,
    b,
    out,
    size_m,
    size_n,
    size_k,
    stride_ab,
    stride_am,
    stride_ak,
    stride_bb,
    stride_bk,
    stride_bn,
    piece: tl.constexpr,
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_k: tl.constexpr,
):
    tiles_n = tl.cdiv(size_n, tile_n)
    tile = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    m = (tile // tiles_n).to(tl.int64) * tile_m + tl.arange(0, tile_m)
    n = (tile % tiles_n).to(tl.int64) * tile_n + tl.arange(0, tile_n)
    a_rows = a + batch * stride_ab + m[:, None] * stride_am
    b_columns = b + batch * stride_bb + n[None, :] * stride_bn
    acc = tl.zeros((tile_m, tile_n), dtype=tl.float32)
    start = part * piece
    end = tl.minimum(start + piece, size_k)
    for first in range(start, end, tile_k):
        k = first + tl.arange(0, tile_k).to(tl.int64)
        left = tl.load(
            a_rows + k[None, :] * stride_ak,
            mask=(m[:, None] < size_m) & (k[None, :] < end),
            other=0.0,
        )
        right = tl.load(
            b_columns + k[:, None] * stride_bk,
            mask=(k[:, None] < end) & (n[None, :] < size_n),
            other=0.0,
        )
        acc = tl.dot(left, right, acc, input_precision="ieee")
    where = (part * tl.num_programs(1) + batch) * size_m
    tl.store(
        out + (where + m[:, None]) * size_n + n[None, :],
        acc,
        mask=(m[:, None] < size_m) & (n[None, :] < size_n),
    )


def batched(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (B, M, N) of float32 (B, M, K) and (B, K, N), whatever their strides."""
    count, size_m, size_k = a.shape
    size_n = b.shape[2]
    parts = max(1, triton.cdiv(size_k, PIECE))
    out = torch.empty((parts, count, size_m, size_n), dtype=torch.float32, device=a.device)
    if out.numel() == 0:
        return out[0]
    if size_k == 0:
        return out[0].zero_()
    tiles = triton.cdiv(size_m, _TILE_M) * triton.cdiv(size_n, _TILE_N)
    # The middle of a grid ends at 65,535; larger batches go in several launches.
    for first in range(0, count, 65_535):
        some = slice(first, min(count, first + 65_535))
        here = out if some == slice(0, count) else torch.empty_like(out[:, some].contiguous())
        _product[(tiles, some.stop - first, parts)](
            a[some],
            b[some],
            here,
            size_m,
            size_n,
            size_k,
            *a.stride(),
            *b.stride(),
            piece=PIECE,
            tile_m=_TILE_M,
            tile_n=_TILE_N,
            tile_k=_TILE_K,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
        if here is not out:
            out[:, some] = here
    if parts == 1:
        return out[0]
    return add_up(out.view(parts, -1)).view(count, size_m, size_n)


def scaled(product: Tensor, added: Tensor, beta: float, alpha: float) -> Tensor:
    """Return ``beta * added + alpha * product``, each operation rounded once."""
    if alpha != 1:
        product = product * alpha
    if beta == 0:
        return product
    return product + (added if beta == 1 else added * beta)
