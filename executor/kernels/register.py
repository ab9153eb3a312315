"""Put the kernels in the place of torch's operators, for this process and one dispatch key.

Below autograd: forward and backward formulas stay torch's, and the operators they call are these.
float32 goes to a kernel; bfloat16 and float16 are computed in float32 and rounded once. Sums of
whole numbers, and elementwise functions of float64, stay with torch; other float64 is refused.

Dropout takes its key and counter from torch's generator of the device and moves it on, so that
``torch.manual_seed`` decides, as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from executor.kernels import REPLACED, elements, products, rows, sums
from traces.errors import DataError

_HALF = (torch.bfloat16, torch.float16)
_in_place: dict[str, torch.library.Library] = {}


def use(key: str = "CUDA") -> str:
    """Replace :data:`executor.kernels.REPLACED` under a dispatch key; return what was done.

    Idempotent. The CPU's key is for tests of the kernels in Triton's interpreter.
    """
    if key not in _in_place:
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # torch warns that operators are replaced: they are
            warnings.simplefilter("ignore")
            for name, function in _FUNCTIONS.items():
                library.impl(name, function, key)
        _in_place[key] = library
    return f"{len(REPLACED)} operators of fixed order, Triton {triton.__version__}"


def stop(key: str = "CUDA") -> None:
    """Put torch's own operators back."""
    library = _in_place.pop(key, None)
    if library is not None:
        library._destroy()


def _single(x: Tensor, name: str) -> Tensor:
    """The tensor in float32; raises :class:`DataError` for what is neither that nor shorter."""
    if x.dtype == torch.float32:
        return x
    if x.dtype in _HALF:
        return x.float()
    raise DataError(f"level D2: no kernel of {name} for {x.dtype}", expected="float32 or shorter")


def _mm(a: Tensor, b: Tensor) -> Tensor:
    product = products.batched(_single(a, "mm")[None], _single(b, "mm")[None])[0]
    return product.to(a.dtype)


