"""Gradients of rows, and the one order in which they are summed.

An id may occur many times in a batch, and on many logical workers. Its gradient is a sum with one
fixed parenthesisation, made of elementwise additions only (no atomics, no library reduction), so
its bits do not depend on threads, on the device, or on who adds up what:

* inside a lookup, the occurrences of an id, numbered 0, 1, ... by position in the batch;
* inside a step of one logical worker, the lookups of a table, numbered by call;
* over logical workers, their virtual ranks.

Each of the three is the same binary tree over the numbers: level by level, the nodes ``2 j`` and
``2 j + 1`` become node ``j``; a number that is absent adds nothing. A device that holds the
ranks ``lo..hi - 1`` may close the subtrees that lie wholly inside this block, and must not add
anything else (DESIGN: reduction that does not depend on placement); the partial sums of all
devices, put together in any order, then give the bits of the whole tree.

Leaves out: who sends partial sums to whom, which is the executor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseGradient:
    """Partial sums of one table, sorted by (id, order key), no pair twice.

    ``ids`` (P,) int64; ``order_key`` (P,) int64: a virtual rank inside the aligned block of ranks
    that the partial sum covers; ``grads`` (P, dim) float32; ``sightings`` (P,) int64: how often the
    id occurred in what was summed.
    """

    ids: Tensor
    order_key: Tensor
    grads: Tensor
    sightings: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """Ids sorted and without repetition, and the way back.

    ``ids`` (U,) ascending; ``inverse`` (N,): where each of the N ids stands in ``ids``; ``order``
    (N,): positions by (id, position); ``group`` (N,): ``inverse[order]``; ``ordinal`` (N,): number
    of the occurrence of its id, in that order; ``counts`` (U,): occurrences.
    """

    ids: Tensor
    inverse: Tensor
    order: Tensor
    group: Tensor
    ordinal: Tensor
    counts: Tensor


def unique(ids: Tensor) -> Unique:
    """Sort ``ids`` (N,) int64 by (id, position)."""
    ordered, order = torch.sort(ids, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = first.nonzero().squeeze(1)
    group = torch.cumsum(first, 0) - 1
    inverse = torch.empty_like(order)
    inverse[order] = group
    place = torch.arange(len(ordered), device=ids.device)
    ends = torch.cat((starts[1:], starts.new_tensor([len(ordered)])))
    return Unique(
        ids=ordered[starts],
        inverse=inverse,
        order=order,
        group=group,
        ordinal=place - starts[group],
        counts=ends - starts,
    )


def tree_sum(
    group: Tensor,
    number: Tensor,
    values: Tensor,
    *,
    block: tuple[int, int] | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum ``values`` (N, ...) inside each group along the binary tree over ``number``.

    ``group`` and ``number`` (N,) int64, sorted by (group, number), numbers 0 or more and no pair
    twice. ``block`` = (lo, hi) closes only subtrees inside these numbers, of the tree over
    0..size-1; None closes all. Returns ``kept`` (M,), the places whose partial sums remain, and the
    sums (M, ...). Pure.
    """
    sums = values.clone()
    kept = torch.ones(len(group), dtype=torch.bool, device=group.device)
    live = torch.arange(len(group), device=group.device)
    height = int(number.max()).bit_length() if len(number) else 0
    for level in range(1, height + 1):
        live = live[_in_company(group[live])]
        if not len(live):
            break
        of, parent = group[live], number[live] >> level
        right = (of[1:] == of[:-1]) & (parent[1:] == parent[:-1])
        if block is not None:
            low = parent[1:] << level
            high = low + (1 << level)
            if size is not None:
                high = high.clamp(max=size)
            right &= (low >= block[0]) & (high <= block[1])
        # A node has at most two children, so no place is a left and a right one, or twice either.
        pair = right.nonzero().squeeze(1)
        left_place, right_place = live[pair], live[pair + 1]
        pairs = sums.index_select(0, left_place) + sums.index_select(0, right_place)
        sums.index_copy_(0, left_place, pairs)
        kept[right_place] = False
        still = torch.ones_like(live, dtype=torch.bool)
        still[pair + 1] = False
        live = live[still]
    place = kept.nonzero().squeeze(1)
    return place, sums.index_select(0, place)


def _in_company(group: Tensor) -> Tensor:
    """Which places of a sorted column have a neighbour of the same group."""
    same = torch.zeros(len(group) + 1, dtype=torch.bool, device=group.device)
    same[1:-1] = group[1:] == group[:-1]
    return same[1:] | same[:-1]


