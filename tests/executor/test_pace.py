"""The pace of a machine, and the profile of the machine as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from executor import pace as module
from executor.devices import DeviceLane
from executor.pace import at_pace, pace
from policies.rates import step_time_of
from traces import Profile
from traces.profile import ModelProfile, ReduceCost, Transfer

FAST, SLOW = "cpu-avx512", "cpu-default"
PROFILE = Profile(
    models={
        "net": ModelProfile(
            microbatch_s={16: {FAST: 0.010, SLOW: 0.020}},
            switch_s={FAST: 0.001, SLOW: 0.001},
            update_s={FAST: 0.002, SLOW: 0.003},
            interval_s={16: {FAST: (0.009, 0.011)}},
            gradient_bytes=1e6,
            start_s=0.5,
        )
    },
    reduce=ReduceCost(by_devices={1: Transfer(0.0, 1e9), 2: Transfer(0.001, 5e8)}),
    origin="measured",
)


@pytest.mark.parametrize("layout", [((FAST, 4),), ((FAST, 3), (FAST, 1)), ((SLOW, 2),)])
def test_a_machine_that_is_slower_throughout_takes_as_much_longer_for_a_step(
    layout: tuple[tuple[str, int], ...],
) -> None:
    slower = at_pace(PROFILE, {FAST: 1.25, SLOW: 1.25})
    before = step_time_of(PROFILE.rates("net", 16), layout).total_s
    assert step_time_of(slower.rates("net", 16), layout).total_s == pytest.approx(1.25 * before)
    assert slower.models["net"].start_s == 0.5
    assert slower.models["net"].interval_s[16][FAST] == pytest.approx((0.01125, 0.01375))
    assert "cpu-avx512 1.2500" in slower.notes[-1]


def test_types_have_their_own_pace_and_a_reduction_the_slowest() -> None:
    slower = at_pace(PROFILE, {SLOW: 1.5})
    assert slower.models["net"].microbatch_s[16] == {FAST: 0.010, SLOW: pytest.approx(0.030)}
    assert slower.reduce.by_devices[2] == pytest.approx((0.0015, 5e8 / 1.5))


def test_the_pace_is_what_micro_batches_take_over_what_they_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Measured:
        micro_s = (0.02, 0.012, 0.0)

    class Alone:
        def __init__(self, lane: DeviceLane, *_: Any) -> None:
            self.lane = lane

        def __enter__(self) -> Alone:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def round(self) -> Mapping[tuple[str, int], Any]:
            return {("net", 16): Measured()}

    monkeypatch.setattr(module, "Alone", Alone)
    lanes = [
        DeviceLane(name="a", gpu_type=FAST, capability="avx512"),
        DeviceLane(name="b", gpu_type=SLOW, capability="default"),
    ]
    found = pace(PROFILE, [("net", 16)], lanes)
    assert found == {FAST: pytest.approx(1.2), SLOW: pytest.approx(0.6)}
