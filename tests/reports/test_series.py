"""Step functions: against sums done the long way, for any intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.series import Steps

Interval = tuple[int, int, int]
INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(1, 8)), max_size=25
)


def _steps(intervals: list[Interval]) -> Steps:
    start = np.array([s for s, _, _ in intervals], dtype=np.float64)
    length = np.array([d for _, d, _ in intervals], dtype=np.float64)
    weight = np.array([w for _, _, w in intervals], dtype=np.int64)
    return Steps.from_intervals(start, start + length, weight)


def _by_hand(intervals: list[Interval], time_s: float) -> int:
    return sum(w for s, d, w in intervals if s <= time_s < s + d)


@given(INTERVALS)
def test_value_and_integral_are_the_sums_over_intervals(intervals: list[Interval]) -> None:
    steps = _steps(intervals)
    assert (np.diff(steps.time_s) > 0).all()
    times = np.arange(-1, 85, 0.5)
    assert steps.at(times).tolist() == [_by_hand(intervals, t) for t in times]
    assert steps.integral(-1, 100) == sum(d * w for _, d, w in intervals)
    inside = sum(max(0, min(s + d, 40) - max(s, 10)) * w for s, d, w in intervals)
    assert steps.integral(10, 40) == inside
    assert steps.peak() == max((_by_hand(intervals, s) for s, _, _ in intervals), default=0)


@given(INTERVALS, st.integers(1, 12))
def test_bins_keep_area_and_extremes(intervals: list[Interval], count: int) -> None:
    steps = _steps(intervals)
    edges = np.linspace(0, 84, count + 1)
    bins = steps.bins(edges)
    assert (bins.mean * np.diff(edges)).sum() == pytest.approx(steps.integral(0, 84))
    assert (bins.low <= bins.mean + 1e-9).all()
    assert (bins.mean <= bins.high + 1e-9).all()
    assert bins.high.max() == steps.peak()  # no peak is lost, however short
    for low, high, least, most in zip(edges[:-1], edges[1:], bins.low, bins.high, strict=True):
        seen = [
            _by_hand(intervals, low),
            *(_by_hand(intervals, t) for t in range(85) if low < t < high),
        ]
        assert (least, most) == (min(seen), max(seen))


@given(INTERVALS, INTERVALS)
def test_plus_and_minus(first: list[Interval], second: list[Interval]) -> None:
    times = np.arange(0, 85, 0.5)
    a, b = _steps(first), _steps(second)
    assert (a.plus(b).at(times) == a.at(times) + b.at(times)).all()
    assert (a.plus(b, -1).at(times) == a.at(times) - b.at(times)).all()


def test_thousandths_add_up_exactly() -> None:
    # Ten shares of a tenth are one GPU, with no rounding left when they are given back.
    start, end = np.zeros(10), np.full(10, 5.0)
    steps = Steps.from_intervals(start, end, np.full(10, 100), 1 / 1000)
    assert steps.value.tolist() == [1.0, 0.0]


def test_no_intervals_are_nothing() -> None:
    steps = Steps.from_intervals(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    assert steps.at(np.array([0.0, 5.0])).tolist() == [0, 0]
    assert steps.integral(0, 10) == 0
    assert steps.mean(3, 3) is None
    assert steps.bins(np.array([0.0, 1.0, 2.0])).high.tolist() == [0, 0]
