"""Kernels whose bits do not depend on the GPU: level D2 where there is CUDA (needs Triton).

Library kernels are chosen by heuristics: by the GPU's model, its number of multiprocessors, the
sizes, the library's version. A kernel here has one order of operations, written down beside it:
each result is a function of its own inputs along that order, whatever the tiles, the batch around
it, the padding or the grid. Products are float32 fused multiply-adds, never tensor cores;
exponentials and the like are polynomials in float32, never the special function unit.

``register.use()`` puts them in the place of torch's CUDA operators for the whole process, below
autograd, so a network needs no change. :data:`REPLACED` names the operators. float32 is computed as
it is, bfloat16 and float16 in float32; float64 products and norms are refused.

Leaves out: convolutions, sparse products, and speed where it would cost the order.
"""

from __future__ import annotations

_NAMES = """
    mm addmm bmm baddbmm sum mean _softmax _softmax_backward_data _log_softmax
    _log_softmax_backward_data native_layer_norm native_layer_norm_backward _fused_rms_norm
    _fused_rms_norm_backward gelu gelu_backward silu silu_backward sigmoid tanh exp
    log_sigmoid_forward log_sigmoid_backward native_dropout embedding_dense_backward
"""
REPLACED = frozenset(_NAMES.split())
"""torch's names, without overload, of the operators that ``register.use()`` replaces."""
