"""Levels: what differs between CPU kernels, that D2 makes them agree, and what each level refuses.

The equality under D2 has its twin: the same processes without D2 give other bits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from executor.devices import CAPABILITIES, DeviceLane, parse_lanes
from executor.levels import Agreement, Level, agree, together, usual_level
from executor.machine import Gpu, Machine, probe
from executor.operators import OPERATORS, differing, digests
from executor.scan import recorded, uncovered
from models.train.config import build
from models.train.step import train_step
from tests.traincases import CONFIG, DATA
from traces.errors import DataError, UsageError

GPUS = tuple(
    Gpu(index=i, model=model, memory_mib=16_000, multiprocessors=40)
    for i, model in enumerate(("Tesla T4", "NVIDIA A100-SXM4-40GB"))
)
MACHINE = Machine(
    cpu_model="a CPU",
    capabilities=CAPABILITIES,
    cores=(0, 1),
    memory_mib=24_000,
    gpus=GPUS,
    torch_version="2.13.0",
)


def lanes(text: str) -> tuple[DeviceLane, ...]:
    return parse_lanes(text, MACHINE)


CHILD = """
import json, sys
from executor.devices import DeviceLane
from executor.levels import Agreement, configure
agreement, lane = json.loads(sys.argv[1])
stated = configure(Agreement.from_json(agreement), DeviceLane.from_json(lane))
from executor.operators import digest, digests
from models.data.generator import Generator, GeneratorConfig
from models.train.config import TrainConfig, build
from models.train.step import train_step
from dataclasses import replace
config = TrainConfig()
config = replace(config, model=replace(config.model, dropout=0.1))
data = Generator(GeneratorConfig(length=64, num_cross=2), 0)
state = config.state(build(config, 0), 0)
for step in range(2):
    train_step(state, [data.batch(range(16 * step, 16 * step + 16))])
