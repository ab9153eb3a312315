"""What goes wrong with a job: who is blamed, who is not trusted, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest

from executor.messages import Broke
from executor.trouble import Trouble

DEVICES = {0: "a", 1: "b", 2: "c"}


def broke(kind: str, *culprits: int, step: int = 4, **values: Any) -> Broke:
    return Broke(
        generation=1, step=step, kind=kind, text=f"{kind} at {step}", culprits=culprits, **values
    )


def test_a_culprit_is_blamed_if_it_lives() -> None:
    trouble: Trouble[str] = Trouble()
    trouble.broke("b", broke("failed", 1), DEVICES)
    trouble.broke("b", broke("failed", 7), DEVICES)
    assert trouble.blamed == {"b": "failed at 4"}
    assert trouble.distrust is None


def test_garbage_of_nobody_knows_whom_is_distrust() -> None:
    trouble: Trouble[str] = Trouble()
    trouble.broke("a", broke("garbage"), DEVICES)
    assert (trouble.blamed, trouble.distrust) == ({}, 4)
    trouble.broken = True
    trouble.mended()
    assert (trouble.broken, trouble.distrust) == (False, None)


def test_an_update_that_all_refuse_blames_nobody() -> None:
    trouble: Trouble[str] = Trouble()
    trouble.broke("a", broke("failed", 0, refused=True), DEVICES)
    assert (trouble.blamed, trouble.distrust) == ({}, None)


def test_an_error_of_the_task_is_given_up_at_the_second_try() -> None:
    trouble: Trouble[str] = Trouble()
    trouble.broke("b", broke("failed", 1), DEVICES)
    trouble.broke("b", broke("failed", 1, step=5), DEVICES)
    assert trouble.failure is None
    trouble.broke("b", broke("failed", 1), DEVICES)
    assert trouble.failure == "failed at 4"


def test_what_all_report_alike_counts_once() -> None:
    trouble: Trouble[str] = Trouble()
    for device in DEVICES.values():
        trouble.broke(device, broke("garbage", 2), DEVICES)
    assert trouble.failure is None
    trouble.broke("b", broke("garbage", 2), {1: "b", 2: "c"})  # the first that lives
    assert trouble.failure == "garbage at 4"


@pytest.mark.parametrize("devices", [DEVICES, {1: "b"}])
def test_deaths_are_given_up_after_many(devices: dict[int, str]) -> None:
    trouble: Trouble[str] = Trouble()
    for _ in range(11):
        for device in devices.values():
            trouble.broke(device, broke("lost"), devices)
    assert (trouble.failure, trouble.blamed) == (None, {})
    for device in devices.values():
        trouble.broke(device, broke("lost"), devices)
    assert (trouble.failure, trouble.blamed) == ("lost at 4", {})


def test_a_refused_request_may_be_tried_once_more() -> None:
    trouble: Trouble[str] = Trouble()
    trouble.refused(3, "no space")
    assert trouble.failure is None
    trouble.refused(3, "no space")
    assert trouble.failure == "no space"
