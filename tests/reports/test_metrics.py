"""Metrics of a run small enough to do by hand; the arithmetic stands beside each number.

Four V100 (node 0) and two T4 (node 1)::

    a  submitted   0, 100 s on 2 GPUs:    holds 2 V100 from 0 to 110, of which 10 s are start cost
    b  submitted  10,  40 s on 4 GPUs:    holds 4 V100 from 110 to 150
    c  submitted  20,  30 s on half a GPU: half a T4 from 20 to 30 (preempted, 10 s lost), 50 to 80
    d  submitted  30,  on 16 GPUs:        rejected
    e  submitted  40,  60 s on 1 GPU:     one T4 from 40 to 100

One T4 is out of service from 90 to 120.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reports.metrics import breakdown, metrics, metrics_of
from reports.series import series
from reports.tables import read
from tests.reports.runs import Hold, MakeRun

JOBS: list[dict[str, object]] = [
    {"job_id": "a", "submit_s": 0.0, "duration_s": 100.0, "num_gpus": 2, "user": "u1", "vc": "x"},
    {"job_id": "b", "submit_s": 10.0, "duration_s": 40.0, "num_gpus": 4, "user": "u2", "vc": "x"},
    {
        "job_id": "c", "submit_s": 20.0, "duration_s": 30.0, "num_gpus": 1, "gpu_milli": 500,
        "user": "u2", "vc": "y",
    },
    {"job_id": "d", "submit_s": 30.0, "duration_s": 5.0, "num_gpus": 16, "user": "u3", "vc": "y"},
    {"job_id": "e", "submit_s": 40.0, "duration_s": 60.0, "num_gpus": 1, "user": "u1", "vc": "y"},
]  # fmt: skip
HOLDS = [
    Hold(job="a", node=0, gpus=[0, 1], start=0, begin=10, end=110),
    Hold(job="b", node=0, gpus=[0, 1, 2, 3], start=110, end=150),
    Hold(job="c", node=1, gpus=[0], milli=500, start=20, end=30, why="preempt"),
    Hold(job="c", node=1, gpus=[0], milli=500, start=50, end=80),
    Hold(job="e", node=1, gpus=[1], start=40, end=100),
]
RUN: dict[str, Any] = {
    "jobs": JOBS,
    "holds": HOLDS,
    "cluster": "1x4:v100,1x2:t4",
    "outcomes": {"c": {"lost_gpu_s": 5.0}, "d": {"status": "rejected", "queueing_s": np.nan}},
    "devices": [(90.0, "device_lost", 1, [0]), (120.0, "device_returned", 1, [0])],
    "samples": [
        (0.0, "v100", 4.0, 2.0, 2.0, 1, 0, 0.0),
        (0.0, "t4", 2.0, 0.0, 0.0, 1, 0, 0.0),
        (50.0, "v100", 4.0, 2.0, 0.0, 3, 1, 4.0),
        (50.0, "t4", 2.0, 1.5, 1.0, 3, 1, 4.0),
    ],
}

# GPUs asked for by active jobs: a 2 in [0, 110], b 4 in [10, 150], c 0.5 in [20, 80],
# e 1 in [40, 100]; the inventory has 6.
RHO = {
    # a: 2*110 + 4*100 + 0.5*60 + 1*60 = 710 GPU s over its life of 110 s
    "a": 110 / (100 * 710 / (6 * 110)),
    # b: 2*100 + 4*140 + 0.5*60 + 1*60 = 850 over 140 s
    "b": 140 / (40 * 850 / (6 * 140)),
    # c: 2*60 + 4*60 + 0.5*60 + 1*40 = 430 over 60 s
    "c": 60 / (30 * 430 / (6 * 60)),
    # e: 2*60 + 4*60 + 0.5*40 + 1*60 = 440 over 60 s
    "e": 60 / (60 * 440 / (6 * 60)),
}
# Share of the GPU time asked for that was held: u1 (a, e) 280 of 280; u2 (b, c) 180 of 590.
U1, U2 = (220 + 60) / (2 * 110 + 60), (160 + 20) / (4 * 140 + 0.5 * 60)
# vc x (a, b) 380 of 780, vc y (c, e) 80 of 90
X, Y = 380 / (220 + 560), 80 / (30 + 60)

EXPECTED: dict[str, float] = {
    # JCT: a 110, b 140, c 60, e 60. Quantiles interpolate: p90 is 0.7 of the way from 110 to 140.
    "mean_jct_s": (110 + 140 + 60 + 60) / 4,
    "median_jct_s": (60 + 110) / 2,
    "p90_jct_s": 110 + 0.7 * 30,
    "p99_jct_s": 110 + 0.97 * 30,
    # queueing: a 0, b 100, c 20, e 0
    "mean_queueing_s": 120 / 4,
    "median_queueing_s": (0 + 20) / 2,
    "p90_queueing_s": 20 + 0.7 * 80,
    "p99_queueing_s": 20 + 0.97 * 80,
    "makespan_s": 150,
    # slowdown: 110/100, 140/40, 60/30, 60/60
    "mean_slowdown": (1.1 + 3.5 + 2 + 1) / 4,
    "p50_slowdown": (1.1 + 2) / 2,
    "p99_slowdown": 2 + 0.97 * 1.5,
    "mean_bounded_slowdown": (1.1 + 3.5 + 2 + 1) / 4,
    "p50_bounded_slowdown": (1.1 + 2) / 2,
    "p99_bounded_slowdown": 2 + 0.97 * 1.5,
    # held: a 2*110, b 4*40, c 0.5*(10+30), e 60 = 460; in service: 4*150 + 2*150 - 30 = 870
    "allocation_ratio": 460 / 870,
    "utilisation": (460 - 2 * 10) / 870,
    "allocation_ratio[v100]": (220 + 160) / 600,
    "allocation_ratio[t4]": (20 + 60) / 270,
    "utilisation[v100]": (200 + 160) / 600,
    "utilisation[t4]": (20 + 60) / 270,
    # 2 of 6 GPUs fragmented from 0 to 50, 1 of 6 from 50 to the end at 150
    "mean_fragmentation": (2 * 50 + 1 * 100) / (6 * 150),
    "gpu_hours_held": 460 / 3600,
    "gpu_hours_lost": 5 / 3600,
    "gpu_hours_overhead": 2 * 10 / 3600,
    # a 100 s on 2 GPUs, b 40 on 4, c (10 + 30) on half a one less what it lost, e 60
    "gpu_hours_done": (200 + 160 + 20 - 5 + 60) / 3600,
    "mean_rho": sum(RHO.values()) / 4,
    "p50_rho": (RHO["a"] + RHO["c"]) / 2,
    "p99_rho": RHO["c"] + 0.97 * (RHO["b"] - RHO["c"]),
    "max_rho": RHO["b"],
    "unfair_fraction": 3 / 4,
    "jain_users": (U1 + U2) ** 2 / (2 * (U1**2 + U2**2)),
    "jain_vcs": (X + Y) ** 2 / (2 * (X**2 + Y**2)),
    "jain_slowdown": (1.1 + 3.5 + 2 + 1) ** 2 / (4 * (1.1**2 + 3.5**2 + 2**2 + 1)),
    "submitted_jobs": 5,
    "finished_jobs": 4,
    "failed_jobs": 0,
    "running_jobs": 0,
    "waiting_jobs": 0,
    "rejected_jobs": 1,
    "unsubmitted_jobs": 0,
    "preemptions": 1,
    "migrations": 0,
    "resizes": 0,
    "failures": 0,
}


def test_every_metric_of_the_hand_computed_run(make_run: MakeRun) -> None:
    found = metrics(make_run(**RUN))
    assert list(found) == list(EXPECTED)
    for name, value in EXPECTED.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


def test_breakdown_by_size_class(make_run: MakeRun) -> None:
    tables = read(make_run(**RUN))
    table = breakdown(tables, series(tables), "size_class")
    assert list(table.index) == ["below 1", "1", "2-4"]  # c; e; a and b
    assert table["jobs"].tolist() == [1, 1, 2]
    assert table["mean_jct_s"].tolist() == [60, 60, (110 + 140) / 2]
    assert table["mean_queueing_s"].tolist() == [20, 0, 50]
    assert table["preemptions"].tolist() == [1, 0, 0]
    assert table["mean_rho"].tolist() == pytest.approx(
        [RHO["c"], RHO["e"], (RHO["a"] + RHO["b"]) / 2]
    )


def test_breakdown_by_user_vc_and_gpu_type(make_run: MakeRun) -> None:
    tables = read(make_run(**RUN))
    load = series(tables)
    users = breakdown(tables, load, "user")
    assert list(users.index) == ["u1", "u2"]  # most GPU-hours first; u3's only job was rejected
    assert users["gpu_hours_held"].tolist() == pytest.approx([280 / 3600, 180 / 3600])
    assert breakdown(tables, load, "vc")["finished"].to_dict() == {"x": 2, "y": 2}
    types = breakdown(tables, load, "gpu_type")
    assert types["jobs"].to_dict() == {"v100": 2, "t4": 2}
    assert types["mean_slowdown"].tolist() == pytest.approx([(1.1 + 3.5) / 2, (2 + 1) / 2])


def test_size_classes_at_their_edges(make_run: MakeRun) -> None:
    sizes = [0, 1, 2, 4, 5, 8, 9, 16, 17, 64]
    jobs = [{"job_id": f"j{n}", "submit_s": 0.0, "num_gpus": n} for n in sizes]
    tables = read(make_run(jobs=jobs))
    table = breakdown(tables, series(tables), "size_class")
    assert table["jobs"].to_dict() == {
        "CPU only": 1, "1": 1, "2-4": 2, "5-8": 2, "9-16": 2, "above 16": 2
    }  # fmt: skip


def test_bounded_slowdown_of_short_jobs(make_run: MakeRun) -> None:
    # 2 s of work after 38 s of waiting: slowdown 40/2 = 20, bounded 40/10 = 4;
    # 1 s of work at once: slowdown 1, bounded max(1, 1/10) = 1.
    run = make_run(
        jobs=[
            {"job_id": "late", "submit_s": 0.0, "duration_s": 2.0},
            {"job_id": "soon", "submit_s": 0.0, "duration_s": 1.0},
        ],
        holds=[
            Hold(job="late", node=0, gpus=[0], start=38, end=40),
            Hold(job="soon", node=0, gpus=[1], start=0, end=1),
        ],
    )
    found = metrics(run)
    assert found["mean_slowdown"] == pytest.approx((20 + 1) / 2)
    assert found["mean_bounded_slowdown"] == pytest.approx((4 + 1) / 2)


def test_jobs_without_a_usable_duration_have_no_slowdown(make_run: MakeRun) -> None:
    run = make_run(
        jobs=[
            {"job_id": "unknown", "submit_s": 0.0, "duration_s": None},
            {"job_id": "empty", "submit_s": 0.0, "duration_s": 0.0},
            {"job_id": "plain", "submit_s": 0.0, "duration_s": 20.0},
        ],
        holds=[
            Hold(job="unknown", node=0, gpus=[0], start=0, end=40),
            Hold(job="empty", node=0, gpus=[1], start=0, end=0),
            Hold(job="plain", node=0, gpus=[2], start=0, end=20),
        ],
    )
    found = metrics(run)
    assert found["finished_jobs"] == 3
    assert found["mean_jct_s"] == pytest.approx(60 / 3)
    assert found["mean_slowdown"] == 1.0  # of "plain" alone
    assert found["mean_bounded_slowdown"] == pytest.approx((1 + 1) / 2)  # "empty" counts as 10 s
    assert found["max_rho"] == 1.0


def test_a_run_without_jobs_has_no_averages(make_run: MakeRun) -> None:
    found = metrics(make_run(jobs=[]))
    assert found["submitted_jobs"] == 0
    assert found["gpu_hours_held"] == 0
    for name in ("mean_jct_s", "makespan_s", "allocation_ratio", "max_rho", "jain_users"):
        assert found[name] is None, name


def test_a_run_in_which_nothing_finished(make_run: MakeRun) -> None:
    # One job runs from 0 to the end of the log at 50 on 2 of 4 GPUs; one waits.
    run = make_run(
        jobs=[
            {"job_id": "runs", "submit_s": 0.0, "duration_s": 500.0, "num_gpus": 2},
            {"job_id": "waits", "submit_s": 5.0, "duration_s": 9.0, "num_gpus": 4},
        ],
        holds=[Hold(job="runs", node=0, gpus=[0, 1], start=0, end=50, why="open")],
        record={"status": "partial"},
    )
    found = metrics(run)
    assert run.partial
    assert (found["running_jobs"], found["waiting_jobs"], found["finished_jobs"]) == (1, 1, 0)
    assert found["mean_jct_s"] is None
    assert found["makespan_s"] is None
    assert found["mean_rho"] is None
    assert found["allocation_ratio"] == pytest.approx(2 * 50 / (4 * 50))


def test_a_device_lost_twice_is_lost_once(make_run: MakeRun) -> None:
    # GPU 0 is lost at 10, and again with its whole node at 20; all are back at 30.
    run = make_run(
        jobs=[{"job_id": "a", "submit_s": 0.0, "duration_s": 100.0}],
        holds=[Hold(job="a", node=1, gpus=[0], start=0, end=100)],
        cluster="1x2:v100,1x1:v100",
        devices=[
            (10.0, "device_lost", 0, [0]),
            (20.0, "device_lost", 0, [0, 1]),
            (30.0, "device_returned", 0, [0, 1]),
        ],
    )
    # in service: 3*100 - 20 s (GPU 0) - 10 s (GPU 1)
    assert metrics(run)["allocation_ratio"] == pytest.approx(100 / (300 - 30))


def test_one_interval_over_two_nodes_is_one_running_job(make_run: MakeRun) -> None:
    run = make_run(
        jobs=[{"job_id": "wide", "submit_s": 0.0, "duration_s": 10.0, "num_gpus": 4}],
        holds=[
            Hold(job="wide", node=0, gpus=[0, 1], start=0, end=10),
            Hold(job="wide", node=1, gpus=[0, 1], start=0, end=10),
        ],
        cluster="2x2:v100",
    )
    load = series(read(run))
    assert load.running_jobs.value.tolist() == [1, 0]
    assert load.waiting_jobs.peak() == 0
    assert load.total("allocated").value.tolist() == [4, 0]


def test_metrics_of_and_metrics_agree(make_run: MakeRun) -> None:
    run = make_run(**RUN)
    tables = read(run)
    assert metrics_of(tables, series(tables)) == metrics(run)