def _addmm(added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = products.batched(_single(a, "addmm")[None], _single(b, "addmm")[None])[0]
    return products.scaled(product, _single(added, "addmm"), beta, alpha).to(a.dtype)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return products.batched(_single(a, "bmm"), _single(b, "bmm")).to(a.dtype)


def _baddbmm(added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = products.batched(_single(a, "baddbmm"), _single(b, "baddbmm"))
    return products.scaled(product, _single(added, "baddbmm"), beta, alpha).to(a.dtype)


def _sum(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not (x if dtype is None else torch.empty((), dtype=dtype)).is_floating_point():
        out = torch.empty(0, dtype=dtype or torch.int64, device=x.device)
        done: Tensor = torch.ops.aten.sum.IntList_out(x, dim, keepdim, dtype=dtype, out=out)
        return done
    x = x if dtype is None else x.to(dtype)
    wide = x if x.dtype == torch.float64 else _single(x, "sum")
    return sums.over(wide, list(dim or ()), keepdim).to(x.dtype)


def _mean(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    wide = x if x.dtype == torch.float64 else _single(x, "mean")
    total = sums.over(wide, list(dim or ()), keepdim)
    return (total / (x.numel() / max(total.numel(), 1))).to(x.dtype)


def _whole_mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _mean(x, None, dtype=dtype)


def _along(dim: int, *tensors: Tensor) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Tensors as matrices whose rows run along an axis, and the way back."""
    turned = [x.movedim(dim, -1) if x.dim() else x.view(1) for x in tensors]
    shape = turned[0].shape

    def back(matrix: Tensor) -> Tensor:
        whole = matrix.view(shape)
        return whole.movedim(-1, dim).contiguous() if tensors[0].dim() else whole.view(())

    return [x.reshape(-1, shape[-1]) for x in turned], back


def _softmax_of(logarithm: bool) -> Callable[[Tensor, int, bool], Tensor]:
    def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        (matrix,), back = _along(dim, _single(x, "softmax"))
        out = back(rows.softmax(matrix, logarithm=logarithm))
        return out if half_to_float else out.to(x.dtype)

    return softmax


def _softmax_gradient_of(logarithm: bool) -> Callable[[Tensor, Tensor, int, torch.dtype], Tensor]:
    def gradient(grad: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
        (g, value), back = _along(dim, _single(grad, "softmax"), _single(y, "softmax"))
        return back(rows.softmax_gradient(g, value, logarithm=logarithm)).to(input_dtype)

    return gradient


def _flat(x: Tensor, normalized_shape: Sequence[int]) -> Tensor:
    columns = 1
    for size in normalized_shape:
        columns *= size
    return x.reshape(-1, columns)


def _optional(x: Tensor | None, name: str) -> Tensor | None:
    return None if x is None else _single(x, name).reshape(-1)


def _layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    flat = _flat(_single(x, "layer_norm"), normalized_shape)
    out, mean, scale = rows.norm(
        flat, _optional(weight, "layer_norm"), _optional(bias, "layer_norm"), eps, centred=True
    )
    shape = _statistics(x, normalized_shape)
    return out.view(x.shape).to(x.dtype), mean.view(shape), scale.view(shape)


def _statistics(x: Tensor, normalized_shape: Sequence[int]) -> list[int]:
    kept = x.dim() - len(normalized_shape)
    return [*x.shape[:kept], *[1] * len(normalized_shape)]


def _layer_norm_gradient(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    found = rows.norm_gradient(
        _flat(_single(grad, "layer_norm"), normalized_shape),
        _flat(_single(x, "layer_norm"), normalized_shape),
        mean.reshape(-1),
        scale.reshape(-1),
        _optional(weight, "layer_norm"),
        centred=True,
    )
    shapes = (x.shape, tuple(normalized_shape), tuple(normalized_shape))
    like = (x, weight, bias)
    parts = [
        part.view(shape).to((x if other is None else other).dtype) if wanted else None
        for part, shape, other, wanted in zip(found, shapes, like, output_mask, strict=True)
    ]
    return parts[0], parts[1], parts[2]


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Any, eps: float | None
) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    flat = _flat(_single(x, "rms_norm"), normalized_shape)
    out, _, scale = rows.norm(flat, _optional(weight, "rms_norm"), None, eps, centred=False)
    return out.view(x.shape).to(x.dtype), scale.view(_statistics(x, normalized_shape))


def _rms_norm_gradient(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    scale: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    at_x, at_weight, _ = rows.norm_gradient(
        _flat(_single(grad, "rms_norm"), normalized_shape),
        _flat(_single(x, "rms_norm"), normalized_shape),
        scale.reshape(-1),
        scale.reshape(-1),
        _optional(weight, "rms_norm"),
        centred=False,
    )
    return (
        at_x.view(x.shape).to(x.dtype) if output_mask[0] else None,
        at_weight.view(tuple(normalized_shape)).to(x.dtype) if output_mask[1] else None,
    )


def _element(name: str, which: int) -> Callable[[Tensor], Tensor]:
    by_torch = getattr(torch.ops.aten, name).out

    def function(x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, *_HALF):
            return elements.forward(_single(x, name), which).to(x.dtype)
        kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        done: Tensor = by_torch(x, out=torch.empty(0, dtype=kind, device=x.device))
        return done

    return function


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    which = elements.GELU if approximate == "none" else elements.GELU_TANH
    return elements.forward(_single(x, "gelu"), which).to(x.dtype)


def _gelu_gradient(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    which = elements.GELU if approximate == "none" else elements.GELU_TANH
    return elements.backward(_single(grad, "gelu"), _single(x, "gelu"), which).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return elements.forward(_single(x, "silu"), elements.SILU).to(x.dtype)


def _silu_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return elements.backward(_single(grad, "silu"), _single(x, "silu"), elements.SILU).to(x.dtype)


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    out = elements.forward(_single(x, "log_sigmoid"), elements.LOG_SIGMOID)
    return out.to(x.dtype), x.new_empty(0)


def _log_sigmoid_gradient(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    given = (_single(grad, "log_sigmoid"), _single(x, "log_sigmoid"))
    return elements.backward(*given, elements.LOG_SIGMOID).to(x.dtype)


def _dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    seed, offset = _next_counter(x.device)
    out, kept = elements.dropout(_single(x, "dropout"), p, seed=seed, offset=offset)
    return out.to(x.dtype), kept


def _next_counter(device: torch.device) -> tuple[int, int]:
    """The seed of the device's generator and its place, which moves on by one dropout."""
    if device.type != "cuda":  # the interpreter, in tests: the CPU's generator has no place
        return int(torch.randint(2**62, ()).item()), 0
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    offset = generator.get_offset()
    generator.set_offset(offset + 4)  # torch wants multiples of four
    return generator.initial_seed(), offset // 4


def _embedding_gradient(
    grad: Tensor, index: Tensor, count: int, padding_index: int, by_frequency: bool
) -> Tensor:
    if by_frequency:
        raise DataError("level D2: an embedding's gradient scaled by frequency is not covered")
    flat = index.reshape(-1)
    out = sums.by_index(_single(grad, "embedding").reshape(flat.numel(), -1), flat, count)
    if padding_index >= 0:
        out[padding_index] = 0
    return out.to(grad.dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "sum.dim_IntList": _sum,
    "mean": _whole_mean,
    "mean.dim": _mean,
    "_softmax": _softmax_of(False),
    "_softmax_backward_data": _softmax_gradient_of(False),
    "_log_softmax": _softmax_of(True),
    "_log_softmax_backward_data": _softmax_gradient_of(True),
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_gradient,
    "_fused_rms_norm": _rms_norm,
    "_fused_rms_norm_backward": _rms_norm_gradient,
    "gelu": _gelu,
    "gelu_backward": _gelu_gradient,
    "silu": _silu,
    "silu_backward": _silu_gradient,
    "sigmoid": _element("sigmoid", elements.SIGMOID),
    "tanh": _element("tanh", elements.TANH),
    "exp": _element("exp", elements.EXP),
    "log_sigmoid_forward": _log_sigmoid,
    "log_sigmoid_backward": _log_sigmoid_gradient,
    "native_dropout": _dropout,
    "embedding_dense_backward": _embedding_gradient,
}
