"""What must hold for the metrics of any run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reports.definitions import METRICS, definition
from reports.fairness import jain
from reports.metrics import breakdown, metrics_of
from reports.series import series
from reports.tables import read
from tests.reports.runs import list_schedule, write_run

FINITE = st.floats(0, 1e6, allow_nan=False)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), jobs=st.integers(0, 60))
@example(seed=0, jobs=0)
@example(seed=0, jobs=1)
def test_metrics_of_any_run(seed: int, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", list_schedule(np.random.default_rng(seed), jobs))
        tables = read(run)
        load = series(tables)
        found = metrics_of(tables, load)
    known = {k: v for k, v in found.items() if v is not None}
    assert all(np.isfinite(v) for v in known.values())
    assert all(definition(name) in METRICS for name in found)
    for kind in ("", "[v100]", "[t4]"):
        held, busy = known.get(f"allocation_ratio{kind}"), known.get(f"utilisation{kind}")
        if held is not None and busy is not None:
            assert 0 <= busy <= held + 1e-12
            assert held <= 1 + 1e-12
    for stem, parts in (
        ("jct_s", ("median", "p90", "p99")),
        ("queueing_s", ("median", "p90", "p99")),
        ("slowdown", ("p50", "p99")),
        ("rho", ("p50", "p99", "max")),
    ):
        values = [known[f"{p}_{stem}"] for p in parts if f"{p}_{stem}" in known]
        assert values == sorted(values)
    for name, n in (("jain_users", 5), ("jain_vcs", 3), ("jain_slowdown", max(jobs, 1))):
        if name in known:
            assert 1 / n - 1e-12 <= known[name] <= 1
    # Counts of the breakdown are the counts of the run, and GPU-seconds are conserved.
    table = breakdown(tables, load, "size_class")
    assert table["jobs"].sum() == found["submitted_jobs"]
    assert table["finished"].sum() == found["finished_jobs"]
    if jobs:
        held_s = load.total("allocated").integral(tables.start_s, tables.end_s)
        assert np.isclose(held_s, tables.jobs.service_gpu_s.sum())
        assert np.isclose(
            load.active_jobs.integral(tables.start_s, tables.end_s),
            (tables.jobs.end_s - tables.jobs.submit_s).sum(),
        )
    assert load.waiting_jobs.value.min(initial=0) >= 0
    assert load.waiting_gpus.value.min(initial=0) >= -1e-9


@given(st.lists(FINITE, min_size=1, max_size=30))
def test_jain_index_is_between_one_nth_and_one(values: list[float]) -> None:
    index = jain(np.array(values))
    if index is not None:
        assert 1 / len(values) - 1e-9 <= index <= 1


def test_jain_index_at_its_ends() -> None:
    assert jain(np.full(7, 3.0)) == 1
    assert jain(np.array([1.0, 0, 0, 0])) == 0.25
    assert jain(np.array([])) is None
    assert jain(np.array([0.0, np.nan])) is None
