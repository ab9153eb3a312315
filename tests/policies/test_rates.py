"""The rate model: cases by hand, links against networkx, distortions that are pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rates import (
    UNLIMITED,
    Comm,
    Distortion,
    Network,
    device_s,
    rates_of,
    reduce_time,
    reference_s,
    step_time,
)
from traces import ClusterSpec, DataError, Links, Profile, UsageError
from traces.job import Elastic
from traces.profile import JobRates, ModelProfile, ReduceCost, Transfer

PROFILE = Profile(
    models={
        "bert": ModelProfile(
            microbatch_s={8: {"v100": 1.0, "t4": 2.0}},
            switch_s={"v100": 0.1, "t4": 0.2},
            update_s={"v100": 0.5, "t4": 0.7},
            gradient_bytes=1e9,
        )
    },
    origin="measured",
    reduce=ReduceCost(latency_s=0.01, bytes_per_s=2e9),
)
JOB = Elastic(num_workers=6, max_gpus=6, model="bert", batch_size=8, preferred_type="v100")


def test_a_step_by_hand() -> None:
    step = step_time(PROFILE, JOB, (("v100", 4), ("t4", 2)))
    # V100: 4 + 3 x 0.1 = 4.3; T4: 4 + 0.2 = 4.2. Two devices: 2 x 1/2 x 1e9 bytes at 2e9 a second,
    # two rounds of 10 ms. The slower update of the two.
    assert step == pytest.approx((4.0, 0.3, 0.52, 0.7))
    assert step.total_s == pytest.approx(5.52)
    slow = step_time(PROFILE, JOB, (("v100", 4), ("t4", 2)), Comm(0.5e9, 0.04))
    assert slow.reduce_s == pytest.approx(2.0 + 2 * 0.05)
    assert step_time(PROFILE, JOB, (("t4", 6),)) == pytest.approx((12.0, 1.0, 0.0, 0.7))
    assert reference_s(PROFILE, JOB) == pytest.approx(1.0 + 2 * 5 / 6 / 2 + 6 * 0.01 + 0.5)
    assert reference_s(PROFILE, replace(JOB, preferred_type=None)) == reference_s(PROFILE, JOB)
    assert device_s(rates_of(PROFILE, JOB), "t4", 0) == 0.0


def test_what_was_measured_by_number_of_devices() -> None:
    cost = ReduceCost(by_devices={2: Transfer(0.1, 1e9), 4: Transfer(0.3, 1e9)})
    assert reduce_time(cost, 1e9, 1, UNLIMITED) == 0.0
    assert reduce_time(cost, 1e9, 2, UNLIMITED) == pytest.approx(1.1)
    assert reduce_time(cost, 1e9, 3, UNLIMITED) == pytest.approx(1.2)
    assert reduce_time(cost, 1e9, 8, UNLIMITED) == pytest.approx(1.7)
    # The links cannot be beaten: 2 x 1/2 of the bytes at 0.1e9 a second.
    assert reduce_time(cost, 1e9, 2, Comm(0.1e9, 0.0)) == pytest.approx(10.0)
    alone = ReduceCost(by_devices={1: Transfer(0.02, math.inf)})
    assert reduce_time(alone, 1e9, 1, UNLIMITED) == 0.02
    assert reduce_time(alone, 1e9, 5, UNLIMITED) == 0.02


@pytest.mark.parametrize("spec", ["2x2:v100:1,2x2:t4:2", "3x1:v100:2"])
def test_links_are_those_of_the_graph(spec: str) -> None:
    cluster = ClusterSpec(
        ClusterSpec.parse(spec).nodes,
        Links(device_gb_per_s=50.0, node_gb_per_s=12.5, rack_gb_per_s=5.0),
    )
    network, graph = Network(cluster), cluster.graph()
    devices = [(n, g) for n, node in enumerate(cluster.nodes) for g in range(node.num_gpus)]
    for size in (1, 2, 3):
        for some in combinations(devices, size):
            masks: dict[int, int] = {}
            for node, gpu in some:
                masks[node] = masks.get(node, 0) | 1 << gpu
            comm = network.comm(tuple(masks.items()))
            names = [f"{cluster.nodes[n].name}/{g}" for n, g in some]
            paths = [nx.shortest_path(graph, a, b) for a, b in combinations(names, 2)]
            links = [[graph.edges[e] for e in nx.utils.pairwise(path)] for path in paths]
            if not links:
                assert comm == UNLIMITED
                continue
            assert comm.bytes_per_s == min(e["gb_per_s"] for path in links for e in path) * 1e9
            longest = max(sum(e["latency_us"] for e in path) for path in links)
            assert comm.latency_s == pytest.approx(longest * 1e-6)


@given(
    st.lists(st.tuples(st.sampled_from(["v100", "t4"]), st.integers(1, 9)), min_size=1, max_size=9)
)
def test_never_faster_than_all_devices_together_and_order_is_nothing(
    layout: list[tuple[str, int]],
) -> None:
    step = step_time(PROFILE, JOB, layout)
    micro = {"v100": 1.0, "t4": 2.0}
    workers = sum(n for _, n in layout)
    assert workers / step.total_s <= sum(1 / micro[t] for t, _ in layout)
    assert step == step_time(PROFILE, JOB, layout[::-1])
    assert step == step_time(PROFILE, JOB, sorted(layout))


def test_what_has_no_rate_is_refused() -> None:
    with pytest.raises(UsageError, match="no device holds"):
        step_time(PROFILE, JOB, ())
    with pytest.raises(UsageError, match="holds 0 logical workers"):
        step_time(PROFILE, JOB, (("v100", 0),))
    with pytest.raises(DataError, match="GPU type 'p100'"):
        step_time(PROFILE, JOB, (("p100", 1),))
    with pytest.raises(UsageError, match="no model or no batch size"):
        step_time(PROFILE, replace(JOB, model=None), (("v100", 1),))
    with pytest.raises(DataError, match="no model 'bart'"):
        step_time(PROFILE, replace(JOB, model="bart"), (("v100", 1),))


RATES = JobRates.plain({"v100": 1.0, "t4": 2.0}, model="bert")


def test_a_distortion_is_a_function_of_seed_job_and_time() -> None:
    some = Distortion(seed=1, noise=0.2, bias=0.1, drift=0.3)
    assert some.rates(RATES, "a", 0.0) is some.rates(RATES, "a", 3599.0)
    first = some.factors(RATES, "a", 0.0)
    assert first == Distortion(seed=1, noise=0.2, bias=0.1, drift=0.3).factors(RATES, "a", 10.0)
    for other in (
        some.factors(RATES, "b", 0.0),
        some.factors(RATES, "a", 7200.0),
        replace(some, seed=2).factors(RATES, "a", 0.0),
    ):
        assert first != other
    assert some.rates(RATES, "a").seconds("t4") == 2.0 * first["t4"]
    assert Distortion(seed=5).rates(RATES, "a") is RATES


def test_noise_is_by_job_bias_by_model_drift_by_time() -> None:
    noise = Distortion(noise=0.2)
    logs = [math.log(noise.factors(RATES, f"job{i}")["t4"]) for i in range(2000)]
    assert statistics.fmean(logs) == pytest.approx(0.0, abs=0.02)
    assert statistics.stdev(logs) == pytest.approx(0.2, abs=0.02)
    bias = Distortion(bias=0.2)
    assert bias.factors(RATES, "a") == bias.factors(RATES, "b", 9e9)
    assert bias.factors(JobRates.plain(RATES.microbatch_s, model="ncf"), "a") != bias.factors(
        RATES, "a"
    )
    drift = Distortion(drift=0.1)
    day = [drift.factors(RATES, "a", 3600.0 * hour)["v100"] for hour in range(24)]
    assert statistics.fmean(map(math.log, day)) == pytest.approx(0.0, abs=1e-9)
    assert 0.09 < math.log(max(day)) <= 0.1
    known = Distortion(of_type=(("t4", 1.5),)).rates(RATES)
    assert dict(known.microbatch_s) == {"v100": 1.0, "t4": 3.0}


@pytest.mark.parametrize(
    "values",
    [
        {"noise": -0.1},
        {"bias": 4.0},
        {"drift": math.nan},
        {"drift_period_s": 0.0},
        {"of_type": (("t4", 0.0),)},
    ],
)
def test_a_distortion_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="distortion"):
        Distortion(**values)  # type: ignore[arg-type]
