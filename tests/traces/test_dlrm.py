"""DLRM serving: instances with their censoring, and the demand they add up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.errors import DataError, UsageError
from traces.formats import dlrm
from traces.loading import load
from traces.serving import ServingDemand
from traces.workload import Workload

_HEADER = (
    "instance_sn,role,app_name,cpu_request,cpu_limit,gpu_request,gpu_limit,rdma_request,rdma_limit,"
    "memory_request,memory_limit,disk_request,disk_limit,max_instance_per_node,creation_time,"
    "scheduled_time,deletion_time"
)
_GPU = "12,12,1,1,25,25,120.0,120.0,640.0,800.0,8"
_CPU = "64,64,0,0,1,1,320.5,320.5,255.0,300.0,-1"
_ROWS = (
    f"i0,HN,app_0,{_GPU},,,",  # there all the time
    f"i1,HN,app_0,{_GPU},,,40.0",  # there before, ends
    f"i2,HN,app_1,{_GPU},10.0,20.0,40.0",  # complete
    f"i3,HN,app_1,{_GPU},40.0,40.0,",  # outlives the trace
    f"i4,CN,app_1,{_CPU},5.0,5.0,100.0",  # no GPU; the last instant
    f"i5,HN,app_1,{_GPU},60.0,60.0,60.0",  # of zero length
)


def _write(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "instances.csv"
    path.write_text("\n".join([_HEADER, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def instances(shared_data: Path) -> Workload:
    return load(shared_data / "dlrm-serving" / "instances.csv.gz")


def test_real_instances(instances: Workload) -> None:
    table = instances.table
    assert instances.source.sha256.startswith("fb17bc4b3f41")
    assert len(instances) == 23_871
    assert table["num_gpus"].value_counts().to_dict() == {0: 16_485, 1: 7_386}
    assert table["vc"].nunique() == 156
    assert int(table["left_censored"].sum()) == 7_280 == int(table["start_s"].isna().sum())
    assert int(table["right_censored"].sum()) == 8_878 == int(table["duration_s"].isna().sum())
    assert int((table["left_censored"] & table["right_censored"]).sum()) == 4_677
    complete = table[~table["left_censored"] & ~table["right_censored"]]
    assert len(complete) == 12_390
    assert int((complete["duration_s"] == 0).sum()) == 16
    assert float(complete["duration_s"].median()) == 8_278.5
    assert set(table["kind"]) == {"serving"}
    assert set(table["priority"]) == {"high"}


def test_real_demand(instances: Workload) -> None:
    demand = ServingDemand.of(instances)
    assert demand.end_s == 2_677_541
    assert demand.mean() == pytest.approx(3_194, abs=0.5)
    assert demand.peak() == 3_412
    assert len(demand.by_app) == 156
    apps = sum(steps.integral(0, demand.end_s) for steps in demand.by_app.values())
    assert apps == demand.total.integral(0, demand.end_s)
    for time_s in (0.0, 1e6, 2_223_591.0):
        assert demand.at(time_s) == sum(demand.at(time_s, app) for app in demand.by_app)


def test_rows_become_instances(tmp_path: Path) -> None:
    workload = load(_write(tmp_path, *_ROWS))
    rows = workload.table.set_index("job_id")
    assert rows["submit_s"].to_dict() == {"i0": 0, "i1": 0, "i4": 5, "i2": 10, "i3": 40, "i5": 60}
    assert rows["duration_s"].fillna(-1).to_dict() == {
        "i0": -1,
        "i1": 40,
        "i4": 95,
        "i2": 20,
        "i3": -1,
        "i5": 0,
    }
    assert rows.index[rows["left_censored"]].tolist() == ["i0", "i1"]
    assert rows.index[rows["right_censored"]].tolist() == ["i0", "i3"]
    assert (rows.loc["i4", "cpu_milli"], rows.loc["i4", "memory_mib"]) == (64_000, 328_192)


def test_bound_gives_every_instance_a_run_time(tmp_path: Path) -> None:
    path = _write(tmp_path, *_ROWS)
    rows = load(path, options={"censored": "bound"}).table.set_index("job_id")
    assert (rows.loc["i0", "duration_s"], rows.loc["i3", "duration_s"]) == (100, 60)
    assert rows["right_censored"].sum() == 2
    with pytest.raises(UsageError, match="censored=maybe"):
        load(path, options={"censored": "maybe"})


def test_demand_by_hand(tmp_path: Path) -> None:
    """The GPUs alive, drawn by hand.

    time    0         20        40                  100
    app_0   2 (i0 i1)           1 (i0)
    app_1   0         1 (i2)    1 (i3)
    total   2         3         2
    """
    workload = load(_write(tmp_path, *_ROWS))
    demand = ServingDemand.of(workload)
    assert demand.end_s == 100
    assert [demand.at(t) for t in (-1, 0, 19.9, 20, 39.9, 40, 60, 99.9, 100)] == [
        *(0, 2, 2, 3, 3, 2, 2, 2, 0)
    ]
    assert (demand.peak(), demand.peak("app_0"), demand.peak("app_1")) == (3, 2, 1)
    assert demand.mean() == (2 * 20 + 3 * 20 + 2 * 60) / 100
    assert demand.mean("app_1") == 0.8
    assert demand.to_table().fillna({"app": "all"}).to_numpy().tolist() == [
        *(["all", 0, 2], ["all", 20, 3], ["all", 40, 2], ["all", 100, 0]),
        *(["app_0", 0, 2], ["app_0", 40, 1], ["app_0", 100, 0]),
        *(["app_1", 20, 1], ["app_1", 100, 0]),
    ]
    waiting = ServingDemand.of(workload, since="submit")
    assert (waiting.at(10), demand.at(10)) == (3, 2)
    assert ServingDemand.of(workload, end_s=200).at(150, "app_0") == 1


def test_demand_needs_services() -> None:
    job: dict[str, object] = {"submit_s": 0.0, "duration_s": 1.0, "num_gpus": 1}
    with pytest.raises(DataError, match="no serving instances"):
        ServingDemand.of(Workload.from_jobs([job]))
    with pytest.raises(DataError, match="belongs to no service"):
        ServingDemand.of(Workload.from_jobs([{**job, "kind": "serving"}]))


def test_repairs(tmp_path: Path) -> None:
    workload = load(_write(tmp_path, f"a,HN,x,{_GPU},30.0,,50.0", f"b,XN,x,{_GPU},30.0,40.0,20.0"))
    rows = workload.table.set_index("job_id")
    assert rows.loc["a", "duration_s"] == 20
    assert np.isnan(rows.loc["b", "duration_s"])
    assert [r.rows for r in workload.source.repairs] == [1, 1, 1]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (f"i9,HN,app,{_GPU},,,-4", "deletion_time"),
        ("i9,HN,app,twelve,12,1,1,25,25,120.0,120.0,640.0,800.0,8,,,", "cpu_request"),
        (f"i0,HN,app,{_GPU},,,", "instance_sn"),
    ],
)
def test_errors_name_row_and_column(tmp_path: Path, row: str, column: str) -> None:
    with pytest.raises(DataError) as caught:
        dlrm.read(_write(tmp_path, _ROWS[0], row), {"censored": "null"})
    assert (caught.value.row, caught.value.column) == (3, column)


def test_row_order_does_not_matter(tmp_path: Path) -> None:
    forward = load(_write(tmp_path, *_ROWS)).digest()
    assert load(_write(tmp_path, *reversed(_ROWS))).digest() == forward
