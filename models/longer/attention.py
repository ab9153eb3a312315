"""Attention over jagged rows, and the transformer block around it.

Source: LONGER (arXiv 2505.04421): softmax(Q K^T / sqrt(d) + M) V, then a feed-forward network. The
paper leaves heads, normalisation and dropout unsaid; here: pre-norm, heads of width D / H, biases
everywhere, dropout on both residual branches. A block then has 12 D^2 + 13 D parameters with the
usual feed-forward factor of 4, as the paper counts them.

Rows of several samples lie one after another, those of samples with equal numbers of queries and
keys together, so that each such segment is one dense call of ``scaled_dot_product_attention`` on a
view and no row is padded. On CUDA, in half precision and with the plain causal or the empty mask,
all segments are one call of the variable-length kernel instead.

Shapes: R rows, B samples of a segment, N queries, S keys, H heads, E width of a head, D = H E.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.longer.sampling import Ints, lower_right

MOST_SAMPLES = 32_768
"""Samples in one call of an attention kernel: CUDA launches fail beyond 65,535 (pytorch 142228)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``samples`` samples with ``queries`` and ``keys`` rows each.

    ``stands`` (queries,): the key at which each query stands; it sees that key and all before.
    None: every query sees every key.
    """

    samples: int
    queries: int
    keys: int
    stands: Ints | None

    def visible_pairs(self) -> int:
        """Return how many (query, key) pairs of the segment are visible."""
        if self.stands is None:
            return self.samples * self.queries * self.keys
        return self.samples * int((self.stands + 1).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Samples one after another that the variable-length kernel takes in one call.

    ``query_rows``, ``key_rows``: rows of all of them; ``cumulative_queries``, ``cumulative_keys``
    (samples + 1,) int32: where each one's rows begin; ``most_queries``, ``most_keys`` of a sample.
    """

    query_rows: int
    key_rows: int
    cumulative_queries: Tensor
    cumulative_keys: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The segments of a batch, with their masks on the batch's device.

    ``masks``: per segment (N, S) bool, true where visible, or None. ``stretches``: the same samples
    for the variable-length kernel; ``plain``: may it be used, that is, are all masks empty
    (``"full"``) or all lower-right causal (``"causal"``)?
    """

    parts: tuple[Segment, ...]
    masks: tuple[Tensor | None, ...]
    stretches: tuple[Stretch, ...]
    plain: str | None

    @classmethod
    def of(cls, parts: Sequence[Segment], *, device: torch.device) -> Segments:
        """Return the segments with masks made for ``device``."""
        masks: list[Tensor | None] = []
        for part in parts:
            if part.stands is None or part.stands.min(initial=part.keys) >= part.keys - 1:
                masks.append(None)  # everything is visible
            else:
                mask = np.arange(part.keys)[None, :] <= part.stands[:, None]
                masks.append(torch.from_numpy(mask).to(device))
        return cls(
            parts=tuple(parts),
            masks=tuple(masks),
            stretches=_stretches(parts, device) if device.type == "cuda" else (),
            plain=_plain(parts),
        )


def _stretches(parts: Sequence[Segment], device: torch.device) -> tuple[Stretch, ...]:
    samples = [part.samples for part in parts]
    queries = np.repeat([part.queries for part in parts], samples).astype(np.int64)
    keys = np.repeat([part.keys for part in parts], samples).astype(np.int64)
    found = []
    for first in range(0, len(queries), MOST_SAMPLES):
        q, k = (sizes[first : first + MOST_SAMPLES] for sizes in (queries, keys))
        found.append(
            Stretch(
                query_rows=int(q.sum()),
                key_rows=int(k.sum()),
                cumulative_queries=_cumulative(q, device),
                cumulative_keys=_cumulative(k, device),
                most_queries=int(q.max()),
                most_keys=int(k.max()),
            )
        )
    return tuple(found)


def _cumulative(sizes: Ints, device: torch.device) -> Tensor:
    total = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return torch.from_numpy(total).to(device)


def _plain(parts: Sequence[Segment]) -> str | None:
    if all(part.stands is None for part in parts):
        return "full"
    causal = all(
        part.stands is not None
        and np.array_equal(part.stands, lower_right(part.queries, part.keys))
        for part in parts
    )
    return "causal" if causal else None


class _TakeRows(torch.autograd.Function):
    """Rows by distinct indices; the gradient is put back without atomics, so its bits repeat."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        (gradient,) = gradients
        whole = gradient.new_zeros((ctx.total, *gradient.shape[1:]))
        return whole.index_copy(0, index, gradient), None


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Return ``rows[index]`` for distinct indices: ``rows`` (R, ...), ``index`` (N,)."""
    taken: Tensor = _TakeRows.apply(rows, index)  # type: ignore[no-untyped-call]
    return taken


def attend(q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor, segments: Segments) -> Tensor:  # noqa: N803
    """Return the attended values (R, H E) of the query rows."""
    if _variable_length_serves(q_RHE, segments):
        return _attend_at_once(q_RHE, k_RHE, v_RHE, segments)
    query_rows = [part.samples * part.queries for part in segments.parts]
    key_rows = [part.samples * part.keys for part in segments.parts]
    outs = []
    for part, mask, q, k, v in zip(
        segments.parts,
        segments.masks,
        torch.split(q_RHE, query_rows),
        torch.split(k_RHE, key_rows),
        torch.split(v_RHE, key_rows),
        strict=True,
    ):
        whole = (
            q.view(part.samples, part.queries, *q.shape[1:]),
            k.view(part.samples, part.keys, *k.shape[1:]),
            v.view(part.samples, part.keys, *v.shape[1:]),
        )
        for some in zip(*(torch.split(rows, MOST_SAMPLES) for rows in whole), strict=True):
            q_BHNE, k_BHSE, v_BHSE = (rows.transpose(1, 2) for rows in some)  # noqa: N806
            out_BHNE = F.scaled_dot_product_attention(  # noqa: N806
                q_BHNE, k_BHSE, v_BHSE, attn_mask=mask
            )
            outs.append(out_BHNE.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(outs) if outs else q_RHE.flatten(1)


def _variable_length_serves(rows: Tensor, segments: Segments) -> bool:
    """The flash kernel's conditions: Ampere or later, half precision, heads of 8, 16, ... 256."""
    if not rows.is_cuda or segments.plain is None or rows.shape[0] == 0:
        return False
    half = rows.dtype in {torch.bfloat16, torch.float16}
    width = rows.shape[-1]
    return half and width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability()[0] >= 8


