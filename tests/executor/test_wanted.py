"""What is wanted of a job: maps that fit, and what is left of one when lanes are lost."""

from __future__ import annotations

import pytest

from executor.errors import ExecutorError
from executor.wanted import Wanted
from tests.executorcases import LANES, job, on
from traces.workermap import WorkerMap


def wanted(worker_map: WorkerMap) -> Wanted:
    found = Wanted(job("mlp", worker_map.num_workers, 5))
    found.rescale(worker_map, LANES)
    return found


def test_a_map_that_does_not_fit_changes_nothing() -> None:
    found = wanted(on(1, 3))
    with pytest.raises(ExecutorError, match=r"does not cover all ranks.*expected 4"):
        found.rescale(on(1, 2), LANES)
    with pytest.raises(ExecutorError, match=r"no such lane.*'0/9'.*expected 0/0, 0/1, 0/2, 0/3"):
        found.rescale(on(4, first=9), LANES)
    assert found.map == on(1, 3)


@pytest.mark.parametrize(
    ("before", "lost", "after"),
    [
        (on(1, 1, 3), 2, on(3, 2)),
        (on(2, 2), 0, on(4, first=1)),
        (on(2, 2), 3, on(2, 2)),
        (on(4), 0, None),
        (on(1, 1, 1, 1), 1, on(2, 1, 1, order=[0, 2, 3])),
    ],
    ids=str,
)
def test_the_other_devices_share_the_ranks_of_a_lost_lane(
    before: WorkerMap, lost: int, after: WorkerMap | None
) -> None:
    found = wanted(before)
    found.lose((0, lost))
    assert found.map == after
