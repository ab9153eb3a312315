"""Comparison: which runs form a group, where intervals come from, and that they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reports.compare import compare
from reports.metrics import metrics
from tests.reports.runs import Hold, MakeRun
from traces import RunLog, UsageError

JOBS = 60


def _queue_run(
    make_run: MakeRun, waits: Sequence[float], *, start: float = 0.0, **fields: Any
) -> RunLog:
    """Jobs of 100 s, one GPU each, submitted 1,000 s apart; job i waits ``waits[i]``."""
    return make_run(
        jobs=[
            {"job_id": f"j{i:03d}", "submit_s": 1000.0 * i, "duration_s": 100.0}
            for i in range(len(waits))
        ],
        holds=[
            Hold(
                job=f"j{i:03d}", node=0, gpus=[0],
                start=1000.0 * i + start + wait, end=1000.0 * i + start + wait + 100,
            )
            for i, wait in enumerate(waits)
        ],
        **fields,
    )  # fmt: skip


def test_a_constant_shift_has_an_interval_of_no_width(make_run: MakeRun) -> None:
    rng = np.random.default_rng(0)
    waits = rng.exponential(200, JOBS).round().tolist()
    base = _queue_run(make_run, waits, name="a")
    other = _queue_run(make_run, waits, start=50.0, name="b")
    found = compare([base, other])
    assert found.labels == ("a", "b")
    assert "moving-block bootstrap over 60 paired jobs" in found.methods[1]
    for name in ("mean_jct_s", "median_jct_s", "p99_jct_s", "mean_queueing_s"):
        row = found.rows[name][1]
        assert row.difference == pytest.approx(50)
        assert row.interval == pytest.approx((50, 50))
    assert found.rows["mean_slowdown"][1].difference == pytest.approx(0.5)
    makespan = found.rows["makespan_s"][1]
    assert makespan.difference == pytest.approx(50)
    assert makespan.interval is None  # one makespan, nothing to draw again


def test_values_are_those_of_metrics(make_run: MakeRun) -> None:
    base, other = _queue_run(make_run, [0.0, 10.0]), _queue_run(make_run, [5.0, 0.0], name="b")
    found = compare([base, other])
    for i, run in enumerate((base, other)):
        assert {name: row[i].value for name, row in found.rows.items()} == metrics(run)
    assert all(row[0].difference is None for row in found.rows.values())


def test_the_block_interval_covers_the_truth_about_as_often_as_it_says(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits are an autoregressive series, so neighbours are alike, as in a queue."""
    monkeypatch.setattr("reports.compare._MOST_RESAMPLES", 300)
    hits = 0
    base = _queue_run(make_run, [100.0] * 300, name="base")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = np.zeros(300)
        for i in range(1, 300):
            noise[i] = 0.5 * noise[i - 1] + rng.normal(0, 10)
        other = _queue_run(make_run, (150 + noise).clip(0).tolist(), name="other")
        row = compare([base, other], seed=seed).rows["mean_jct_s"][1]
        assert row.interval is not None
        hits += row.interval[0] <= 50 <= row.interval[1]
    assert hits >= 16  # 95 % of 20 is 19; under 16 has a chance below 0.3 %


def test_same_seed_same_intervals(make_run: MakeRun) -> None:
    rng = np.random.default_rng(3)
    pair = [_queue_run(make_run, rng.exponential(99, JOBS).tolist(), name=n) for n in "ab"]
    assert compare(pair, seed=7) == compare(pair, seed=7)
    assert compare(pair, seed=7) != compare(pair, seed=8)


def _seeds(
    make_run: MakeRun, policy: str, delays: Sequence[float], seeds: Sequence[int]
) -> list[RunLog]:
    return [
        _queue_run(
            make_run, [delay] * 5, name=f"{policy}-{seed}",
            record={"seed": seed, "policy": {"name": policy, "params": {}, "says": []}},
        )
        for delay, seed in zip(delays, seeds, strict=True)
    ]  # fmt: skip


def test_a_relative_interval_is_of_the_ratio_itself(make_run: MakeRun) -> None:
    # Every wait is halved, so mean queueing falls by half whatever jobs are drawn.
    rng = np.random.default_rng(1)
    waits = rng.exponential(200, JOBS)
    base = _queue_run(make_run, waits.tolist(), name="a")
    other = _queue_run(make_run, (waits / 2).tolist(), name="b")
    row = compare([base, other]).rows["mean_queueing_s"][1]
    assert row.relative == pytest.approx(-0.5)
    assert row.relative_interval == pytest.approx((-0.5, -0.5))
    assert row.interval is not None
    assert row.interval[0] < row.interval[1] < 0


