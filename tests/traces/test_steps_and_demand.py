"""Step functions over time, and the load that a workload offers pools of GPU types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.cluster import ClusterSpec
from traces.demand import demand_over_time, pool_loads
from traces.scale import offered_load
from traces.steps import Steps
from traces.workload import Workload

_INTERVALS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9)), max_size=30
)


def _steps(intervals: list[tuple[int, int, int]]) -> Steps:
    start, end, height = np.array(intervals, dtype=np.int64).reshape(-1, 3).T
    return Steps.of_intervals(start.astype(float), end.astype(float), height)


def _workload(*jobs: Mapping[str, object]) -> Workload:
    return Workload.from_jobs([dict(job) for job in jobs])


@given(_INTERVALS)
def test_steps_agree_with_counting(intervals: list[tuple[int, int, int]]) -> None:
    steps = _steps(intervals)
    values = [sum(h for s, e, h in intervals if s <= t < e) for t in range(51)]
    assert [steps.at(t) for t in range(51)] == values
    assert steps.peak == max(values)
    assert steps.integral(0, 51) == sum(values)
    assert steps.integral(0, 20) + steps.integral(20, 51) == steps.integral(0, 51)
    assert steps.peak_s is None or steps.at(steps.peak_s) == steps.peak


@given(_INTERVALS, st.randoms())
def test_steps_do_not_depend_on_order(
    intervals: list[tuple[int, int, int]], random: np.random.Generator
) -> None:
    steps = _steps(intervals)
    random.shuffle(intervals)
    other = _steps(intervals)
    assert np.array_equal(steps.times_s, other.times_s)
    assert np.array_equal(steps.values, other.values)


def test_nothing_is_zero_everywhere() -> None:
    empty = _steps([(3, 3, 5), (9, 2, 5)])
    assert (len(empty), empty.peak, empty.at(3.0), empty.mean(0, 10)) == (0, 0, 0, 0.0)
    assert empty.peak_s is None
    assert _steps([(0, 4, 5)]).mean(4, 4) == 0.0


def test_an_end_and_a_start_at_one_instant_do_not_add_up() -> None:
    steps = _steps([(0, 5, 1), (5, 9, 1)])
    assert steps.peak == 1
    assert steps.times_s.tolist() == [0, 9]


def test_pools_by_hand() -> None:
    """100 s, 2 A and 4 B. Only-A work is 300 GPU-s, only-B 40, A or B 300, any type 60."""
    workload = _workload(
        {"submit_s": 0.0, "duration_s": 300.0, "num_gpus": 1, "gpu_type": "A"},
        {"submit_s": 10.0, "duration_s": 80.0, "num_gpus": 1, "gpu_milli": 500, "gpu_type": "B"},
        {"submit_s": 20.0, "duration_s": 150.0, "num_gpus": 2, "gpu_type": "B|A|Z"},
        {"submit_s": 30.0, "duration_s": 60.0, "num_gpus": 1},
        {"submit_s": 40.0, "duration_s": 1e6, "num_gpus": 1, "gpu_type": "Z"},
        {"submit_s": 50.0, "duration_s": 1e6, "num_gpus": 0},
        {"submit_s": 100.0, "duration_s": None, "num_gpus": 4, "gpu_type": "B"},
    )
    loads = pool_loads(workload, ClusterSpec.parse("1x2:A,1x4:B"))
    assert [(p.gpu_types, p.num_gpus, p.jobs, p.load) for p in loads] == [
        (("A",), 2, 1, 1.5),
        (("B",), 4, 1, 0.1),
        # The union holds what is confined to A, to B, to both, and what takes any type.
        (("A", "B"), 6, 4, pytest.approx(700 / 600)),
    ]


def test_the_whole_pool_is_the_offered_load() -> None:
    rng = np.random.default_rng(2)
    workload = _workload(
        *(
            {"submit_s": float(rng.uniform(0, 1e4)), "duration_s": 50.0, "num_gpus": int(n)}
            for n in rng.integers(1, 9, size=200)
        )
    )
    spec = ClusterSpec.parse("4x8:v100")
    assert pool_loads(workload, spec)[-1].load == pytest.approx(offered_load(workload, spec))


def test_load_needs_a_span_and_gpus() -> None:
    job = {"submit_s": 0.0, "duration_s": 10.0, "num_gpus": 1}
    assert pool_loads(_workload(job, job), ClusterSpec.parse("1x1")) == ()
    assert pool_loads(_workload(job, {**job, "submit_s": 5.0}), ClusterSpec(())) == ()


def test_demand_counts_what_is_still_alive() -> None:
    workload = _workload(
        {"submit_s": 0.0, "start_s": 10.0, "duration_s": 20.0, "num_gpus": 2},
        {"submit_s": 5.0, "duration_s": None, "num_gpus": 1, "right_censored": True},
        {"submit_s": 5.0, "duration_s": None, "num_gpus": 100},
    )
    waiting_free = demand_over_time(workload)
    assert [waiting_free.at(t) // 1000 for t in (0, 5, 20, 30)] == [2, 3, 1, 0]
    recorded = demand_over_time(workload, recorded=True)
    assert [recorded.at(t) // 1000 for t in (0, 5, 10, 29, 30)] == [0, 1, 3, 3, 0]