class _Gather(torch.autograd.Function):
    """Rows for positions, whose backward sums the positions of a row along the tree."""

    @staticmethod
    def forward(ctx: Any, rows_UD: Tensor, index: Unique) -> Tensor:  # noqa: N803
        ctx.index = index
        return rows_UD.index_select(0, index.inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:  # noqa: N803
        return occurrence_sums(grad_ND, ctx.index), None


def occurrence_sums(values_ND: Tensor, index: Unique) -> Tensor:  # noqa: N803
    """Sum the rows of each id along the binary tree over its occurrences: (N, D) to (U, D).

    The bits of ``tree_sum`` over (group, ordinal), sooner: occurrences are numbered without gaps,
    so an id's tree is a stretch of a power of two rows, and each level of all trees is one addition
    of whole tensors. Occurrences that are absent are -0.0, which added to anything changes no bit.
    """
    counts = index.counts
    starts = torch.cumsum(counts, 0) - counts
    height = torch.frexp((counts - 1).double()).exponent  # exact: the bits of counts - 1
    by_height = torch.argsort(height, stable=True)
    ids = torch.bincount(height).tolist()  # how many trees of each height
    rows, absent = _stretches(
        starts[by_height],
        counts[by_height],
        height[by_height],
        sum(count << level for level, count in enumerate(ids)),
    )
    block = values_ND.index_select(0, index.order[rows]).index_fill_(0, absent, -0.0)
    sums = []
    for closed in ids:
        sums.append(block[:closed])
        block = block[closed:]
        block = block[0::2].add_(block[1::2])
    return torch.cat(sums).index_select(0, torch.argsort(by_height)) if sums else values_ND


def _stretches(start: Tensor, count: Tensor, height: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Give each of some ids 2^height rows: return their places in id order, and which are absent.

    An absent one's place is its id's first.
    """
    width = torch.ones_like(start) << height
    owner = torch.repeat_interleave(width, output_size=total)
    slot = torch.arange(total, device=start.device) - (torch.cumsum(width, 0) - width)[owner]
    absent = slot >= count[owner]
    return start[owner] + slot.masked_fill_(absent, 0), absent.nonzero().squeeze(1)


def gather(rows_UD: Tensor, index: Unique) -> Tensor:  # noqa: N803
    """Return the rows (N, D) of all positions; the gradient of ``rows_UD`` is summed in order."""
    rows: Tensor = _Gather.apply(rows_UD, index)  # type: ignore[no-untyped-call]
    return rows


def accumulate(
    ids: Tensor,
    grads: Tensor,
    order_key: Tensor,
    *,
    sightings: Tensor | None = None,
    block: tuple[int, int] | None = None,
    num_ranks: int | None = None,
) -> SparseGradient:
    """Sum partial sums over virtual ranks: all of them, or what a device may sum by itself.

    ``ids`` (P,) int64, ``grads`` (P, dim) float32, ``order_key`` (P,) int64 virtual ranks,
    ``sightings`` (P,) int64 (None: one each), in any order. Without ``block`` one sum per id
    remains; with ``block=(lo, hi)``, the ranks this device holds, of ``num_ranks``, only subtrees
    inside the block are closed. The result does not depend on the order of the rows, nor on what
    was summed before inside which block, and lies on the gradients' device. Raises ModelError on
    other shapes, negative ranks, ranks outside the block, or a pair (id, order key) given twice.
    """
    if sightings is None:
        sightings = torch.ones_like(ids)
    _check(ids, grads, order_key, sightings, block, num_ranks)
    ids, order_key, sightings = (c.to(grads.device) for c in (ids, order_key, sightings))
    if bool((ids[1:] > ids[:-1]).all()):  # nothing to sum, and in order
        return SparseGradient(ids=ids, order_key=order_key, grads=grads, sightings=sightings)
    by_key = torch.argsort(order_key, stable=True)
    order = by_key[torch.argsort(ids[by_key], stable=True)]
    ids, order_key = ids[order], order_key[order]
    twice = (ids[1:] == ids[:-1]) & (order_key[1:] == order_key[:-1])
    if bool(twice.any()):
        at = int(twice.nonzero()[0])
        pair = (int(ids[at]), int(order_key[at]))
        raise ModelError("two partial sums of one (id, order key)", value=pair, expected="one")
    place, sums = tree_sum(
        ids, order_key, grads.index_select(0, order), block=block, size=num_ranks
    )
    _, seen = tree_sum(ids, order_key, sightings[order], block=block, size=num_ranks)
    return SparseGradient(ids=ids[place], order_key=order_key[place], grads=sums, sightings=seen)


def _check(
    ids: Tensor,
    grads: Tensor,
    order_key: Tensor,
    sightings: Tensor,
    block: tuple[int, int] | None,
    num_ranks: int | None,
) -> None:
    rows = len(ids)
    columns = {"ids": ids, "order_key": order_key, "sightings": sightings}
    for name, column in columns.items():
        if column.dtype != torch.int64 or column.shape != (rows,):
            found = f"{column.dtype} {tuple(column.shape)}"
            raise ModelError("wrong column", where=name, value=found, expected=f"int64 ({rows},)")
    if grads.dim() != 2 or len(grads) != rows or grads.dtype != torch.float32:
        found = f"{grads.dtype} {tuple(grads.shape)}"
        raise ModelError(
            "wrong column", where="grads", value=found, expected=f"float32 ({rows}, D)"
        )
    low, high = (0, num_ranks) if block is None else block
    if rows and (int(order_key.min()) < low or (high is not None and int(order_key.max()) >= high)):
        found = f"{int(order_key.min())}..{int(order_key.max())}"
        wanted = f"ranks {low}.." + ("" if high is None else str(high - 1))
        raise ModelError("rank outside", where="order_key", value=found, expected=wanted)


def joined(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Put partial sums of several devices together and sum them over all ranks.

    Raises ModelError if there are none, or as ``accumulate`` does.
    """
    if not parts:
        raise ModelError("no partial sums to join", expected="at least one part")
    if len(parts) == 1:  # nothing to put together: the same tensors go on
        (one,) = parts
        return accumulate(one.ids, one.grads, one.order_key, sightings=one.sightings)
    return accumulate(
        torch.cat([p.ids for p in parts]),
        torch.cat([p.grads for p in parts]),
        torch.cat([p.order_key for p in parts]),
        sightings=torch.cat([p.sightings for p in parts]),
    )
