"""Level D2 on a CUDA device: the kernels do what their pages say, in the order that they say.

On one model of GPU it can be seen that bits repeat, that they do not depend on the batch around
them, on padding, or on how many multiprocessors there are, and that each kernel is the stated
sequence of operations, computed again on the CPU. That other models agree is then a matter of IEEE
754; the machine code's arithmetic for three of them is compared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

pytest.importorskip("triton", reason="needs Triton")

from executor.comparing import compare
from executor.devices import parse_lanes
from executor.kernels import REPLACED, elements, products, register, rows, sums
from executor.levels import Level, agree
from executor.machine import probe
from executor.operators import OPERATORS, digests, inputs, results
from executor.scan import uncovered
from models.train.config import build
from models.train.step import State, train_step
from tests.gpucases import CONFIG, DATA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda:0")
NOT_COVERED = ("conv2d", "batch_norm", "log1p", "dropout")


@pytest.fixture(autouse=True)
def at_d2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    register.use()
    yield
    register.stop()
    torch.use_deterministic_algorithms(False)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(CUDA)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().view(torch.int32), b.cpu().view(torch.int32))


@pytest.mark.parametrize("name", [n for n in OPERATORS if n not in NOT_COVERED])
def test_an_operator_is_near_float64_on_the_cpu(name: str) -> None:
    given = [x.detach().double().requires_grad_() for x in inputs(name)]
    exact = OPERATORS[name].function(*given)
    weights = torch.arange(exact.numel()).remainder(7).view(exact.shape) - 3.0
    gradients = torch.autograd.grad(exact, given, grad_outputs=weights.double())
    out, found = results(name, CUDA)
    for ours, true in zip((out, *found), (exact, *gradients), strict=True):
        scale = float(true.detach().abs().max())
        assert float((ours.cpu().double() - true).abs().max()) <= 4e-6 * scale


def test_bits_repeat_and_a_library_gives_others() -> None:
    first = digests(CUDA)
    assert digests(CUDA) == first
    register.stop()
    by_library = digests(CUDA)
    # The twin: the check would see other kernels.
    assert by_library["matmul"] != first["matmul"]
    assert by_library["add"] == first["add"]


@pytest.mark.parametrize("size_k", [5, 96, 1024, 2500])
def test_a_product_is_a_chain_of_fused_multiply_adds(size_k: int) -> None:
    a, b = drawn(7, size_k), drawn(size_k, 5, seed=1)
    # 64 bits of mantissa hold a product of two float32 exactly, and all but the rarest sums.
    wide_a = a.cpu().numpy().astype(np.longdouble)
    wide_b = b.cpu().numpy().astype(np.longdouble)
    total = None
    for first in range(0, size_k, products.PIECE):
        acc = np.zeros((7, 5), dtype=np.float32)
        for k in range(first, min(size_k, first + products.PIECE)):
            acc = (wide_a[:, k, None] * wide_b[None, k] + acc).astype(np.float32)
        total = acc if total is None else total + acc
    assert total is not None
    assert same(a @ b, torch.from_numpy(total))
    assert not same(a.flip(1) @ b.flip(0), torch.from_numpy(total))


def test_a_sum_is_the_stated_fold() -> None:
    x = drawn(1000, 3)
    level = x.cpu().numpy()
    while len(level) > 1:
        pieces = []
        for first in range(0, len(level), sums.PIECE):
            acc = np.zeros(3, dtype=np.float32)
            for row in level[first : first + sums.PIECE]:
                acc = acc + row
            pieces.append(acc)
        level = np.stack(pieces)
    assert same(x.sum(0), torch.from_numpy(level[0]))
    assert not same(x.flip(0).sum(0), torch.from_numpy(level[0]))
    assert x.double().sum().item() == pytest.approx(x.cpu().double().sum().item())
    assert torch.arange(7, device=CUDA).sum().item() == 21


def test_a_softmax_and_a_norm_add_along_the_tree_of_neighbours() -> None:
    x = drawn(3, 100)

    def tree(y: Tensor) -> Tensor:
        y = F.pad(y, (0, 128 - y.shape[1]))
        while y.shape[1] > 1:
            y = y[:, 0::2] + y[:, 1::2]
        return y

    power = elements.forward(x - x.amax(1, keepdim=True), elements.EXP).cpu()
    assert same(x.softmax(1), power / tree(power))
    cpu = x.cpu()
    centred = cpu - tree(cpu) / 100
    scale = 1 / (tree(centred * centred) / 100 + 1e-5).sqrt()
    assert same(F.layer_norm(x, (100,)), centred * scale)


def test_a_row_does_not_see_its_batch_nor_padding() -> None:
    x, weight, bias = drawn(300, 200), drawn(70, 200, seed=1), drawn(70, seed=2)
    norm_weight, norm_bias = drawn(200, seed=3), drawn(200, seed=4)
    for function in (
        lambda r: F.linear(r, weight, bias),
        lambda r: F.softmax(r, -1),
        lambda r: F.log_softmax(r, -1),
        lambda r: F.layer_norm(r, (200,), norm_weight, norm_bias),
        lambda r: F.rms_norm(r, (200,), norm_weight),
        F.gelu,
    ):
        whole = function(x)
        assert same(function(x[:1]), whole[:1])
        assert same(function(x[17:113].contiguous()), whole[17:113])
    padded = F.pad(x, (0, 824))
    assert same(padded @ F.pad(weight, (0, 824)).T, x @ weight.T)
    masked = torch.cat([x, torch.full((300, 900), -torch.inf, device=CUDA)], 1)
    assert same(masked.softmax(1)[:, :200], x.softmax(1))
    assert same(F.pad(x, (0, 0, 0, 700)).sum(0), x.sum(0))


def test_bits_do_not_depend_on_how_many_multiprocessors_there_are() -> None:
    green = pytest.importorskip("torch.cuda.green_contexts")
    try:
        context = green.GreenContext.create(num_sms=16, device_id=0)
    except RuntimeError as error:
        pytest.skip(f"needs green contexts: {error}")
    x, y = drawn(2000, 700), drawn(700, 500, seed=1)

    def work() -> list[Tensor]:
        torch.manual_seed(3)
        product = x @ y
        return [product, product.softmax(1), product.sum(0), F.dropout(product, 0.2), F.gelu(x)]

    before = work()
    torch.cuda.synchronize()
    context.set_context()
    try:
        limited = work()
        torch.cuda.synchronize()
    finally:
        context.pop_context()
    assert all(same(a, b) for a, b in zip(before, limited, strict=True))


@pytest.mark.parametrize(
    ("which", "function", "most_ulps"),
    [
        (elements.EXP, torch.exp, 2),
        (elements.SIGMOID, torch.sigmoid, 3),
        (elements.TANH, torch.tanh, 3),
        (elements.SILU, F.silu, 4),
        (elements.LOG_SIGMOID, F.logsigmoid, 3),
    ],
)
def test_elementary_functions_are_within_a_few_units_in_the_last_place(
    which: int, function: Any, most_ulps: float
) -> None:
    x = torch.linspace(-80, 80, 400_001, device=CUDA)
    true = function(x.cpu().double())
    found = elements.forward(x, which).cpu().double()
    normal = true.abs() > 2e-38
    error = ((found - true).abs() / true.abs().clamp_min(1e-300))[normal] / 2**-23
    assert float(error.max()) <= most_ulps
    ends = torch.tensor([torch.nan, torch.inf, -torch.inf], device=CUDA)
    assert torch.equal(
        elements.forward(ends, which).isnan().cpu(), function(ends.cpu().double()).isnan()
    )


def test_gelu_is_near_everywhere() -> None:
    x = torch.linspace(-10, 10, 200_001, device=CUDA, requires_grad=True)
    wide = x.detach().cpu().double().requires_grad_()
    for approximate in ("none", "tanh"):
        out, true = F.gelu(x, approximate=approximate), F.gelu(wide, approximate=approximate)
        assert float((out.detach().cpu().double() - true).abs().max()) < 2e-6
        (slope,) = torch.autograd.grad(out.sum(), x)
        (true_slope,) = torch.autograd.grad(true.sum(), wide)
        assert float((slope.cpu().double() - true_slope).abs().max()) < 2e-6


def test_dropout_is_by_element_and_by_seed() -> None:
    x = torch.ones(200_000, device=CUDA)
    torch.manual_seed(5)
    first, second = F.dropout(x, 0.25), F.dropout(x, 0.25)
    torch.manual_seed(5)
    # The first elements' masks do not depend on how many elements there are.
    assert same(F.dropout(x[:777], 0.25), first[:777])
    assert not same(first, second)
    assert float((first != 0).float().mean()) == pytest.approx(0.75, abs=0.005)
    assert set(first.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    y = torch.ones(1000, device=CUDA, requires_grad=True)
    out = F.dropout(y, 0.5)
    torch.autograd.backward(out.sum())
    assert y.grad is not None
    assert same(y.grad, out.detach())


def test_an_embeddings_gradient_adds_rows_in_their_order() -> None:
    gradient, index = drawn(500, 24), torch.arange(500, device=CUDA).mul(7).remainder(11)
    expected = torch.zeros(13, 24)
    for row, i in zip(gradient.cpu(), index.tolist(), strict=True):
        expected[i] += row
    weight = torch.zeros(13, 24, device=CUDA, requires_grad=True)
    torch.autograd.backward(F.embedding(index, weight), gradient)
    assert weight.grad is not None
    assert same(weight.grad, expected)


def longer_state(device: str) -> State:
    return CONFIG.state(build(CONFIG, 0).to(device), 0, device=device)


def longer_step(state: State, device: str) -> float:
    first = 24 * state.step
    thirds = [range(first + 8 * rank, first + 8 * rank + 8) for rank in range(3)]
    return train_step(state, [DATA.batch(third).to(device) for third in thirds])


def longer_steps(device: str, steps: int = 2) -> tuple[list[float], list[Tensor]]:
    state = longer_state(device)
    losses = [longer_step(state, device) for _ in range(steps)]
    return losses, [p.detach().cpu() for p in state.network.parameters()]


def test_longer_trains_at_d2_with_bits_that_repeat() -> None:
    losses, parameters = longer_steps("cuda:0")
    again, repeated = longer_steps("cuda:0")
    assert losses == again
    assert all(same(a, b) for a, b in zip(parameters, repeated, strict=True))
    # Dropout's masks are the CPU's in law only, so the losses agree roughly.
    assert losses[0] == pytest.approx(longer_steps("cpu", 1)[0][0], rel=0.2)
    state = longer_state("cuda:0")
    assert uncovered(lambda: longer_step(state, "cuda:0"), on_gpu=True) == {}


def test_a_process_can_be_set_to_each_level() -> None:
    machine = probe()
    (lane,) = parse_lanes("cuda:0", machine)
    found = compare([lane], Level.D2)
    assert found.differing == []
    code = (
        "import json, sys; from executor.devices import DeviceLane;"
        "from executor.levels import Agreement, configure;"
        "a, l = json.loads(sys.argv[1]);"
        "print(json.dumps(configure(Agreement.from_json(a), DeviceLane.from_json(l))))"
    )
    for level in Level:
        agreement = agree(level, [lane])
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps([agreement.to_json(), lane.to_json()])],
            cwd=Path(__file__).resolve().parent.parent.parent,
            env=os.environ | agreement.environ(lane),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        stated = json.loads(done.stdout.splitlines()[-1])
        assert ("kernels" in stated) == (level is Level.D2)
    (half,) = parse_lanes("cuda:0:sm=50%", machine)
    assert compare([half], Level.D2).digests[half.gpu_type] == found.digests[lane.gpu_type]


_P = "*fp32"
_ROWS = {"rows": "i32", "columns": "i32"}
_SIZES = {"at_once": 16, "size": 128, "levels": 7}
_KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "product": (
        products._product,
        dict.fromkeys(("a", "b", "out"), _P)
        | dict.fromkeys(("size_m", "size_n", "size_k"), "i32")
        | dict.fromkeys(("stride_ab", "stride_am", "stride_ak"), "i32")
        | dict.fromkeys(("stride_bb", "stride_bk", "stride_bn"), "i32"),
        {"piece": 1024, "tile_m": 64, "tile_n": 64, "tile_k": 32},
    ),
    "softmax": (rows._softmax, {"x": _P, "out": _P} | _ROWS, {"logarithm": False} | _SIZES),
    "log softmax": (rows._softmax, {"x": _P, "out": _P} | _ROWS, {"logarithm": True} | _SIZES),
    "softmax gradient": (
        rows._softmax_gradient,
        {"gradient": _P, "y": _P, "out": _P} | _ROWS,
        {"logarithm": False} | _SIZES,
    ),
    "norm": (
        rows._norm,
        dict.fromkeys(("x", "weight", "bias", "out", "mean_out", "scale_out"), _P)
        | _ROWS
        | {"eps": "fp32"},
        {"centred": True, "weighted": True, "biased": True} | _SIZES,
    ),
    "norm gradient": (
        rows._norm_gradient,
        dict.fromkeys(("gradient", "x", "mean", "scale", "weight", "out", "weight_part"), _P)
        | _ROWS,
        {"centred": True, "weighted": True} | _SIZES,
    ),
    "sum": (
        sums._fold,
        {"x": _P, "out": _P} | _ROWS | {"stride_row": "i32", "stride_column": "i32"},
        {"piece": 128, "width": 128},
    ),
    **{
        f"function {which}": (
            elements._forward,
            {"x": _P, "out": _P, "count": "i32"},
            {"which": which, "width": 1024},
        )
        for which in range(7)
    },
    **{
        f"gradient {which}": (
            elements._backward,
            {"gradient": _P, "x": _P, "out": _P, "count": "i32"},
            {"which": which, "width": 1024},
        )
        for which in range(3, 7)
    },
}
_ARITHMETIC = re.compile(
    r"^\s*(?:@%p\d+ )?((?:fma|add|sub|mul|div|sqrt|rcp|rsqrt|ex2|lg2|tanh|sin|cos|mma|wgmma|shfl)"
    r"\.\S*)",
    re.MULTILINE,
)


@pytest.mark.parametrize("name", _KERNELS)
def test_three_architectures_get_the_same_arithmetic_in_the_same_order(name: str) -> None:
    """Turing, Ampere and Hopper; no device of theirs is needed to compile."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants = _KERNELS[name]
    source = ASTSource(
        fn=kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    found = []
    for capability in (75, 80, 90):
        target = GPUTarget("cuda", capability, 32)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        ptx = compiled(source, target=target, options=options).asm["ptx"]
        found.append([op for op in _ARITHMETIC.findall(ptx) if ".f32" in op or "shfl" in op])
    assert found[0]
    assert found[0] == found[1] == found[2]
    for operation in found[0]:
        # Rounded to nearest, or a move between threads: nothing approximate, no tensor core.
        assert ".rn.f32" in operation or "shfl" in operation
        assert ".approx" not in operation
        assert ".ftz" not in operation


def test_every_replaced_operator_is_registered() -> None:
    assert {name.partition(".")[0] for name in register._FUNCTIONS} == REPLACED
