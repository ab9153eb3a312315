"""Whole runs of elastic policies: nobody starves, order does not matter, devices add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Costs, Model
from policies.registry import POLICIES, policy_class
from tests.memorylog import MemoryLog, drive
from traces import Workload

CLUSTER = "2x4:v,2x2:t"
ELASTIC = [name for name in POLICIES if policy_class(name).resizes]
RESIZING = [*ELASTIC, "easyscale:version=paper", "easyscale:estimates=true", "easyscale:margin=1"]
MODEL = Model(speeds={"t": 0.5}, costs=Costs(start_s=2.0, restore_s=1.0, rescale_s=3.0))
ROWS = st.lists(
    st.tuples(
        st.integers(0, 100),
        st.integers(1, 120),
        st.integers(1, 4),
        st.integers(1, 2),
        st.integers(0, 2),
        st.booleans(),
        st.sampled_from([None, "v", "t"]),
    ),
    min_size=1,
    max_size=10,
)


def workload(rows: list[tuple[Any, ...]]) -> Workload:
    return Workload.from_jobs(
        [
            {
                "job_id": f"job{i}",
                "submit_s": float(at),
                "duration_s": float(work),
                "num_gpus": gang,
                "num_workers": gang * times,
                "max_gpus": gang * times,
                "min_gpus": min(least, gang),
                "mixes_types": mixes,
                "gpu_type": gpu_type,
            }
            for i, (at, work, gang, times, least, mixes, gpu_type) in enumerate(rows)
        ]
    )


def check(log: MemoryLog, jobs: Workload) -> None:
    """Ranks are conserved, bounds kept, no device is held twice, work adds up."""
    elastic = [job.elastic for job in jobs.jobs()]
    done = np.zeros(len(jobs))
    held: list[tuple[float, float, int, int]] = []
    for (rank, allocation, start, begin, end, rate, _), (_, _, workers) in zip(
        log.allocations, log.workers, strict=True
    ):
        bounds = elastic[rank]
        assert bounds is not None
        assert bounds.least_gpus <= allocation.num_gpus <= bounds.max_gpus
        assert workers.num_workers == bounds.num_workers
        types = {0 if node < 2 else 1 for node, _ in allocation.shares}
        assert len(types) == 1 or bounds.mixes_types
        speeds = sum(m.bit_count() * (1.0 if n < 2 else 0.5) for n, m in allocation.shares)
        assert rate <= speeds / bounds.num_workers + 1e-12
        done[rank] += max(0.0, end - begin) * rate
        held += [(start, end, node, mask) for node, mask in allocation.shares]
    assert done == pytest.approx(jobs.table["duration_s"].to_numpy())
    held.sort()
    for i, (_, end, node, mask) in enumerate(held):
        for later, _, other, taken in held[i + 1 :]:
            if later >= end:
                break
            assert other != node or not mask & taken


@settings(max_examples=60)
@given(rows=ROWS, policy=st.sampled_from(RESIZING))
def test_a_run_holds_together(rows: list[tuple[Any, ...]], policy: str) -> None:
    jobs = workload(rows)
    driver, log = drive(jobs, CLUSTER, policy, model=MODEL)
    assert driver.complete
    assert driver.counts.finished == len(rows)
    check(log, jobs)


@settings(max_examples=30)
@given(rows=ROWS, policy=st.sampled_from(RESIZING), data=st.data())
def test_the_order_of_rows_changes_nothing(
    rows: list[tuple[Any, ...]], policy: str, data: st.DataObject
) -> None:
    table = workload(rows).table
    order = data.draw(st.permutations(range(len(rows))))
    first, _ = drive(Workload(table), CLUSTER, policy, model=MODEL)
    other, _ = drive(Workload(table.iloc[order]), CLUSTER, policy, model=MODEL)
    assert first.outcomes.columns() == other.outcomes.columns()


@pytest.mark.parametrize("estimates", ["none", "true"])
def test_a_long_job_under_a_stream_of_short_ones_ends(estimates: str) -> None:
    """Short jobs ask for four times what there is, for ever, and the long one ends all the same."""
    rows: list[tuple[Any, ...]] = [(0, 300, 4, 1, 0, False, "v")]
    rows += [(10 * i, 40, 4, 2, 0, False, "v") for i in range(1, 800)]
    jobs = workload(rows)
    text = f"easyscale:prior_s=40,patience=4,estimates={estimates}"
    kept, _ = drive(jobs, "1x8:v", text, model=MODEL, until_s=8_000.0)
    assert kept.outcomes.finish_s[0] < 8_000.0
    passed, _ = drive(jobs, "1x8:v", f"{text},reserve=0,aging=1e9", model=MODEL, until_s=8_000.0)
    assert not passed.outcomes.finish_s[0] < 8_000.0


def test_what_is_guaranteed_is_never_taken() -> None:
    rows: list[tuple[Any, ...]] = [(0, 300, 4, 1, 2, False, "v")]
    rows += [(5 * i, 20, 4, 2, 0, False, "v") for i in range(1, 60)]
    jobs = workload(rows)
    driver, log = drive(jobs, "1x8:v", "easyscale:prior_s=20", model=MODEL)
    assert driver.outcomes.preemptions[0] == 0
    held = [a.num_gpus for rank, a, *_ in log.allocations if rank == 0]
    assert min(held) >= 2
    assert len(held) > 1
