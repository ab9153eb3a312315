"""Device lanes: the text form, its errors, and what the machine says about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from executor.devices import CAPABILITIES, DeviceLane, lowest_capability, parse_lanes
from executor.machine import Gpu, Machine, check_lane, probe
from traces.errors import DataError, UsageError

H100 = Gpu(index=0, model="NVIDIA H100 80GB HBM3", memory_mib=81_559, multiprocessors=132)
CPU = Machine(
    cpu_model="a CPU",
    capabilities=CAPABILITIES,
    cores=(0, 1),
    memory_mib=24_000,
    torch_version="2.13.0",
)
WITH_GPU = replace(CPU, gpus=(H100, replace(H100, index=1, model="Tesla T4", memory_mib=15_360)))


def test_the_text_form_says_type_cores_and_shares() -> None:
    fast, second, slow = parse_lanes("cpu-avx512x2, cpu-default:slowdown=2", CPU)
    assert (fast.name, fast.gpu_type, fast.cpus) == ("cpu-avx512/0", "cpu-avx512", (0,))
    assert (second.name, second.cpus, second.memory_mib) == ("cpu-avx512/1", (1,), 8_000)
    # A slow-down is part of the type, so that every report that names the type says it.
    assert (slow.gpu_type, slow.slowdown, slow.cpus) == ("cpu-default-slow2", 2.0, (0,))
    assert slow.kernels == "cpu-default"
    assert [lane.capability for lane in parse_lanes("auto", CPU)] == ["avx512", "avx512"]


def test_gpus_are_named_by_model_and_shares_by_percentage() -> None:
    assert [lane.gpu_type for lane in parse_lanes("auto", WITH_GPU)] == ["h100", "t4"]
    halves = parse_lanes("cuda:0x2:sm=50%", WITH_GPU)
    assert [(h.name, h.gpu_type) for h in halves] == [
        ("cuda:0/0", "h100-sm50"),
        ("cuda:0/1", "h100-sm50"),
    ]
    assert halves[0].environ()["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert halves[0].memory_mib == 40_779
    assert halves == parse_lanes("cuda:0:sm=50%,cuda:0:sm=50%", WITH_GPU)


@pytest.mark.parametrize(
    ("model", "gpu_type"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("Graphics Device", "graphics-device"),
    ],
)
def test_models_have_short_names(model: str, gpu_type: str) -> None:
    assert replace(H100, model=model).gpu_type == gpu_type


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cpu-avx5", "unknown place 'cpu-avx5'; did you mean 'cpu-avx512'"),
        ("", "is not PLACE[xCOUNT]"),
        ("cpux0", "asks for no lane"),
        ("cpu-default:slow=2", "unknown key 'slow'; did you mean 'slowdown'"),
        ("cpu-default:slowdown=0.5", "slowdown is '0.5'; expected a number of 1 or more"),
        ("cpu-default:slowdown=nan", "expected a number of 1 or more"),
        ("cpu:threads=1.5", "expected a whole number"),
        ("cpu:threads=1:threads=2", "threads is given twice"),
        ("cpu:threads", "'threads' is not key=value"),
        ("cpu:sm=50%", "sm is a share of a GPU"),
        ("cuda:0:sm=50", "expected a percentage, as in sm=50%"),
        ("cuda:0:sm=0%", "expected a percentage"),
        ("cuda:0,cuda:0:sm=10%", "cuda:0 is given out 110%"),
        ("autox2", "'auto' takes no count"),
        ("gpu", "unknown place 'gpu'"),
    ],
)
def test_a_wrong_text_is_a_usage_error_that_says_what_is_right(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_lanes(text, WITH_GPU)
    assert says in str(caught.value)


def test_a_lane_the_machine_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(DataError, match="no cuda:0; it has no CUDA device"):
        parse_lanes("cuda:0", CPU)
    with pytest.raises(DataError, match="cannot run cpu-avx512; it has cpu-default, cpu-avx2"):
        parse_lanes("cpu-avx512", replace(CPU, capabilities=("default", "avx2")))


def test_a_lane_that_has_gone_since_is_named() -> None:
    lanes = parse_lanes("cpu-avx512,cuda:1", WITH_GPU)
    for lane in lanes:
        check_lane(lane, WITH_GPU)
    with pytest.raises(DataError, match=r"lane cuda:1/0: cuda:1 has gone"):
        check_lane(lanes[1], replace(WITH_GPU, gpus=(H100,)))
    with pytest.raises(DataError, match=r"lane cpu-avx512/0: this CPU does not run avx512"):
        check_lane(lanes[0], replace(CPU, capabilities=("default",)))
    with pytest.raises(DataError, match=r"cores \[0\] have gone"):
        check_lane(lanes[0], replace(CPU, cores=(1,)))


def test_bad_lanes_cannot_be_made() -> None:
    for wrong in (
        {"slowdown": 0.5},
        {"sm_fraction": 0.5},
        {"device": "cuda"},
        {"capability": "sse"},
        {"threads": 0},
        {"name": ""},
    ):
        with pytest.raises(UsageError):
            DeviceLane(**({"name": "a", "gpu_type": "cpu"} | wrong))


def test_lanes_travel_as_json() -> None:
    for lane in parse_lanes("cpu-default:slowdown=1.5:threads=2,cuda:0:sm=25%", WITH_GPU):
        assert DeviceLane.from_json(lane.to_json()) == lane
    with pytest.raises(DataError, match="no such field"):
        DeviceLane.from_json({"name": "a", "colour": 1})
    with pytest.raises(DataError, match="not a lane"):
        DeviceLane.from_json({"name": "a"})


def test_the_lowest_capability_is_one_that_all_lanes_run() -> None:
    assert lowest_capability(parse_lanes("cpu-avx512,cpu-avx2", CPU)) == "avx2"
    assert lowest_capability(parse_lanes("cuda:0", WITH_GPU)) is None


def test_the_machine_is_seen_as_it_is_and_no_capability_is_believed() -> None:
    machine = probe()
    assert machine.cores == tuple(sorted(os.sched_getaffinity(0)))
    assert machine.memory_mib > 100
    for capability in machine.capabilities[:1]:
        lane = parse_lanes(f"cpu-{capability}", machine)[0]
        done = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"],
            env=os.environ | lane.environ(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip().lower() == capability
