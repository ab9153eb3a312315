"""The pace of a machine, and the profile of the machine as it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from executor import pace as module
from executor.devices import DeviceLane
from executor.levels import Agreement
from executor.pace import at_pace, pace, pace_of
from policies.rates import step_time_of
from traces import DataError, Profile
from traces.profile import ModelProfile, ReduceCost, Transfer
from traces.workermap import WorkerMap

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


def test_the_pace_is_what_steps_take_over_what_they_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Trials:
        """Two logical workers take 30 ms on fast lanes, 22 on slow ones, their mean."""

        def __init__(self, lanes: Sequence[DeviceLane], _: Agreement) -> None:
            self.lanes = lanes

        def __enter__(self) -> Trials:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def at_once(
            self, model: str, batch: int, maps: Sequence[WorkerMap], *, steps: int
        ) -> list[list[float]]:
            assert (model, batch) == ("net", 16)
            assert [one.counts for one in maps] == [(2,)] * len(self.lanes)
            fast = self.lanes[0].gpu_type == FAST
            usual = 0.027 if fast else 0.019
            return [[usual, usual, usual + 0.009] for _ in maps]

    monkeypatch.setattr(module, "Trials", Trials)
    lanes = [
        DeviceLane(name="a", gpu_type=FAST, capability="avx512", cpus=(0,)),
        DeviceLane(name="b", gpu_type=FAST, capability="avx512", cpus=(1,)),
    ]
    # 2 x 10 + 1 + 2 ms, and 1 MB at 1 GB/s
    assert pace(PROFILE, [("net", 16)], lanes) == {FAST: pytest.approx(30 / 24)}
    slow = [DeviceLane(name="c", gpu_type=SLOW, capability="default", cpus=(0,))]
    assert pace(PROFILE, [("net", 16)], slow) == {SLOW: pytest.approx(22 / 45)}


def test_a_runs_own_pace_is_what_the_profile_does_not_explain() -> None:
    spent = {"start": 3.0, "compute": 6.0, "waiting": 1.0, "update": 1.0, "unexplained": -0.4}
    assert pace_of({"executor": {"device_s": spent}}) == pytest.approx(0.95)
    with pytest.raises(DataError, match="does not say where its device time went"):
        pace_of({"executor": {}})
