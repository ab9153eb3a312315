"""The profiler: what it derives from samples, and one real, short profile of two lanes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tandem
from executor.alone import Alone
from executor.deriving import Group, dilation, line, reduced_bytes, switch_s, usual_interval, widest
from executor.devices import DeviceLane, parse_lanes
from executor.levels import Level, agree
from executor.machine import Machine, probe
from executor.measure import Samples
from executor.presets import model_task
from executor.profiler import (
    Effort,
    HeldOut,
    Profiled,
    held_out_maps,
    profile,
)
from executor.trials import apart
from traces.errors import DataError, UsageError
from traces.profile import ModelProfile, PredictionError, Profile, ReduceCost, Transfer
from traces.workermap import WorkerMap

SAMPLES = Samples(
    micro_s=[0.020] * 10,  # a lane slowed twice
    unslowed_s=[0.010] * 10,
    update_s=[0.002] * 10,
    steps_s={n: [0.003 + 0.011 * n] * 10 for n in (1, 2, 4)},
    gradient_bytes=4000,
    memory_mib=300,
    has_tables=False,
    share=1.0,
)


def test_a_switch_is_what_a_step_gains_beyond_a_micro_batch() -> None:
    assert switch_s(SAMPLES) == pytest.approx(0.001)
    faster = replace(SAMPLES, unslowed_s=[0.012] * 10)
    assert switch_s(faster) == 0.0  # never negative


def test_micro_batches_take_as_long_in_a_job_as_logical_workers_add_to_its_steps() -> None:
    lane = DeviceLane(name="cpu/0", gpu_type="cpu", cpus=(0,))
    case = ("net", 4)
    alone = replace(SAMPLES, micro_s=[0.010] * 10)
    group = Group([lane], agree(Level.D1, [lane]), alone={"cpu": {case: alone}})
    one, four = (WorkerMap.of([(0, 0)], [n]) for n in (1, 4))
    group.steps = {(case, one): [0.015] * 3, (case, four): [0.054] * 3}
    assert dilation(group, case, "cpu") == pytest.approx(1.2)  # 13 ms less the switch, over 10
    group.steps[case, four] = [0.040] * 3
    assert dilation(group, case, "cpu") == 1.0  # never faster than the processor
    nowhere = replace(group, lanes=[])
    assert dilation(nowhere, case, "cpu") == 1.0


def test_on_a_gpu_a_job_may_be_faster_than_micro_batches_one_by_one() -> None:
    lane = DeviceLane(name="cuda:0/0", gpu_type="h100", device="cuda:0")
    case = ("net", 4)
    alone = replace(SAMPLES, micro_s=[0.010] * 10)
    group = Group([lane], agree(Level.D1, [lane]), alone={"h100": {case: alone}})
    one, four = (WorkerMap.of([(0, 0)], [n]) for n in (1, 4))
    group.steps = {(case, one): [0.015] * 3, (case, four): [0.042] * 3}
    assert dilation(group, case, "h100") == pytest.approx(0.8)  # 9 ms less the switch, over 10
    group.steps[case, four] = [0.015] * 3
    assert dilation(group, case, "h100") == 1.0  # nothing was seen of it


def test_the_reduction_is_measured_where_a_job_can_have_most_lanes() -> None:
    gpu = DeviceLane(name="cuda:0/0", gpu_type="h100", device="cuda:0")
    cpus = [DeviceLane(name=f"cpu/{i}", gpu_type="cpu", cpus=(i,)) for i in range(3)]
    groups = [Group([gpu], agree(Level.D1, [gpu])), Group(cpus, agree(Level.D1, cpus))]
    assert widest(groups) is groups[1]
    assert widest([groups[1], Group(cpus, agree(Level.D1, cpus))]) is groups[1]


def test_rows_are_bytes_for_every_logical_worker() -> None:
    lanes = [DeviceLane(name=f"cpu/{i}", gpu_type="cpu", cpus=(i,)) for i in range(2)]
    case = ("net", 4)
    alone = replace(SAMPLES, micro_s=[0.010] * 10, has_tables=True)
    group = Group(lanes, agree(Level.D1, lanes), alone={"cpu": {case: alone}})
    reduce = ReduceCost(by_devices={1: Transfer(0.0, math.inf), 2: Transfer(0.001, 1e6)})
    for counts, seconds in (((1,), 0.013), ((4,), 0.046), ((1, 1), 0.020), ((2, 2), 0.035)):
        places = [(0, i) for i in range(len(counts))]
        group.steps[case, WorkerMap.of(places, counts)] = [seconds] * 3
    # Micro-batch 10, switch 1, update 3 ms. Over two devices 20 = 10 + 3 + 1 + 6 ms for two
    # logical workers, and 35 = 21 + 3 + 1 + 10 ms for four: 2 ms, 2,000 bytes, for each.
    dense, each = reduced_bytes(group, case, reduce)
    assert each == pytest.approx(2000)
    assert dense == 4000  # 6 ms less those of two, which are 2,000: as many as there are, at least
    group.alone["cpu"][case] = replace(alone, has_tables=False)
    assert reduced_bytes(group, case, reduce) == (4000.0, 0.0)


def test_the_reduction_is_a_line_through_two_sizes() -> None:
    cost = line(1e6, 0.003, 5e6, 0.007)
    assert cost.latency_s == pytest.approx(0.002)
    assert cost.bytes_per_s == pytest.approx(1e9)
    free = line(1e6, 0.003, 5e6, 0.002)
    assert (free.latency_s, free.bytes_per_s) == (0.0025, math.inf)


def test_the_interval_covers_and_narrows() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        low, high = usual_interval(list(generator.exponential(size=200)))
        covered += low <= math.log(2) <= high
    assert covered >= 34
    few = usual_interval(list(generator.exponential(size=30)))
    many = usual_interval(list(generator.exponential(size=3000)))
    assert many[1] - many[0] < few[1] - few[0]


def test_lanes_that_share_a_core_are_not_used_at_once() -> None:
    lanes = [
        DeviceLane(name=str(i), gpu_type="cpu", cpus=cpus)
        for i, cpus in enumerate([(0,), (1, 2), (0,), (3,), (2,)])
    ]
    assert apart(lanes) == [(0, 0), (0, 1), (0, 3)]


def test_held_out_maps_are_uneven_and_mix_each_pair_of_types() -> None:
    places = [(0, 0), (0, 1), (0, 2)]
    maps = held_out_maps(places, ["a", "a", "b"])
    assert [(one.gpus, one.counts) for one in maps] == [
        (((0, 0),), (2,)),
        (((0, 2),), (2,)),
        (((0, 0), (0, 1)), (3, 1)),
        (((0, 0), (0, 1)), (1, 3)),
        (((0, 0), (0, 2)), (3, 1)),
        (((0, 0), (0, 2)), (1, 3)),
        (((0, 0), (0, 1), (0, 2)), (2, 1, 1)),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tinny", "unknown; did you mean 'tiny'"),
        ("dense:depth=3", "no setting 'depth'; there are: width, layers"),
        ("dense:width=many", "width is 'many'"),
        ("longer:length=3", "there are: none"),
    ],
)
def test_unknown_models_are_usage_errors(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_task(text, 4, 1)
    assert says in str(caught.value)


def test_a_batch_is_of_one_logical_worker() -> None:
    task = model_task("tiny:length=8", 3, 2).build()
    batch, _ = task.source.fetch(1, task.source.first(1))
    assert len(batch) == 3
    with pytest.raises(UsageError, match="a batch of 0"):
        model_task("mlp", 0, 1)


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    lane = DeviceLane(name="cpu/0", gpu_type="cpu", cpus=(4095,))
    with (
        pytest.raises(DataError, match=r"lane cpu/0: OSError: .*Invalid argument"),
        Alone(lane, agree(Level.D1, [lane]), [("mlp", 2)], 0.01) as alone,
    ):
        alone.round()


@pytest.fixture(scope="module")
def machine() -> Machine:
    return probe()


def test_a_short_profile_of_two_lanes_can_be_read_and_predicts(
    machine: Machine, tmp_path: Path
) -> None:
    lanes = parse_lanes("cpu,cpu:slowdown=20", machine)
    effort = Effort(rounds=2, seconds=0.05, steps=3)
    found = profile(["dense:width=64"], [2, 8], lanes, machine, effort=effort)
    path = tmp_path / "profile.json"
    found.profile.save(path)
    read = Profile.load(path)
    assert read.sha256() == found.profile.sha256()
    assert (read.origin, found.level) == ("measured", Level.D1)
    fast, slow = (lane.gpu_type for lane in lanes)
    rates = read.rates("dense:width=64", 8)
    # Twenty times as long, as the lane states; loosely, because other work goes on.
    assert rates.seconds(slow) > 3 * rates.seconds(fast)
    low, high = read.models["dense:width=64"].interval_s[8][fast]
    assert low <= rates.seconds(fast) <= high
    assert rates.gradient_bytes == 4 * (4 * (64 * 64 + 64) + 65)
    model = read.models["dense:width=64"]
    assert model.rescale_s is not None
    assert 0 <= model.rescale_s < 10
    assert read.prediction_error is not None
    shares = len(machine.cores) < 2
    assert read.prediction_error.cases == (1 if shares else 4)
    assert {one.layout for one in found.held_out} >= {
        ((fast, 2),),
        *([] if shares else [((slow, 2),)]),
    }
    for one in found.held_out:
        assert one.predicted_s > 0
        assert one.measured_s > 0


def test_errors_of_the_command_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(
        cpu_model="a CPU",
        capabilities=("default",),
        cores=(0,),
        memory_mib=1000,
        torch_version="2.13.0",
    )
    monkeypatch.setattr("executor.machine.probe", lambda: machine)
    out = str(tmp_path / "p.json")
    assert tandem.main(["profile", "--model", "tinny", "--batch", "2", "--out", out]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
    given = ["profile", "--model", "mlp", "--batch", "2", "--out", out, "--lanes"]
    assert tandem.main([*given, "cuda:0"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_command_prints_and_writes(
    machine: Machine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = ModelProfile(
        microbatch_s={2: {"cpu": 0.004}},
        interval_s={2: {"cpu": (0.003, 0.005)}},
        memory_mib={2: {"cpu": 300.0}},
        switch_s={"cpu": 0.0005},
        update_s={"cpu": 0.001},
        start_s=0.1,
        checkpoint_s=0.02,
    )
    found = Profiled(
        profile=Profile(
            models={"mlp": measured},
            origin="measured",
            reduce=ReduceCost(by_devices={1: Transfer(1e-4, math.inf), 2: Transfer(2e-3, 5e8)}),
            prediction_error=PredictionError(cases=1, mean_share=0.1, max_share=0.1),
        ),
        held_out=(
            HeldOut(
                model="mlp", batch=2, layout=(("cpu", 4),), measured_s=0.020, predicted_s=0.018
            ),
        ),
        level=Level.D1,
    )
    monkeypatch.setattr("executor.machine.probe", lambda: machine)
    monkeypatch.setattr("executor.profiler.profile", lambda *_, **__: found)
    out = tmp_path / "p.json"
    command = ["profile", "--model", "mlp", "--batch", "2", "--out", str(out)]
    assert tandem.main(command) == 0
    said = capsys.readouterr().out
    for part in (
        "4.000 ms        3.000 to 5.000     300 MiB",
        "mlp on cpu: switch 0.500 ms, update 1.000 ms",
        "mlp: start 100.0 ms, checkpoint 20.0 ms",
        "reduction over 1: 0.100 ms\n",
        "reduction over 2: 2.000 ms + bytes / 500 MB/s",
        "held out: mlp on cpu:4: 20.00 ms, predicted 18.00 ms (-10.0%)",
        "mean error 10.0% over 1 worker maps, 10.0% at most",
    ):
        assert part in said
    assert Profile.load(out).sha256() == found.profile.sha256()
    assert tandem.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"][0]["layout"] == [["cpu", 4]]
