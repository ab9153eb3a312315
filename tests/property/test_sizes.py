"""Sizes of elastic jobs against exact planning and exhaustive search, and against each other."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.elastic import Kind
from policies.inter.sizes import Sizes
from policies.intra.balance import best
from policies.rates import device_s
from traces import Elastic
from traces.profile import JobRates

TYPES = ("a", "b", "c")
SECONDS = st.floats(0.05, 5.0)
PRICES = (1.0, 0.6, 0.4)


def sizes(
    seconds: tuple[float, ...],
    workers: int,
    most: int,
    switch: float = 0.0,
    *,
    mixes: bool = True,
    least: int = 0,
) -> Sizes:
    rates = JobRates(
        model="m",
        batch_size=1,
        microbatch_s=dict(zip(TYPES, seconds, strict=True)),
        switch_s=dict.fromkeys(TYPES, switch),
        update_s=dict.fromkeys(TYPES, 0.0),
    )
    elastic = Elastic(num_workers=workers, max_gpus=most, min_gpus=least, mixes_types=mixes)
    reference = device_s(rates, "a", 1)
    return Sizes(Kind(elastic, (0, 1, 2), TYPES, PRICES, rates, reference))


@given(
    seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    workers=st.integers(1, 24),
    counts=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    switch=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_rates_are_those_of_the_best_worker_map(
    seconds: tuple[float, ...], workers: int, counts: tuple[int, int, int], switch: float
) -> None:
    table = sizes(seconds, workers, 27, switch)
    if not any(counts):
        assert table.rate(counts) == 0.0
        return
    fit = best(table._rates, workers, counts, 27)
    assert fit is not None
    assert table.rate(counts) == pytest.approx(seconds[0] / fit.step_s, rel=1e-9)


@given(
    seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    workers=st.integers(1, 12),
    most=st.integers(1, 6),
    limits=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    mixes=st.booleans(),
    least=st.integers(0, 3),
)
def test_without_thrift_nothing_within_the_limits_is_faster(
    seconds: tuple[float, ...],
    workers: int,
    most: int,
    limits: tuple[int, int, int],
    mixes: bool,
    least: int,
) -> None:
    least = min(least, most)
    table = sizes(seconds, workers, most, mixes=mixes, least=least)
    possible = [
        counts
        for counts in product(*(range(n + 1) for n in limits))
        if max(least, 1) <= sum(counts) <= most and (mixes or sum(map(bool, counts)) == 1)
    ]
    found = table.best(limits, 0.0)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert found.counts in possible
    assert found.rate == pytest.approx(max(table.rate(c) for c in possible), rel=1e-9)
    assert found.price == pytest.approx(table.price(found.counts))


@given(
    seconds=st.tuples(SECONDS, SECONDS, SECONDS),
    workers=st.integers(1, 16),
    limits=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    thrift=st.sampled_from([0.25, 0.5, 0.9]),
)
def test_more_room_is_never_slower_and_thrift_never_dearer(
    seconds: tuple[float, ...],
    workers: int,
    limits: tuple[int, int, int],
    more: tuple[int, int, int],
    thrift: float,
) -> None:
    table = sizes(seconds, workers, workers)
    found = table.best(limits, 0.0)
    wider = table.best(tuple(n + m for n, m in zip(limits, more, strict=True)), 0.0)
    if found is None:
        return
    assert wider is not None
    assert wider.rate >= found.rate * (1 - 1e-9)
    # Never faster than its devices together.
    together = sum(n * seconds[0] / s for n, s in zip(found.counts, seconds, strict=True))
    assert found.rate <= together / workers * (1 + 1e-9)
    thrifty = table.best(limits, thrift)
    assert thrifty is not None
    weight = thrift * table.density
    assert thrifty.rate - weight * thrifty.price >= found.rate - weight * found.price - 1e-9


@given(seconds=st.tuples(SECONDS, SECONDS, SECONDS), workers=st.integers(1, 40))
def test_steps_are_the_sizes_that_make_a_difference(
    seconds: tuple[float, ...], workers: int
) -> None:
    table = sizes(seconds, workers, workers)
    steps = table.steps(1)
    assert [s.gpus for s in steps] == sorted(
        {
            min(n for n in range(1, workers + 1) if -(-workers // n) == a)
            for a in {-(-workers // n) for n in range(1, workers + 1)}
        }
    )
    assert all(x.rate < y.rate for x, y in pairwise(steps))
