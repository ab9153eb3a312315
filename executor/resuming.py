"""To go on where an execution ended: what is kept of how things stand, and what follows from it.

The driver of an execution that goes on has the jobs that are not over; everything else, the log,
the recipes, the bits, is of the whole workload, on one axis of time. Ranks tell one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from executor.cluster import LocalCluster
from executor.journal import Left
from executor.past import Past
from policies.driver import Driver
from traces import Workload


def state_of(driver: Driver, cluster: LocalCluster, ranks: Sequence[int]) -> dict[str, Any]:
    """How things stand: what a crash would leave open."""
    loans = []
    if driver.lender is not None:
        loans = [
            [pool, *device, loan.asked_s, loan.ready_s, loan.source]
            for pool, owned in enumerate(driver.lender.owned)
            for device, loan in owned.items()
        ]
    return {
        "open": {ranks[rank]: stay for rank, stay in cluster.measured().items()},
        "loans": loans,
    }


def past_of(resumes: Left | None, workload: Workload) -> tuple[Past, Workload, Sequence[int]]:
    """What was before, the jobs that are not over, and their ranks in the whole workload."""
    if resumes is None:
        return Past(), workload, range(len(workload))
    past, jobs = resumes.past, list(workload.jobs())

    def kept_s(rank: int) -> float:
        elastic = jobs[rank].elastic
        assert elastic is not None
        done = resumes.step_of(jobs[rank].job_id) / (elastic.total_steps or 1)
        return jobs[rank].duration_s * done

    past.close(kept_s)
    ranks = [rank for rank in range(len(workload)) if rank not in past.over]
    return past, Workload(workload.table.iloc[ranks].reset_index(drop=True)), ranks


def whole(ended: dict[str, Any], workload: Workload, past: Past) -> dict[str, Any]:
    """The record's ending, of what was before too."""
    before = past.counts()
    counts = {name: count + before[name] for name, count in ended["counts"].items()}
    submit = workload.table["submit_s"]
    span = ended["span"] | ({"start_s": float(submit.iloc[0])} if len(submit) else {})
    return ended | {"counts": counts, "span": span}
