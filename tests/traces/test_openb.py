"""openb: what the publisher's files hold, and what the loader makes of their defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.check import check
from traces.demand import demand_over_time
from traces.errors import DataError, TandemError
from traces.feasibility import infeasible
from traces.formats import openb
from traces.loading import load, load_cluster
from traces.workload import Workload

_HEADER = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,"
    "deletion_time,scheduled_time"
)
_DAY_S = 86_400


@pytest.fixture(scope="module")
def pods(shared_data: Path) -> Workload:
    return load(shared_data / "openb" / "pods.csv.gz")


def _read(tmp_path: Path, *rows: str) -> Workload:
    path = tmp_path / "pods.csv"
    path.write_text("\n".join([_HEADER, *rows]) + "\n")
    return openb.read(path, {})


def test_real_pods_are_counted_as_published(pods: Workload) -> None:
    table = pods.table
    assert pods.source.format == "openb"
    assert pods.source.sha256.startswith("1ee7ed79c27a")
    assert len(pods) == 8_152
    assert pods.rows_out_of_order == 0
    assert table["status"].value_counts().to_dict() == {
        "running": 5_193,
        "failed": 1_870,
        "pending": 897,
        "completed": 192,
    }
    assert table["priority"].value_counts().to_dict() == {
        "LS": 4_647,
        "BE": 3_398,
        "Burstable": 100,
        "Guaranteed": 7,
    }
    assert table["num_gpus"].value_counts().to_dict() == {1: 6_989, 0: 1_088, 8: 44, 2: 16, 4: 15}
    assert int((table["gpu_milli"] < 1000).sum()) == 3_078
    assert (table["submit_s"].min(), table["submit_s"].max()) == (0, 12_901_761)
    assert bool(table["single_node"].all())


def test_real_pods_pending_have_no_run_time(pods: Workload) -> None:
    table = pods.table
    pending = table["status"] == "pending"
    assert table.loc[pending, ["start_s", "duration_s"]].isna().all(axis=None)
    assert int(table["duration_s"].isna().sum()) == int(table["start_s"].isna().sum()) == 897


def test_real_pods_run_as_long_as_published(pods: Workload) -> None:
    quantiles = pods.table["duration_s"].quantile([0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
    assert [round(q) for q in quantiles] == [50, 175, 616, 2_241, 18_064, 114_348, 12_537_496]
    table = pods.table
    assert float((table["start_s"] + table["duration_s"]).max()) == 12_902_960
    assert int(table["right_censored"].sum()) == 34


def test_real_pods_single_defects(pods: Workload) -> None:
    rows = pods.table.set_index("job_id")
    assert rows["memory_mib"].isna().sum() == 1
    assert rows.index[rows["memory_mib"].isna()].tolist() == ["openb-pod-1523"]
    assert [(r.rule, r.rows) for r in pods.source.repairs] == [
        ("memory 0 MiB: taken as unknown", 1)
    ]
    assert rows.loc["openb-pod-7285", "status"] == "pending"
    assert int((pods.table["submit_s"] < 115 * _DAY_S).sum()) == 27


def test_real_requests_fill_the_cluster_but_the_replay_does_not(
    pods: Workload, shared_data: Path
) -> None:
    spec = load_cluster(shared_data / "openb" / "nodes.csv")
    asked = int((pods.table["num_gpus"] * pods.table["gpu_milli"]).sum())
    assert asked == 6_086_800
    assert asked / 1000 / spec.num_gpus == pytest.approx(0.980, abs=5e-4)
    steps = demand_over_time(pods, recorded=True)
    assert steps.peak / 1000 == pytest.approx(65.6, abs=0.05)
    # 27 pods fall on the 115 days before the trace fills; the published average is from there on.
    assert steps.mean(115 * _DAY_S, 12_902_960) / 1000 == pytest.approx(36.0, abs=0.05)
    report = check(pods, spec)
    assert report.ok
    assert {"idle", "gap", "unknown-duration", "repaired"} <= {f.code for f in report.findings}


def test_real_gpuspec33(shared_data: Path, pods: Workload) -> None:
    spec33 = load(shared_data / "openb" / "pods_gpuspec33.csv.gz")
    assert spec33.source.sha256.startswith("eca4f746db1e")
    types = spec33.table["gpu_type"]
    assert int(types.notna().sum()) == 2_388
    assert types.notna().sum() / (spec33.table["num_gpus"] > 0).sum() == pytest.approx(
        0.338, abs=5e-4
    )
    assert int((types == "T4").sum()) == 1_291
    assert not types.dropna().map(lambda t: len(set(t.split("|"))) < len(t.split("|"))).any()
    assert ("a GPU type is there twice among the alternatives: kept once", 25) in [
        (r.rule, r.rows) for r in spec33.source.repairs
    ]
    same = [c for c in pods.table.columns if c != "gpu_type"]
    assert spec33.table[same].equals(pods.table[same])


def test_real_gpuspec33_has_one_pod_that_fits_nowhere(shared_data: Path) -> None:
    spec33 = load(shared_data / "openb" / "pods_gpuspec33.csv.gz")
    verdict = infeasible(spec33, load_cluster(shared_data / "openb" / "nodes.csv"))
    (rank,) = np.flatnonzero(verdict.mask).tolist()
    assert spec33.job(rank).job_id == "openb-pod-1639"
    assert str(verdict.reason(rank)) == "needs 120 CPUs on one node; the largest has 96"


def test_real_nodes(shared_data: Path) -> None:
    spec = load_cluster(shared_data / "openb" / "nodes.csv")
    assert len(spec.nodes) == 1_213
    assert spec.num_gpus == 6_212
    assert spec.gpus_by_type() == {
        "P100": 265,
        "G3": 312,
        "V100M32": 204,
        "V100M16": 195,
        "G2": 4_392,
        "T4": 842,
        "A10": 2,
    }
    assert sum(n.cpu_milli or 0 for n in spec.nodes) == 107_018_000


def test_rows_become_jobs(tmp_path: Path) -> None:
    workload = _read(
        tmp_path,
        "a,6000,12288,1,460,V100M32|T4|V100M32,LS,Succeeded,10,110,30",
        "b,4000,0,0,0,,BE,Running,5,200,5",
        "c,4000,8192,2,1000,,BE,Pending,7,90,",
        "d,4000,,1,1000,,BE,Asleep,8,20,50",
    )
    b, c, d, a = workload.jobs()
    assert (a.job_id, a.submit_s, a.duration_s, a.priority) == ("a", 10, 80, "LS")
    assert a.request.gpu_types == ("V100M32", "T4")
    assert (a.request.num_gpus, a.request.gpu_milli) == (1, 460)
    assert (b.request.num_gpus, b.request.gpu_milli, b.request.memory_mib) == (0, 1000, 0)
    assert np.isnan(c.duration_s)
    assert np.isnan(d.duration_s)
    assert workload.table["status"].tolist() == ["running", "pending", "unknown", "completed"]
    assert workload.table["right_censored"].tolist() == [True, False, False, False]
    assert {r.rule.split(":")[0]: r.rows for r in workload.source.repairs} == {
        "the pod was deleted before it was scheduled": 1,
        "memory 0 MiB": 1,
        "pod_phase is none of Succeeded, Failed, Running, Pending, Unknown": 1,
        "a GPU type is there twice among the alternatives": 1,
    }


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("a,6000,12288,1,0,,LS,Running,10,110,30", "gpu_milli"),
        ("a,6000,12288,2,500,,LS,Running,10,110,30", "gpu_milli"),
        ("a,6000,12288,1.5,500,,LS,Running,10,110,30", "num_gpu"),
        ("a,6000,12288,1,1500,,LS,Running,10,110,30", "gpu_milli"),
        ("a,6000,12288,1,500,,LS,Running,soon,110,30", "creation_time"),
        ("ok,6000,12288,1,500,,LS,Running,10,110,30", "name"),
    ],
)
def test_errors_name_row_and_column(tmp_path: Path, row: str, column: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, "ok,6000,12288,1,460,,LS,Running,10,110,30", row)
    assert (caught.value.row, caught.value.column) == (3, column)


def test_row_order_does_not_matter(tmp_path: Path, shared_data: Path, pods: Workload) -> None:
    import gzip

    header, *rows = (
        gzip.decompress((shared_data / "openb" / "pods.csv.gz").read_bytes()).decode().splitlines()
    )
    np.random.default_rng(5).shuffle(rows)
    path = tmp_path / "pods.csv"
    path.write_text("\n".join([header, *rows]))
    assert openb.read(path, {}).digest() == pods.digest()


def test_all_node_list_has_cpu_machines(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text(
        "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,94000,262144,0,\n"
    )
    spec = load_cluster(path)
    assert [(n.gpu_type, n.num_gpus) for n in spec.nodes] == [("P100", 2), ("cpu", 0)]
    assert spec.gpus_by_type() == {"P100": 2}
    path.write_text("sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,\n")
    with pytest.raises(TandemError, match="row 2, column 'model'"):
        load_cluster(path)
