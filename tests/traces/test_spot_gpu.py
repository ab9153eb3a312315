"""spot-GPU: the real node table, and jobs in the publisher's columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.check import check
from traces.errors import DataError
from traces.formats import spot
from traces.loading import load, load_cluster
from traces.workload import Workload

_HEADER = (
    "job_name,organization,gpu_model,cpu_request,gpu_request,worker_num,submit_time,duration,"
    "job_type"
)
_ROWS = (
    "j1,org-1,A10,8,1,1,0,864000,HP",
    "j2,org-2,A10,4,0.25,1,60,600,Spot",
    "j3,org-1,A100-SXM4-80GB,96,8,4,120,7200,HP",
    "j4,org-3,A10,4,0.5,3,180,300,Spot",
    "j5,org-3,,4,0.2,3,180,300,Spot",
    "j6,org-3,H800,16,0,2,240,-5,Spot",
    "j7,org-3,H800,16,1,1,0,50,Spot",
)


def _read(tmp_path: Path, *rows: str) -> Workload:
    path = tmp_path / "job_info_df.csv"
    path.write_text("\n".join([_HEADER, *rows]) + "\n")
    return load(path)


def test_real_nodes(shared_data: Path) -> None:
    spec = load_cluster(shared_data / "spot-gpu" / "nodes.csv.gz")
    assert len(spec.nodes) == 4_278
    assert spec.num_gpus == 10_412
    assert spec.gpus_by_type() == {
        "GPU-series-1": 1_558,
        "A10": 2_494,
        "A100-SXM4-80GB": 3_456,
        "GPU-series-2": 976,
        "H800": 1_752,
        "A800-SXM4-80GB": 176,
    }
    assert sum(n.cpu_milli or 0 for n in spec.nodes) == 632_636_000
    assert [n.cpu_milli for n in spec.nodes if n.gpu_type == "A10"].count(126_000) == 2
    assert all(n.memory_mib is None for n in spec.nodes)


def test_rows_become_jobs(tmp_path: Path) -> None:
    workload = _read(tmp_path, *_ROWS)
    rows = workload.table.set_index("job_id")
    requests = rows[["num_gpus", "gpu_milli", "num_workers", "cpu_milli"]].T.to_dict("list")
    assert requests == {
        "j1": [1, 1000, 1, 8_000],
        "j2": [1, 250, 1, 4_000],
        "j3": [32, 1000, 4, 384_000],
        "j4": [2, 1000, 3, 12_000],
        "j5": [1, 600, 3, 12_000],
        "j6": [0, 1000, 2, 32_000],
        "j7": [1, 1000, 1, 16_000],
    }
    assert rows["gpu_type"].isna().to_dict()["j5"]
    assert rows["single_node"].tolist() == [w == 1 for w in rows["num_workers"]]
    assert np.isnan(rows.loc["j6", "duration_s"])
    assert rows["priority"].to_dict()["j2"] == "Spot"
    assert rows["vc"].to_dict()["j3"] == "org-1"
    # Only high-priority jobs at second 0 were resident when the trace began.
    assert rows.index[rows["left_censored"]].tolist() == ["j1"]
    assert {r.rule: r.rows for r in workload.source.repairs} == {
        "fractional GPUs above one in total: rounded up to whole GPUs": 1,
        "shares of several workers, less than one GPU in total: put on one GPU": 1,
        "the run time is below zero: taken as unknown": 1,
    }


def test_overload_of_one_type_is_found(tmp_path: Path) -> None:
    rows = [f"a{i},o,A10,1,1,1,{i * 100},133,HP" for i in range(101)]
    rows += [f"h{i},o,H800,1,1,1,{i * 100},10,HP" for i in range(101)]
    from traces.cluster import ClusterSpec

    report = check(_read(tmp_path, *rows), ClusterSpec.parse("1x1:A10,1x8:H800"))
    (overload,) = [f for f in report.findings if f.code == "overload"]
    # 101 jobs of 133 s over 10,000 s on one GPU.
    assert overload.text == "load 1.34 of the 1 GPUs of A10"
    assert overload.severity == "warning"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("j9,o,A10,8,1,0,0,10,HP", "worker_num"),
        ("j9,o,A10,8,-1,1,0,10,HP", "gpu_request"),
        ("j9,o,A10,8,1,1,,10,HP", "submit_time"),
        ("j1,o,A10,8,1,1,0,10,HP", "job_name"),
    ],
)
def test_errors_name_row_and_column(tmp_path: Path, row: str, column: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, _ROWS[0], row)
    assert (caught.value.row, caught.value.column) == (3, column)


def test_row_order_does_not_matter(tmp_path: Path) -> None:
    assert _read(tmp_path, *_ROWS).digest() == _read(tmp_path, *reversed(_ROWS)).digest()


def test_a_node_table_is_no_job_table(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text("gpu_model,gpu_capacity_num,cpu_num,node_name\nA10,1,128,0\nA10,1,128,0\n")
    with pytest.raises(DataError, match="column 'job_name'"):
        spot.read(path, {})
    with pytest.raises(DataError, match="row 3, column 'node_name'"):
        load_cluster(path)
