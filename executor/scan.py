"""Which operators of a network D2 does not cover: the job that has some stays on one type.

EasyScale scans a network's modules for convolutions. Modules do not say what is computed in
between, so here one step is run and every operator that reaches torch's dispatcher is written down,
in the forward and the backward pass and in the optimizer. Each must be one of

- *exact*: on whole numbers only; or it moves or compares; or it rounds each element as IEEE 754
  says (add, multiply, divide, square root), so that no kernel can do it differently;
- *measured* (CPU): its bits were seen to follow the CPU capability and nothing else, by the
  battery of ``executor.operators``;
- *replaced* (GPU): ``executor.kernels`` has a kernel of fixed order for it. ``log1p`` counts as
  covered there too: LONGER takes it in float64 and cuts it to whole numbers.

What is none of these is named. The lists are by operator, not by size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from executor.kernels import REPLACED

_MOVES = """
    _local_scalar_dense _to_copy _unsafe_view alias arange as_strided cat chunk clone
    constant_pad_nd contiguous copy copy_ detach detach_ diagonal empty empty_like empty_strided
    expand fill_ flip frexp full full_like gather index index_copy index_copy_ index_fill
    index_fill_ index_put index_put_ index_select is_same_size item ldexp ldexp_ lift_fresh
    masked_fill masked_fill_ masked_select narrow new_empty new_empty_strided new_full new_ones
    new_zeros nonzero ones ones_like permute repeat repeat_interleave resize_ roll scalar_tensor
    scatter scatter_ select select_backward select_scatter set_ slice slice_backward
    slice_scatter split split_with_sizes squeeze squeeze_ stack t take transpose tril tril_ triu
    triu_ unbind unfold unsqueeze unsqueeze_ view where zero_ zeros zeros_like
"""
_COMPARES = """
    __and__ __lshift__ __or__ __rshift__ __xor__ _unique2 all amax amin aminmax any argmax
    argmin argsort bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor bucketize eq equal ge gt isfinite isin isinf isnan le
    logical_and logical_not logical_or lt max maximum min minimum ne searchsorted sort topk
    unique_consecutive unique_dim
"""
_ROUNDS_ONCE = """
    abs abs_ add add_ ceil clamp clamp_ clamp_min div div_ floor floor_divide frac mul mul_ neg
    neg_ reciprocal relu relu_ remainder round rsub sign sqrt sqrt_ sub sub_ threshold_backward
    trunc addcdiv addcdiv_ addcmul addcmul_ lerp lerp_ native_dropout_backward
"""
_MEASURED = """
    _log_softmax _log_softmax_backward_data _safe_softmax
    _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention_for_cpu_backward _softmax _softmax_backward_data addmm
    baddbmm bernoulli_ binary_cross_entropy_with_logits bmm convolution convolution_backward
    cumsum embedding embedding_dense_backward exp gelu gelu_backward log1p mean mm
    native_batch_norm native_batch_norm_backward native_dropout native_layer_norm
    native_layer_norm_backward normal_ pow rsqrt sigmoid sigmoid_backward silu silu_backward sum
    tanh tanh_backward
"""
_ON_GPU = frozenset(
    {"log1p", "embedding", "binary_cross_entropy_with_logits", "sigmoid_backward", "_safe_softmax"}
)
_CPU_NAMES = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "bernoulli_",
    }
)
EXACT = frozenset((_MOVES + _COMPARES + _ROUNDS_ONCE).split())
MEASURED = frozenset(_MEASURED.split())
_NOT_ARITHMETIC = ("profiler.", "prims.", "c10d.")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        out = operator(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if any(isinstance(x, Tensor) and x.is_floating_point() for x in leaves):
            name = str(operator)
            self.seen[name] = self.seen.get(name, 0) + 1
        return out


@contextmanager
def recorded() -> Iterator[dict[str, int]]:
    """Yield a mapping that fills with the operators run inside, by full name, and their counts.

    Those that touch no floating-point tensor are left out.
    """
    with _Recorder() as recorder:
        yield recorder.seen


def uncovered(step: Callable[[], object], *, on_gpu: bool = False) -> dict[str, int]:
    """Return the operators of one run of ``step`` that D2 does not cover, with their counts.

    ``step`` should do a whole training step on a copy of the job's state, with its backward pass
    and its update. To ask about GPUs, run it on one, set to D2; on the CPU attention and dropout
    are operators of other names, which count as covered.
    """
    with recorded() as seen:
        step()
    known = EXACT | (REPLACED | _ON_GPU | _CPU_NAMES if on_gpu else MEASURED)
    found: dict[str, int] = {}
    for full, count in seen.items():
        if full.startswith(_NOT_ARITHMETIC):
            continue
        # An optimizer's operators over many tensors at once are those over one.
        name = full.removeprefix("aten.").removeprefix("_foreach_").partition(".")[0]
        if name not in known:
            found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))
