"""Planning for one job, held to what is true of any: exhaustive search, conservation, order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.contract import IntraJobPolicy
from policies.intra.balance import Fit, best, ladder, spread
from policies.intra.companion import Companion
from policies.intra.even import Even
from policies.intra.growth import growths, losses
from policies.intra.learning import Memory, learned, observe, observe_devices
from policies.rates import UNLIMITED, Comm, device_s, step_time_of
from traces import Elastic, Profile
from traces.profile import JobRates, ModelProfile, ReduceCost, Transfer
from traces.workermap import Gpu

TYPES = ("a", "b", "c", "d")
NICE = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
SECONDS = st.one_of(NICE, st.floats(0.01, 10.0))
COSTS = st.one_of(st.just(0.0), NICE, st.floats(0.0, 2.0))


@st.composite
def all_rates(draw: st.DrawFn, most_types: int = 3) -> JobRates:
    types = TYPES[: draw(st.integers(1, most_types))]
    measured = draw(st.dictionaries(st.integers(1, 5), st.floats(0.0, 3.0), max_size=3))
    reduce = draw(
        st.sampled_from(
            [
                ReduceCost(),
                ReduceCost(latency_s=draw(COSTS), bytes_per_s=1e9),
                ReduceCost(by_devices={k: Transfer(s, 1e9) for k, s in measured.items()}),
            ]
        )
    )
    return JobRates(
        model="m",
        batch_size=1,
        microbatch_s={t: draw(SECONDS) for t in types},
        switch_s={t: draw(COSTS) for t in types},
        update_s={t: draw(COSTS) for t in types},
        gradient_bytes=draw(st.sampled_from([0.0, 1e8, 1e9])),
        reduce=reduce,
    )


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to give ``total`` workers to ``parts`` devices, none included."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def exhaustive_s(rates: JobRates, workers: int, gpus: tuple[int, ...], most: int) -> float:
    devices = [t for t, n in zip(rates.microbatch_s, gpus, strict=True) for _ in range(n)]
    steps = [
        step_time_of(rates, layout, UNLIMITED).total_s
        for counts in compositions(workers, len(devices))
        if len(layout := tuple((t, c) for t, c in zip(devices, counts, strict=True) if c)) <= most
    ]
    return min(steps)


def layout_of(rates: JobRates, workers: int, fit: Fit) -> tuple[tuple[str, int], ...]:
    counts = spread(rates, workers, fit.gpus)
    return tuple((t, c) for t, some in zip(rates.microbatch_s, counts, strict=True) for c in some)


@settings(max_examples=150)
@given(all_rates(), st.integers(1, 6), st.lists(st.integers(0, 3), min_size=3), st.integers(1, 5))
def test_no_assignment_is_faster(
    rates: JobRates, workers: int, counts: list[int], most: int
) -> None:
    gpus = tuple(counts[: len(rates.microbatch_s)])
    if not 1 <= sum(gpus) <= 5:
        gpus = (2, *(1 for _ in gpus[1:]))
    fit = best(rates, workers, gpus, most)
    assert fit is not None
    searched = exhaustive_s(rates, workers, gpus, most)
    assert fit.step_s == pytest.approx(searched, rel=1e-12)
    # And the map that is made of it takes that long, no longer.
    step = step_time_of(rates, layout_of(rates, workers, fit), UNLIMITED)
    assert step.total_s == pytest.approx(searched, rel=1e-9)
    assert all(u <= n for u, n in zip(fit.gpus, gpus, strict=True))
    assert fit.num_gpus <= most


def test_the_search_can_fail_it() -> None:
    """Even counts are no optimum: the comparison above tells them apart."""
    rates = JobRates.plain({"a": 1.0, "b": 3.0})
    assert exhaustive_s(rates, 4, (1, 1), 2) == 3.0
    assert step_time_of(rates, (("a", 2), ("b", 2)), UNLIMITED).total_s == 6.0


@given(all_rates(4), st.integers(1, 40), st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_more_devices_are_never_slower(rates: JobRates, workers: int, counts: list[int]) -> None:
    gpus = tuple(counts[: len(rates.microbatch_s)])
    fit = best(rates, workers, gpus, 64)
    if fit is None:
        assert sum(gpus) == 0
        return
    speed = sum(n / s for n, s in zip(fit.gpus, rates.microbatch_s.values(), strict=True))
    assert workers / fit.step_s <= speed * (1 + 1e-9)
    for g in range(len(gpus)):
        more = best(rates, workers, tuple(n + (i == g) for i, n in enumerate(gpus)), 64)
        assert more is not None
        assert more.step_s <= fit.step_s
    # No GPU of the fit is idle, and none holds more than the limit allows.
    counts_by_type = spread(rates, workers, fit.gpus)
    assert sum(sum(some) for some in counts_by_type) == workers
    device_s = ladder(rates, workers).device_s
    for i, some in enumerate(counts_by_type):
        assert len(some) == fit.gpus[i]
        assert all(c >= 1 and device_s[i][c] <= fit.compute_s for c in some)


@given(all_rates(3), st.integers(1, 24), st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_growth_and_loss_mean_what_they_say(
    rates: JobRates, workers: int, counts: list[int]
) -> None:
    held = tuple(counts[: len(rates.microbatch_s)])
    now = best(rates, workers, held, 64)
    free = (4,) * len(held)
    found = growths(rates, workers, held, free, 64, reference_s=1.0)
    assert [g.gain for g in found] == sorted((g.gain for g in found), reverse=True)
    for growth in found:
        grown = tuple(n + growth.more * (i == growth.type_index) for i, n in enumerate(held))
        fit = best(rates, workers, grown, 64)
        assert fit == growth.fit
        if now is not None:
            assert growth.speedup == now.step_s / growth.fit.step_s > 1.0
    if now is None:
        assert found or not any(held)
        return
    # No single type helps more than the best that was found for any number of its GPUs.
    for g in range(len(held)):
        for more in range(1, 5):
            fit = best(rates, workers, tuple(n + more * (i == g) for i, n in enumerate(held)), 64)
            assert fit is not None
            gain = (now.step_s / fit.step_s - 1.0) / more
            offered = max((x.gain for x in found if x.type_index == g), default=0.0)
            assert more > workers or gain <= offered * (1 + 1e-12) + 1e-12
    for loss in losses(rates, workers, held, 64):
        assert loss.lost >= -1e-12
        assert sum(held) - loss.fewer >= 1


JOB = st.builds(
    Elastic,
    num_workers=st.integers(1, 16),
    max_gpus=st.integers(1, 16),
    mixes_types=st.booleans(),
    model=st.just("m"),
    batch_size=st.just(1),
)


def profile_of(rates: JobRates) -> Profile:
    model = ModelProfile(
        microbatch_s={1: rates.microbatch_s},
        switch_s=rates.switch_s,
        update_s=rates.update_s,
        gradient_bytes=rates.gradient_bytes,
    )
    return Profile(models={"m": model}, origin="analytic", reduce=rates.reduce)


@given(
    all_rates(3),
    JOB,
    st.lists(
        st.builds(Gpu, st.integers(0, 3), st.integers(0, 7), st.sampled_from(TYPES[:3])),
        min_size=1,
        max_size=12,
        unique_by=lambda gpu: (gpu.node, gpu.gpu),
    ),
    st.randoms(use_true_random=False),
)
def test_maps_keep_ranks_and_devices_and_no_order_matters(
    rates: JobRates, job: Elastic, gpus: list[Gpu], random: object
) -> None:
    profile = profile_of(rates)
    gpus = [gpu for gpu in gpus if gpu.gpu_type in rates.microbatch_s] or [Gpu(0, 0, "a")]
    shuffled = sorted(gpus, key=lambda gpu: random.random())  # type: ignore[attr-defined]
    policies: list[IntraJobPolicy] = [Companion(), Even()]
    for policy in policies:
        workers = policy.assign(job, gpus, profile)
        assert workers == policy.assign(job, shuffled, profile)
        assert workers.num_workers == job.num_workers
        assert workers.num_gpus <= job.max_gpus
        assert set(workers.gpus) <= {(gpu.node, gpu.gpu) for gpu in gpus}
        assert len(set(workers.gpus)) == len(workers.gpus)
        assert all(count >= 1 for count in workers.counts)
    types = {(gpu.node, gpu.gpu): gpu.gpu_type for gpu in gpus}
    chosen = Companion().assign(job, gpus, profile)
    used = [types[gpu] for gpu in chosen.gpus]
    if not job.mixes_types:
        assert len(set(used)) == 1
    # The planned step is the map's, and never longer than the even map's where that is allowed.
    counts = {t: sum(gpu.gpu_type == t for gpu in gpus) for t in TYPES}
    plan = Companion().plan(job, counts, profile)
    step = step_time_of(rates, tuple(zip(used, chosen.counts, strict=True)), UNLIMITED)
    assert step.total_s == pytest.approx(plan.step_s, rel=1e-9)
    even = Even().assign(job, gpus, profile)
    if job.mixes_types or len({types[gpu] for gpu in even.gpus}) == 1:
        layout = tuple(zip((types[gpu] for gpu in even.gpus), even.counts, strict=True))
        assert plan.step_s <= step_time_of(rates, layout, UNLIMITED).total_s * (1 + 1e-12)
    for t in TYPES:
        assert plan.gpus.get(t, 0) + plan.released.get(t, 0) == counts[t]
    assert math.isclose(
        plan.worth.throughput, job.num_workers / plan.worth.overload_s, rel_tol=1e-9
    )


@given(all_rates(2), st.integers(1, 6), st.integers(1, 4))
def test_slower_links_are_never_faster(rates: JobRates, workers: int, gpus: int) -> None:
    held = (gpus,) * len(rates.microbatch_s)
    fast = best(rates, workers, held, 8)
    slow = best(rates, workers, held, 8, Comm(1e8, 0.01))
    assert fast is not None
    assert slow is not None
    assert fast.step_s <= slow.step_s


@given(
    st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3),
    st.lists(
        st.dictionaries(st.sampled_from(TYPES[:3]), st.integers(1, 9), min_size=1),
        min_size=1,
        max_size=8,
    ),
)
def test_what_is_learned_explains_what_was_seen(
    factors: list[float], seen: list[dict[str, int]]
) -> None:
    rates = JobRates.plain({"a": 1.0, "b": 2.0, "c": 3.0})
    truth = rates.scaled(dict(zip(TYPES, factors, strict=False)))
    memory = Memory()
    for some in seen:
        layout = tuple(sorted(some.items()))
        memory = observe(memory, rates, layout, step_time_of(truth, layout).total_s)
    believed = learned(rates, memory)
    for some in seen:
        layout = tuple(sorted(some.items()))
        step_s = step_time_of(truth, layout).total_s
        assert 0.95 * step_s * (1 - 1e-9) <= step_time_of(believed, layout).total_s
        assert step_time_of(believed, layout).total_s <= step_s * (1 + 1e-9)
    told = observe_devices(
        Memory(),
        rates,
        [(t, n, device_s(truth, t, n)) for some in seen for t, n in some.items()],
        weight=1.0,
    )
    for some in seen:
        for t in some:
            assert learned(rates, told).seconds(t) == pytest.approx(truth.seconds(t))
