"""The driver's quick check of an allocation refuses whatever the full check refuses.

The driver lets the common case pass at a glance (``plainly_right``); ``fault_of`` is the whole
truth. Random allocations, most of them wrong, must fare the same with both.
"""

from __future__ import annotations

import random
from typing import Any

from policies.driver import Driver
from policies.errors import PlanError
from policies.feasible import fault_of
from policies.state import JobState
from tests.memorylog import drive
from traces import Allocation, Workload

CLUSTER = "1x4:a,3x4:b"


def jobs() -> Workload:
    """Jobs of every size and type, with and without the wish for one node, and a share."""
    rows: list[dict[str, object]] = [
        {"num_gpus": count, "gpu_type": gpu_type, "single_node": one}
        for count in (0, 1, 2, 4, 8)
        for gpu_type in (None, "a", "b")
        for one in (False, True)
        if not (one and count > 4) and not (count > 4 and gpu_type == "a")
    ]
    rows.append({"num_gpus": 1, "gpu_milli": 500})
    # The first takes all of a, the second waits for it: the rest wait behind, and all of b is free.
    rows = [{"num_gpus": 4, "gpu_type": "a"}, {"num_gpus": 4, "gpu_type": "a"}, *rows]
    times = {"submit_s": 0.0, "duration_s": 5.0}
    return Workload.from_jobs([{"job_id": f"j{i}", **times, **row} for i, row in enumerate(rows)])


def allocation(draw: random.Random) -> Allocation:
    """Devices that may or may not exist, be free, ascend, or be integers at all."""
    nodes = [draw.randrange(-1, 5) for _ in range(draw.choice((0, 1, 1, 2, 2, 3)))]
    if draw.random() < 0.7:
        nodes = sorted(set(nodes))
    masks: list[Any] = [0, 1, 1, 3, 3, 15, 15, 31, 1.0, True]
    shares: Any = tuple((node, draw.choice(masks)) for node in nodes)
    if draw.random() < 0.05:
        shares = list(shares)
    return Allocation(shares, draw.choice((1000, 1000, 500)))


def refused(driver: Driver, job: JobState, given: Allocation) -> bool:
    """Whether the driver's check refuses it."""
    try:
        driver._check(job, given)
    except PlanError:
        return True
    return False


def test_agrees_with_the_full_check() -> None:
    driver, _ = drive(jobs(), CLUSTER, "fifo", until_s=0.0)
    draw = random.Random(1)
    waiting = list(driver.view.waiting)
    allowed_over_nodes = refused_for_one_node = 0
    for _ in range(20_000):
        job, given = draw.choice(waiting), allocation(draw)
        fault = fault_of(job, given, driver.view.free)
        assert refused(driver, job, given) == (fault is not None), (job, given, fault)
        # Both sides of what the quick check decides by itself must have come up.
        allowed_over_nodes += fault is None and len(given.shares) > 1
        # Nothing else is wrong with it: the devices are free, of its type, and as many as it wants.
        refused_for_one_node += (
            fault is not None
            and "must stay on one" in fault
            and all(0 < mask <= driver.view.free.mask[node] for node, mask in given.shares)
            and [n for n, _ in given.shares] == sorted({n for n, _ in given.shares})
            and job.request.gpu_types != ("a",)
        )
    assert allowed_over_nodes
    assert refused_for_one_node