def _attend_at_once(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """All segments in one call of the flash kernel, whose causal mask is lower-right aligned."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  only where CUDA is

    causal = causal_argument(varlen_attn, causal=segments.plain == "causal")
    query_rows = [stretch.query_rows for stretch in segments.stretches]
    key_rows = [stretch.key_rows for stretch in segments.stretches]
    outs = []
    for stretch, some_q, some_k, some_v in zip(
        segments.stretches,
        torch.split(q, query_rows),
        torch.split(k, key_rows),
        torch.split(v, key_rows),
        strict=True,
    ):
        out = varlen_attn(
            some_q,
            some_k,
            some_v,
            stretch.cumulative_queries,
            stretch.cumulative_keys,
            stretch.most_queries,
            stretch.most_keys,
            **causal,
        )
        assert isinstance(out, Tensor)
        outs.append(out.flatten(1))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def causal_argument(kernel: Callable[..., object], *, causal: bool) -> dict[str, Any]:
    """Return the argument that makes ``varlen_attn`` causal, or full; its name has changed.

    torch 2.10 has ``is_causal``; later versions have ``window_size`` (keys to the left, to the
    right; -1: all).
    """
    if "window_size" in inspect.signature(kernel).parameters:
        return {"window_size": (-1, 0) if causal else (-1, -1)}
    return {"is_causal": causal}


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose statistics and result are float32 at least, also in autocast."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name of the base class
        """Normalise (..., D)."""
        half = input.dtype in {torch.bfloat16, torch.float16}
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float() if half else input)


class Block(nn.Module):
    """One pre-norm transformer block of width D, for queries and keys that may differ."""

    def __init__(self, width: int, *, heads: int, ffn_factor: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = LayerNorm(width)
        self.up = nn.Linear(width, ffn_factor * width)
        self.down = nn.Linear(ffn_factor * width, width)
        self.dropout = nn.Dropout(dropout)

    def split(self, rows: Tensor) -> Tensor:
        """Return (R, D) as (R, H, E)."""
        return rows.view(*rows.shape[:-1], self.heads, rows.shape[-1] // self.heads)

    def queries(self, normed: Tensor) -> Tensor:
        """Return the queries (R, H, E) of normalised rows (R, D)."""
        return self.split(self.query(normed))

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (R, H, E) of normalised rows (R, D)."""
        return self.split(self.key(normed)), self.split(self.value(normed))

    def finish(self, rows: Tensor, attended: Tensor) -> Tensor:
        """Return rows (R, D) after attention's residual and the feed-forward network."""
        rows = rows + self.dropout(self.out(attended))
        hidden = F.gelu(self.up(self.ffn_norm(rows)))
        finished: Tensor = rows + self.dropout(self.down(hidden))
        return finished

    def forward(self, query_rows: Tensor, key_rows: Tensor, segments: Segments) -> Tensor:
        """Return the query rows (R_q, D) after attending to the key rows (R_k, D)."""
        normed_keys = self.norm(key_rows)
        normed = normed_keys if query_rows is key_rows else self.norm(query_rows)
        k, v = self.keys_values(normed_keys)
        return self.finish(query_rows, attend(self.queries(normed), k, v, segments))
