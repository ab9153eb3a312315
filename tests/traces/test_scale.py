"""Offered load, and time stretched until a stated load is met exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import ClusterSpec, DataError, UsageError, Workload, generate
from traces.scale import mean_demand_gpus, offered_load, scale_to_load, span_s

SPEC = ClusterSpec.parse("2x4:v100")


def workload(*rows: tuple[float, float | None, int, int]) -> Workload:
    return Workload.from_jobs(
        [
            {
                "job_id": f"j{i}",
                "submit_s": submit,
                "duration_s": duration,
                "num_gpus": gpus,
                "gpu_milli": milli,
            }
            for i, (submit, duration, gpus, milli) in enumerate(rows)
        ]
    )


def test_by_hand() -> None:
    #  100 s x 4 GPUs + 50 s x 0.5 GPU + 30 s x 2 GPUs = 485 GPU-s over 8 GPUs x 50 s = 400.
    three = workload((10, 100, 4, 1000), (20, 50, 1, 500), (60, 30, 2, 1000))
    assert span_s(three) == 50
    assert mean_demand_gpus(three) == pytest.approx(9.7)
    assert offered_load(three, SPEC) == pytest.approx(485 / 400)
    scaled = scale_to_load(three, 0.5, SPEC)
    # 485 / (8 x span) = 0.5 at a span of 121.25 s; the first job stays where it was.
    assert scaled.table["submit_s"].tolist() == pytest.approx([10, 10 + 24.25, 10 + 121.25])
    assert scaled.table["duration_s"].tolist() == [100, 50, 30]
    assert "multiplied by 2.425" in scaled.source.notes[-1]


@settings(max_examples=16)
@given(
    kind=st.sampled_from(["philly", "openb", "poisson", "gavel"]),
    seed=st.integers(0, 2**32),
    load=st.floats(1e-3, 1e3),
)
def test_the_load_is_met_exactly(kind: str, seed: int, load: float) -> None:
    cluster = ClusterSpec.parse("16x8:v100,4x4:t4")
    plain = generate(kind, seed=seed, jobs=200)
    scaled = generate(kind, seed=seed, jobs=200, load=load, cluster=cluster)
    assert offered_load(scaled, cluster) == pytest.approx(load, rel=1e-9)
    # Nothing else moved: run times, sizes, the order, and each gap's share of the span.
    for column in ("job_id", "duration_s", "num_gpus", "gpu_milli"):
        assert scaled.table[column].equals(plain.table[column])
    before, after = plain.table["submit_s"].to_numpy(), scaled.table["submit_s"].to_numpy()
    assert np.allclose(
        np.diff(before) / span_s(plain), np.diff(after) / span_s(scaled), atol=1e-9, rtol=0
    )


def test_text_clusters_and_the_record() -> None:
    scaled = generate("philly", seed=1, days=7, load=0.9, cluster="64x8:v100")
    assert offered_load(scaled, ClusterSpec.parse("64x8:v100")) == pytest.approx(0.9, rel=1e-9)
    assert scaled.source.options["load"] == 0.9
    assert scaled.source.options["load_gpus"] == 512


def test_recorded_starts_are_emptied_and_said() -> None:
    two = workload((0, 10, 1, 1000), (10, 10, 1, 1000))
    two.table["start_s"] = [1.0, 12.0]
    two.source = replace(two.source, path="x.csv")
    scaled = scale_to_load(two, 2.0, SPEC)
    assert scaled.table["start_s"].isna().all()
    assert [(r.rule, r.rows) for r in scaled.source.repairs] == [
        ("recorded start emptied: time was scaled", 2)
    ]


@pytest.mark.parametrize("load", [0.0, -1.0, math.nan, math.inf])
def test_loads_that_cannot_be(load: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        scale_to_load(workload((0, 1, 1, 1000), (1, 1, 1, 1000)), load, SPEC)


def test_workloads_that_cannot_be_scaled() -> None:
    with pytest.raises(DataError, match="one instant"):
        scale_to_load(workload((5, 1, 1, 1000), (5, 1, 1, 1000)), 0.5, SPEC)
    with pytest.raises(DataError, match="1 of 2 jobs have no run time"):
        scale_to_load(workload((0, None, 1, 1000), (5, 1, 1, 1000)), 0.5, SPEC)
    with pytest.raises(DataError, match="no job asks for GPU time"):
        scale_to_load(workload((0, 3, 0, 1000), (5, 1, 0, 1000)), 0.5, SPEC)
    assert math.isnan(mean_demand_gpus(workload((5, 1, 1, 1000))))