def test_runs_that_differ_only_in_the_seed_are_one_group(make_run: MakeRun) -> None:
    fifo = _seeds(make_run, "fifo", [10, 20, 30], [1, 2, 3])
    srtf = _seeds(make_run, "srtf", [5, 15, 25], [1, 2, 3])
    found = compare([*fifo, *srtf])
    assert len(found.labels) == 2
    assert found.labels[0].endswith("(3 seeds)")
    assert "paired by seed" in found.methods[1]
    row = found.rows["mean_queueing_s"]
    assert row[0].value == pytest.approx(20)
    assert row[1].difference == pytest.approx(-5)
    # Every seed's difference is -5, so pairs leave no doubt, though seeds differ widely.
    assert row[1].interval == pytest.approx((-5, -5))
    assert found.rows["makespan_s"][1].interval == pytest.approx((-5, -5))
    assert [len(d) for d in found.directories] == [3, 3]


def test_different_seeds_are_not_paired(make_run: MakeRun) -> None:
    fifo = _seeds(make_run, "fifo", [10, 20, 30], [1, 2, 3])
    srtf = _seeds(make_run, "srtf", [5, 15, 25], [4, 5, 6])
    found = compare([*fifo, *srtf])
    assert "3 and 3 different seeds" in found.methods[1]
    row = found.rows["mean_queueing_s"][1]
    assert row.interval is not None
    assert row.interval[0] < -5 < row.interval[1]


def test_one_group_alone_is_compared_run_by_run(make_run: MakeRun) -> None:
    found = compare(_seeds(make_run, "fifo", [10, 20], [1, 2]))
    assert found.labels == ("1", "2")  # what their names do not share
    assert found.rows["mean_queueing_s"][1].difference == pytest.approx(10)


def test_other_workloads_have_no_interval(make_run: MakeRun) -> None:
    found = compare([_queue_run(make_run, [0.0] * 5), _queue_run(make_run, [0.0] * 6, name="b")])
    assert found.methods[1] == "no interval: the runs have different workloads"
    assert found.rows["finished_jobs"][1].difference == 1
    assert all(row[1].interval is None for row in found.rows.values())


def test_several_seeds_against_one_run_have_no_interval(make_run: MakeRun) -> None:
    runs = [*_seeds(make_run, "fifo", [1, 2], [1, 2]), *_seeds(make_run, "srtf", [1], [1])]
    assert "the other only one" in compare(runs).methods[1]


def test_jobs_that_finished_in_one_run_only_are_named(make_run: MakeRun) -> None:
    base = _queue_run(make_run, [0.0] * 10, name="whole")
    part = make_run(
        jobs=[
            {"job_id": f"j{i:03d}", "submit_s": 1000.0 * i, "duration_s": 100.0} for i in range(10)
        ],
        holds=[
            Hold(job=f"j{i:03d}", node=0, gpus=[0], start=1000.0 * i, end=1000.0 * i + 100)
            for i in range(8)
        ],
        name="part",
        record={"status": "partial"},
    )
    assert "2 jobs that finished in one run only" in compare([base, part]).methods[1]


def test_runs_in_which_nothing_finished_can_be_compared(make_run: MakeRun) -> None:
    empty = [make_run(jobs=[{"job_id": "j", "submit_s": 0.0}], name=n) for n in "ab"]
    found = compare(empty)
    assert found.rows["mean_jct_s"][1].difference is None
    assert "fewer than two jobs" in found.methods[1]


def test_labels_are_what_the_names_do_not_share(make_run: MakeRun) -> None:
    def labels(*names: str) -> tuple[str, ...]:
        return compare([_queue_run(make_run, [0.0, 0.0], name=n) for n in names]).labels

    assert labels("week-fifo-s1", "week-srtf-s1") == ("fifo", "srtf")
    assert labels("fifo", "fifo-backfill") == ("fifo", "fifo-backfill")
    assert labels("same", "other") == ("same", "other")
    assert len(set(labels("same", "same", "same"))) == 3


def test_one_run_is_not_a_comparison(random_run: Callable[..., RunLog]) -> None:
    with pytest.raises(UsageError, match="at least two"):
        compare([random_run(0, 5)])
