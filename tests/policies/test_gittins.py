"""The Gittins index by brute force, and schedules drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import make_policy
from policies.inter.gittins import Gittins, gittins_index, history_of
from tests.memorylog import drive
from traces import DataError, UsageError, Workload


def workload(rows: list[tuple[float, float, int]]) -> Workload:
    return Workload.from_jobs(
        [
            {"job_id": f"{i:03d}", "submit_s": s, "duration_s": d, "num_gpus": g}
            for i, (s, d, g) in enumerate(rows)
        ]
    )


def ends(policy: str | Gittins, rows: list[tuple[float, float, int]], gpus: int) -> list[float]:
    driver, _ = drive(workload(rows), f"1x{gpus}", policy)
    return list(driver.outcomes.finish_s)


def history(path: Path, sizes: list[float]) -> Path:
    path.write_text("gpu_s\n" + "\n".join(str(s) for s in sizes) + "\n")
    return path


def test_the_index_of_two_sizes_by_hand() -> None:
    sizes = np.array([1.0, 10.0])
    # D = 1: one half / 1; D = 10: 1 / 5.5
    assert gittins_index(sizes, 0.0) == 0.5
    assert gittins_index(sizes, 1.0) == pytest.approx(1 / 9)
    assert gittins_index(sizes, 5.0) == pytest.approx(1 / 5)
    assert gittins_index(sizes, 10.0) == 0.0


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12).map(sorted),
    attained=st.integers(0, 40),
)
def test_the_index_is_the_true_supremum(sizes: list[int], attained: int) -> None:
    left = [s - attained for s in sizes if s > attained]
    best = 0.0
    for quarter in range(1, 4 * 41):
        delta = quarter / 4
        if left:
            ended = sum(x <= delta for x in left) / len(left)
            best = max(best, ended / (sum(min(x, delta) for x in left) / len(left)))
    assert gittins_index(np.array(sizes, dtype=float), attained) == pytest.approx(best)


def test_a_job_that_is_likely_to_end_is_not_interrupted(tmp_path: Path) -> None:
    # Sizes 5, 5, 5, 20: index 0.15 for a fresh job, 0.75 for one that has had 4, 1/15 from 5 on.
    #
    #           0    4.5 5   6       LAS in steps of 4 stops job 0 at 4.5 for the fresh job 1;
    # Gittins   0 0 0 0 0|1 1|       Gittins knows that job 0 is three times in four about to end.
    # LAS       0 0 0 0|1 1|0|
    file = history(tmp_path / "sizes.csv", [5, 5, 5, 20])
    rows: list[tuple[float, float, int]] = [(0, 5, 1), (4.5, 1, 1)]
    assert ends(f"gittins:history={file},levels=4;5", rows, 1) == [5, 6]
    assert ends("las:quantum_gpu_s=4", rows, 1) == [6, 5.5]


def test_a_job_past_the_likely_end_makes_way(tmp_path: Path) -> None:
    #           0    5 6    8 9
    # Gittins   0 0 0 0|1 1 1|0..    at 5 job 0 has index 1/15; the fresh job 1 has 0.15
    file = history(tmp_path / "sizes.csv", [5, 5, 5, 20])
    rows: list[tuple[float, float, int]] = [(0, 20, 1), (6, 3, 1)]
    assert ends(f"gittins:history={file},levels=4;5", rows, 1) == [23, 9]


ROWS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=20
).map(sorted)


@settings(max_examples=30)
@given(rows=ROWS)
def test_without_history_it_is_least_attained_service(rows: list[tuple[int, int, int]]) -> None:
    ask = [(float(s), float(d), g) for s, d, g in rows]
    levels = ";".join(str(5 * k) for k in range(1, 40))
    assert ends(f"gittins:levels={levels}", ask, 4) == ends("las:quantum_gpu_s=5", ask, 4)


@settings(max_examples=30)
@given(rows=ROWS)
def test_what_it_learns_as_it_runs_keeps_the_queues_whole(
    rows: list[tuple[int, int, int]],
) -> None:
    policy = Gittins(levels=(3.0, 10.0, 30.0), min_history=2)
    driver, _ = drive(workload([(float(s), float(d), g) for s, d, g in rows]), "1x4", policy)
    view = driver.view
    assert view.finished == len(rows)
    assert len(view.waiting) == len(view.running) == 0
    if len(rows) >= 4:
        sizes = sorted(d * g for _, d, g in rows)
        lesson = policy.learn([float(s) for s in sizes])
        assert sorted(lesson) == [0, 1, 2, 3]


def test_history_from_a_trace_and_from_sizes(tmp_path: Path) -> None:
    trace = tmp_path / "jobs.csv"
    trace.write_text("job_id,submit_s,duration_s,num_gpus\na,0,10,2\nb,1,5,1\n")
    assert history_of(str(trace)) == (20.0, 5.0)
    assert history_of(str(history(tmp_path / "sizes.csv", [3, 4.5]))) == (3.0, 4.5)


@pytest.mark.parametrize("cell", ["", "many", "-1", "0", "inf", "nan"])
def test_a_size_that_is_none_is_named(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "sizes.csv"
    file.write_text(f'gpu_s\n3\n"{cell}"\n')
    with pytest.raises(DataError, match=r"row 3, column 'gpu_s'"):
        history_of(str(file))


@pytest.mark.parametrize(
    "text", ["levels=", "levels=5;3", "levels=0;1", "min_history=0", "history=nowhere.csv"]
)
def test_parameters_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        make_policy(f"gittins:{text}")
