"""How a network is computed, which its function does not depend on: precision and recomputation.

Source: LONGER (arXiv 2505.04421), training with mixed precision and activation recomputation, each
chosen per part of the model. Half precision is bfloat16 autocast: matrix products in bfloat16;
parameters, the residual stream between parts, norms with their statistics, softmax statistics, loss
and optimizer in float32. Recomputation forgets a part's activations after the forward pass and
makes them again in the backward pass; with ``keep_attention`` the outputs of attention, the
dearest to make again at great lengths, are kept all the same. Recomputation changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from models.errors import ModelError

Part = Literal["features", "inner", "cross", "self", "head"]
PARTS: frozenset[Part] = frozenset(get_args(Part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Which parts are computed in bfloat16, and which forget their activations.

    ``half``, ``recompute``: any of ``PARTS``. ``keep_attention``: recompute all but attention's
    outputs. ``whole_last_layer``: compute the last self-causal layer for every row, as the paper's
    FLOPs count it; by default only for the global rows, the only ones that the head reads (the
    keys and values of all rows are needed either way), which gives the same logits for less.
    Raises ModelError for an unknown part.
    """

    half: frozenset[Part] = frozenset()
    recompute: frozenset[Part] = frozenset()
    keep_attention: bool = True
    whole_last_layer: bool = False

    def __post_init__(self) -> None:
        for name, parts in (("half", self.half), ("recompute", self.recompute)):
            unknown = sorted(set(parts) - PARTS)
            if unknown:
                raise ModelError(
                    "unknown part of the network",
                    where=name,
                    value=unknown[0],
                    expected="some of " + ", ".join(sorted(PARTS)),
                )

    def precision(self, part: Part, device: torch.device) -> torch.autocast:
        """Return the context in which a part is computed on a device."""
        return torch.autocast(device.type, torch.bfloat16, enabled=part in self.half)

    def run(self, part: Part, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return ``function(*inputs)``, computed as the switches of ``part`` say.

        What comes back is float32 at least, whatever the part's precision.
        """
        with self.precision(part, next(x.device for x in inputs if isinstance(x, Tensor))):
            if part in self.recompute and torch.is_grad_enabled():
                kept = _keep_attention if self.keep_attention else noop_context_fn
                out: Tensor = checkpoint(function, *inputs, use_reentrant=False, context_fn=kept)
            else:
                out = function(*inputs)
        return out.float() if out.dtype == torch.bfloat16 else out


_ATTENTION = frozenset(
    {
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten._flash_attention_forward.default",
        "torch_attn._varlen_attn.default",  # jagged rows at once on CUDA (``attention``)
    }
)
"""Names of the fused attention operators; taken apart into products, attention is recomputed."""


def _keep_attention() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    def policy(_context: object, operator: object, *_args: object, **_kw: object) -> object:
        kept = str(operator) in _ATTENTION
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    contexts = create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
    return contexts