print(json.dumps({
    "stated": stated,
    "digests": digests(),
    "parameters": digest(*state.network.parameters()),
    "rows": digest(*(table.state().records for table in state.tables.tables.values())),
}))
"""


def started(repo: Path, agreement: Agreement, lane: DeviceLane) -> subprocess.Popen[str]:
    """Train two steps of LONGER in a process of this lane, at this level."""
    given = json.dumps([agreement.to_json(), lane.to_json()])
    environ = os.environ | agreement.environ(lane)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, given],
        cwd=repo,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def three(repo: Path) -> dict[str, dict[str, Any]]:
    """The lowest lane and the highest at D1, each alone, and the highest at D2 with the lowest."""
    machine = probe()
    if len(machine.capabilities) < 2:
        pytest.skip("this CPU has one set of kernels only")
    low, high = parse_lanes(
        f"cpu-{machine.capabilities[0]},cpu-{machine.capabilities[-1]}", machine
    )
    processes = {
        "low": started(repo, agree(Level.D1, [low]), low),
        "high": started(repo, agree(Level.D1, [high]), high),
        "high at D2": started(repo, agree(Level.D2, [low, high]), high),
    }
    return {name: result(process) for name, process in processes.items()}


def test_two_capabilities_give_other_bits_for_the_same_maths(
    three: dict[str, dict[str, Any]],
) -> None:
    apart = differing(three["low"]["digests"], three["high"]["digests"])
    for name in ("softmax", "layer_norm", "attention", "linear", "gelu", "adamw", "randn"):
        assert name in apart
    for name in ("add", "sum", "mean", "embedding", "embedding gradient", "dropout"):
        assert name not in apart
    assert three["low"]["parameters"] != three["high"]["parameters"]
    assert three["low"]["rows"] != three["high"]["rows"]


def test_d2_makes_them_agree_operator_by_operator_and_in_longer(
    three: dict[str, dict[str, Any]],
) -> None:
    assert differing(three["low"]["digests"], three["high at D2"]["digests"]) == []
    for what in ("parameters", "rows"):
        assert three["low"][what] == three["high at D2"][what]


def test_the_process_states_what_was_set(three: dict[str, dict[str, Any]]) -> None:
    stated = three["high at D2"]["stated"]
    assert stated["level"] == "D2"
    assert stated["gpu_type"].startswith("cpu-")
    assert stated["CPU kernels"] == three["low"]["stated"]["CPU kernels"]
    assert stated["CPU kernels"] != three["high"]["stated"]["CPU kernels"]
    assert stated["deterministic algorithms"] == "strict"


def test_a_process_without_the_environment_of_its_level_is_refused(repo: Path) -> None:
    lane = DeviceLane(name="cpu/0", gpu_type="cpu")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            CHILD,
            json.dumps([agree(Level.D1, [lane]).to_json(), lane.to_json()]),
        ],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "7"},
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was started without OMP_NUM_THREADS=1" in err


def test_the_battery_repeats_and_tells_a_changed_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    first = digests()
    assert differing(first, digests()) == []
    assert set(first) >= {*OPERATORS, "adamw", "randn"}
    gelu = replace(OPERATORS["gelu"], function=lambda x: F.gelu(x, approximate="tanh"))
    monkeypatch.setitem(OPERATORS, "gelu", gelu)
    assert differing(first, digests()) == ["gelu", "gelu gradient"]


def test_d1_stays_on_one_type_and_d2_agrees_on_the_lowest() -> None:
    mixed = lanes("cpu-avx512,cpu-avx2:slowdown=2:threads=2")
    with pytest.raises(UsageError, match="D1 holds on one type; these lanes are of cpu-avx2-2thr"):
        agree(Level.D1, mixed)
    # A slow-down changes no bit.
    agreed = agree(Level.D1, lanes("cpu-avx2,cpu-avx2:slowdown=2"))
    assert agreed.kernels == "cpu-avx2"
    with pytest.raises(DataError, match="runs at D1 on cpu-avx2; cpu-avx512 gives other bits"):
        agreed.admit(mixed[0])
    agreed = agree(Level.D2, mixed)
    assert (agreed.capability, agreed.threads) == ("avx2", 1)
    for lane in mixed:
        environ = agreed.environ(lane)
        assert environ["ATEN_CPU_CAPABILITY"] == environ["ONEDNN_MAX_CPU_ISA"].lower() == "avx2"
        assert environ["MKL_CBWR"] == environ["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
        assert environ["OMP_NUM_THREADS"] == "1"
    with pytest.raises(DataError, match="agreed on the kernels of avx2; this lane has default"):
        agreed.environ(lanes("cpu-default")[0])
    # D0 promises nothing about other lanes, so it refuses none.
    agree(Level.D0, mixed).admit(lanes("cuda:0")[0])


def test_d2_mixes_gpus_but_no_gpu_with_a_cpu() -> None:
    agreed = agree(Level.D2, lanes("cuda:0,cuda:1"))
    assert (agreed.on_gpu, agreed.capability) == (True, None)
    with pytest.raises(DataError, match="no kernels give a CPU and a GPU the same bits"):
        agreed.admit(lanes("cpu-avx2")[0])
    with pytest.raises(UsageError, match="does not mix CPU lanes and GPUs"):
        agree(Level.D2, lanes("cuda:0,cpu-avx2"))
    with pytest.raises(UsageError, match="holds on one type; these lanes are of a100, t4"):
        agree(Level.D1, lanes("cuda:0,cuda:1"))
    # Libraries choose kernels by the number of multiprocessors.
    with pytest.raises(UsageError, match="of t4, t4-sm50"):
        agree(Level.D1, [*lanes("cuda:0"), *lanes("cuda:0:sm=50%")])
    with pytest.raises(UsageError, match="no lanes"):
        agree(Level.D2, [])


def test_agreements_travel_as_json_and_levels_have_names() -> None:
    for level, text in ((Level.D0, "cpu"), (Level.D1, "cuda:0"), (Level.D2, "cpu-avx2,cpu")):
        agreed = agree(level, lanes(text))
        assert Agreement.from_json(json.loads(json.dumps(agreed.to_json()))) == agreed
    for wrong in ({}, {"level": "D1", "colour": 1}):
        with pytest.raises(DataError, match="not an agreement"):
            Agreement.from_json(wrong)
    assert Level.parse("d2") is Level.D2
    with pytest.raises(UsageError, match="unknown determinism level 'D3'; did you mean"):
        Level.parse("D3")


def test_the_scan_names_what_d2_does_not_cover_and_nothing_else() -> None:
    weight = torch.ones(8, 4, requires_grad=True)

    def covered_step() -> None:
        F.gelu(torch.ones(3, 4) @ weight.T).softmax(-1).square().sum().backward()  # type: ignore[no-untyped-call]

    def other_step() -> None:
        torch.fft.rfft(weight).abs().sum().backward()

    assert uncovered(covered_step) == {}
    assert set(uncovered(other_step)) >= {"_fft_r2c"}
    with recorded() as seen:
        torch.arange(5).cumsum(0)
        torch.ones(5).cumsum(0)
    assert seen["aten.cumsum.default"] == 1  # whole numbers are exact, and left out


@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_longer_has_nothing_that_d2_does_not_cover(as_on_gpu: bool) -> None:
    state = CONFIG.state(build(CONFIG, 0), 0)
    if as_on_gpu:  # what torch chooses on a GPU: many tensors at once, and plain attention at D2
        for group in state.optimizer.param_groups:
            group["foreach"] = True

    def step() -> None:
        backend = SDPBackend.MATH if as_on_gpu else SDPBackend.FLASH_ATTENTION
        with sdpa_kernel([backend, SDPBackend.MATH]):
            batches = [DATA.batch(range(4 * rank, 4 * rank + 4)) for rank in range(3)]
            train_step(state, batches)

    with recorded() as seen:
        step()
    names = {name.partition(".")[2].partition(".")[0] for name in seen}
    assert ("_foreach_addcdiv_" in names) == as_on_gpu
    assert uncovered(step, on_gpu=as_on_gpu) == {}


def test_lanes_are_together_as_far_as_a_level_stretches() -> None:
    fast = DeviceLane(name="a", gpu_type="cpu-avx512", capability="avx512")
    plain = DeviceLane(name="b", gpu_type="cpu-default", capability="default")
    gpu = DeviceLane(name="c", gpu_type="h100", device="cuda:0")
    assert usual_level([fast, fast]) is Level.D1
    assert usual_level([fast, plain]) is Level.D2
    assert usual_level([fast, gpu]) is Level.D1
    assert together(Level.D2, [fast, plain]) == [[fast, plain]]
    assert together(Level.D1, [fast, plain, fast]) == [[fast, fast], [plain]]
