"""Samples: the size that was asked for, the same jobs for the same seed, and a note on the load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import DataError, UsageError, Workload, generate
from traces.sample import WAYS, sample
from traces.scale import mean_demand_gpus, span_s

WHOLE = generate("philly", seed=2, days=7, users=5)


@pytest.mark.parametrize("by", ["job", "time-window", "head"])
def test_so_many_jobs(by: str) -> None:
    part = sample(WHOLE, by=by, jobs=321, seed=4)
    assert len(part) == 321
    assert set(part.table["job_id"]) <= set(WHOLE.table["job_id"])


def test_a_fraction_of_the_jobs_thins_the_load() -> None:
    part = sample(WHOLE, fraction=0.25, seed=1)
    assert len(part) == round(0.25 * len(WHOLE))
    expected = WHOLE.table.set_index("job_id").loc[part.table["job_id"]].reset_index()
    assert expected[part.table.columns].equals(part.table)
    assert "sample by job, seed 1" in part.source.notes[-1]
    assert f"{len(part)} of {len(WHOLE)} jobs" in part.source.notes[-1]
    assert f"(before: {mean_demand_gpus(WHOLE):.4g})" in part.source.notes[-1]


@pytest.mark.parametrize("by", ["user", "vc"])
def test_submitters_come_whole(by: str) -> None:
    part = sample(WHOLE, by=by, fraction=0.3, seed=3)
    kept = set(part.table[by])
    assert len(kept) == round(0.3 * WHOLE.table[by].nunique())
    assert len(part) == WHOLE.table[by].isin(kept).sum()
    at_least = sample(WHOLE, by=by, jobs=700, seed=3)
    assert len(at_least) >= 700


def test_jobs_without_a_user_count_as_one() -> None:
    rows: list[dict[str, object]] = [
        {"job_id": f"j{i}", "submit_s": i, "duration_s": 1, "num_gpus": 1, "user": user}
        for i, user in enumerate(["ann", None, "bob", None])
    ]
    workload = Workload.from_jobs(rows)
    sizes = {len(sample(workload, by="user", fraction=0.3, seed=s)) for s in range(20)}
    assert sizes == {1, 2}
    with pytest.raises(DataError, match="no job has a vc"):
        sample(workload, by="vc", fraction=0.5)


def test_windows_of_time() -> None:
    day = sample(WHOLE, by="head", length_s=86_400)
    first = WHOLE.table["submit_s"].iloc[0]
    assert len(day) == (WHOLE.table["submit_s"] < first + 86_400).sum()
    starts = set()
    for seed in range(5):
        part = sample(WHOLE, by="time-window", fraction=0.2, seed=seed)
        assert span_s(part) <= 0.2 * span_s(WHOLE)
        ranks = np.flatnonzero(WHOLE.table["job_id"].isin(part.table["job_id"]))
        assert (np.diff(ranks) == 1).all()  # a window leaves out nothing inside
        starts.add(int(ranks[0]))
    assert len(starts) == 5
    assert sample(WHOLE, by="time-window", fraction=1.0).digest() == WHOLE.digest()


@settings(max_examples=25)
@given(st.sampled_from(WAYS), st.integers(0, 1000), st.integers(0, 2**31))
def test_neither_the_order_of_rows_nor_a_second_call_matters(
    by: str, seed: int, shuffle: int
) -> None:
    small = WHOLE.head(200)
    mixed = Workload(small.table.sample(frac=1, random_state=shuffle))
    first = sample(small, by=by, seed=seed, jobs=40)
    assert sample(mixed, by=by, seed=seed, jobs=40).digest() == first.digest()
    assert len(first) >= 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "jobs", "jobs": 1}, "did you mean 'job'"),
        ({}, "give one size"),
        ({"jobs": 1, "fraction": 0.1}, "give one size"),
        ({"fraction": 0.0}, "above 0, at most 1"),
        ({"fraction": 1.5}, "above 0, at most 1"),
        ({"jobs": 0}, "expected 1 to"),
        ({"jobs": 10**9}, "what the trace has"),
        ({"length_s": 60.0}, "for time-window and head"),
        ({"length_s": -1.0, "by": "head"}, "above 0"),
        ({"fraction": 1e-9}, "no job"),
        ({"jobs": 1, "seed": -1}, "seed"),
    ],
)
def test_sizes_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample(WHOLE, **arguments)  # type: ignore[arg-type]


def test_an_empty_window_is_an_error() -> None:
    rows: list[dict[str, object]] = [
        {"job_id": f"j{i}", "submit_s": s, "duration_s": 1, "num_gpus": 1}
        for i, s in enumerate([0.0, 1e6])
    ]
    with pytest.raises(DataError, match="no job is submitted"):
        sample(Workload.from_jobs(rows), by="time-window", length_s=10.0)
