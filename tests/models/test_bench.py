"""The measuring itself: what is counted by hand, what takes turns, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tandem
from models.bench.measure import Cost, alternately, costs, ratio
from models.bench.memory import peak_bytes
from models.bench.peaks import Peak, published
from models.bench.phases import PHASES, phases
from models.bench.profile import profiled
from models.bench.traffic import Traffic, traffic_bytes
from models.bench.workload import Drawn, Prepared, Workload
from models.config import TINY
from models.errors import ModelError
from models.longer.execution import PARTS, Execution
from models.longer.flops import batch_flops

CPU = torch.device("cpu")
SMALL = Workload(model=TINY, batch=6, min_length=0, items=500)


def test_drawn_samples_are_a_function_of_seed_and_index() -> None:
    data = Drawn(max_length=30, min_length=0, items=50)
    batch = data.batch([5, 3, 5])
    one = data.batch([3])
    first, second = int(batch.offsets[1]), int(batch.offsets[2])
    assert torch.equal(batch.item[first:second], one.item)
    assert torch.equal(batch.candidate_item[[0]], batch.candidate_item[[2]])
    assert not torch.equal(
        Drawn(max_length=30, seed=1).batch([3]).item, Drawn(max_length=30).batch([3]).item
    )
    lengths = data.lengths(np.arange(2000))
    assert (lengths.min(), lengths.max()) == (0, 30)
    assert abs(lengths.mean() - 15) < 1
    short = data.batch([5], visible=4)
    assert torch.equal(short.item, data.batch([5]).item[-len(short.item) :])


def test_frequent_items_come_first() -> None:
    items = Drawn(max_length=1000, items=1000).batch(range(20)).item
    counts = torch.bincount(items, minlength=1000)
    assert int(items.max()) < 1000
    assert counts[0] > counts[10] > counts[300]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_length": 31}, "min_length: no such length"),
        ({"items": 0}, "items: no items"),
        ({"seed": -1}, "seed"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Drawn(max_length=30, **change)


def test_peak_memory_is_the_allocators() -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        first = torch.ones(1000)  # 4,000 bytes
        second = first + 1  # 8,000 at once
        del first
        kept.append(second + 1)  # and 8,000 again

    peak_bytes(call, CPU)
    assert 8_000 <= peak_bytes(call, CPU) < 8_400

    def more() -> None:
        call()
        kept.append(torch.ones(500_000))

    assert peak_bytes(more, CPU) >= 2_000_000


def test_traffic_by_hand() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    table, rows = torch.ones(1000, 4), torch.tensor([3, 5])
    assert traffic_bytes(lambda: a @ b, CPU) == 4 * (200 + 600 + 300)
    assert traffic_bytes(lambda: a.view(200).view(20, 10).t(), CPU) == 0
    assert traffic_bytes(lambda: a.add_(1), CPU) == 4 * (200 + 200)
    # Of a table, the rows that are touched: read and written, and the index.
    assert traffic_bytes(lambda: table.index_select(0, rows), CPU) == 2 * 4 * 8 + 16
    zeros = torch.zeros(2, 4)
    assert traffic_bytes(lambda: table.index_copy_(0, rows, zeros), CPU) == 2 * 4 * 8 + 16


def test_traffic_counts_the_backward_pass_too() -> None:
    a = torch.ones(10, 20, requires_grad=True)
    counted = Traffic(CPU)
    with counted:
        torch.autograd.backward((a * a).sum())
    assert counted.bytes_by_operator["mul"] >= 3 * 4 * 3 * 200
    assert counted.bytes == sum(counted.bytes_by_operator.values())


def test_costs_of_two_workloads() -> None:
    found = costs({"plain": SMALL, "half": replace(SMALL, execution=Execution(half=PARTS))}, CPU)
    plain, half = found["plain"], found["half"]
    lengths = SMALL.data().lengths(np.arange(6))
    assert plain.flops == half.flops
    assert plain.flops == batch_flops(TINY, lengths, whole_last_layer=False).training
    assert (plain.samples, plain.events) == (6, lengths.sum())
    assert (plain.half, half.half) == (False, True)
    assert len(plain.seconds) == 5
    assert all(s > 0 for s in plain.seconds)
    assert plain.peak_bytes > 0 < plain.traffic
    assert plain.state_bytes == half.state_bytes > 0
    assert ratio(plain, plain) == 1


def test_rates_follow_from_the_median() -> None:
    cost = Cost(
        seconds=(1.0, 2.0, 9.0), samples=10, events=20, flops=4000, traffic=600, peak_bytes=1,
        state_bytes=1, half=True,
    )  # fmt: skip
    peak = Peak(half_flops_per_s=8000, full_flops_per_s=4000, bytes_per_s=1200)
    assert (cost.samples_per_s, cost.flops_per_s, cost.bytes_per_s) == (5, 2000, 300)
    assert (cost.mfu(peak), cost.bandwidth_share(peak)) == (0.25, 0.25)
    assert replace(cost, half=False).mfu(peak) == 0.5
    assert ratio(cost, replace(cost, seconds=(1.0, 1.0, 3.0))) == 2


def test_workloads_take_turns() -> None:
    order: list[str] = []
    ticks = iter(range(100))
    taken = alternately(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, lambda: next(ticks)
    )
    assert order == ["a", "b"] * 3
    assert taken == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_a_step_is_strict_and_leaves_the_switch_as_it_was() -> None:
    prepared = Prepared(SMALL)
    seen: list[bool] = []
    prepared.state.network.register_forward_hook(
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    prepared.step()
    prepared.workload = replace(SMALL, strict=False)
    prepared.step()
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_phases_and_profile_of_a_step() -> None:
    prepared = Prepared(SMALL)
    prepared.step()
    found = phases(prepared, repeats=2)
    assert tuple(found) == PHASES
    assert all(0 < seconds < 10 for seconds in found.values())
    shares = profiled(prepared.step, CPU, steps=1)
    assert sum(line.share for line in shares.lines) == pytest.approx(1)
    assert [line.ms for line in shares.lines] == sorted((x.ms for x in shares.lines), reverse=True)
    assert "aten::mm" in {line.name for line in shares.lines}


def test_devices_are_known_by_the_names_they_give_themselves() -> None:
    h100 = published("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    assert h100.half_flops_per_s == 989e12
    assert published("NVIDIA L4") != published("NVIDIA L40S")
    assert published("NVIDIA A100-SXM4-40GB") is not None
    assert published("cpu") is None


COMMAND = ["bench", "model", "--preset", "tiny", "--batch", "4", "--repeats", "2", "--threads", "1"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--half", "all", "--recompute", "inner", "--against", "din", "--profile", "2"]
    assert tandem.main([*COMMAND, *options, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert set(found["costs"]) == {"longer", "din"}
    assert found["costs"]["longer"]["samples_per_s"] > 0
    assert found["costs"]["longer"]["mfu_of_measured"] < 1
    assert len(found["profile"]) == 2
    assert tandem.main([*COMMAND, "--length", "20", "--merge", "2"]) == 0
    table = capsys.readouterr().out
    assert "samples_per_s" in table
    assert "bandwidth_of_measured" in table


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--batch", "0"], 1, "expected 1 to 0"),
        (["--repeats", "0"], 1, "repeats: no step to time"),
        (["--min-length", "65"], 1, "min_length: no such length (found 65)"),
        (["--merge", "3", "--length", "0"], 1, "max_length: is no size"),
        (["--device", "nowhere"], 1, "device nowhere: cannot be used"),
        (["--network", "longr"], 2, "did you mean 'longer'?"),
        (["--half", "tail"], 2, "unknown --half"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tandem.main([*COMMAND, *options]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
