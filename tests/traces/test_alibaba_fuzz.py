"""Damaged Alibaba tables: a workload or inventory comes out, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.check import check
from traces.cluster import ClusterSpec
from traces.errors import TandemError
from traces.loading import load, load_cluster
from traces.serving import ServingDemand
from traces.workload import Workload

_OPENB = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,"
    "deletion_time,scheduled_time",
    "p0,12000,16384,1,1000,,LS,Running,0,12537496,0",
    "p1,6000,12288,1,460,V100M16|V100M32,BE,Succeeded,427061,427161,427062",
    "p2,6000,0,0,0,,Burstable,Pending,427061,427161,",
)
_SPOT = (
    "job_name,organization,gpu_model,cpu_request,gpu_request,worker_num,submit_time,duration,"
    "job_type",
    "j1,o1,A10,8,1,1,0,864000,HP",
    "j2,o2,A10,4,0.25,3,60,600,Spot",
    "j3,o2,H800,96,8,4,120.5,7200,HP",
)
_DLRM = (
    "instance_sn,role,app_name,cpu_request,cpu_limit,gpu_request,gpu_limit,rdma_request,"
    "rdma_limit,memory_request,memory_limit,disk_request,disk_limit,max_instance_per_node,"
    "creation_time,scheduled_time,deletion_time",
    "i0,HN,a0,12,12,1,1,25,25,120.0,120.0,640.0,800.0,8,,,",
    "i1,HN,a0,12,12,1,1,25,25,120.0,120.0,640.0,800.0,8,10.0,20.0,300.0",
    "i2,CN,a1,64,64,0,0,1,1,320.0,320.0,255.0,300.0,-1,,,50.0",
)
_PAI_JOB = (
    "j1,inst-1,u1,Terminated,1000.0,1500.0",
    "j2,inst-2,u1,Failed,0.0,2400.0",
    "j2,inst-2,u1,Running,2000.0,",
)
_PAI_TASK = (
    "j1,ps,1,Terminated,1010.0,1500.0,600.0,29.296875,,CPU",
    "j1,worker,2,Terminated,1010.0,1490.0,600.0,29.296875,50.0,T4",
    "j2,tensorflow,1,Failed,2100.0,2400.0,400.0,10.0,25.0,MISC",
)
_PAI_INSTANCE = (
    "j1,ps,i1,w1,inst-1,Terminated,1012.0,1492.0,m1",
    "j1,worker,i2,w2,inst-1,Failed,1012.0,1020.0,m1",
    "j1,worker,i2,w2,inst-1,Terminated,1022.0,1442.0,m2",
)
_PAI_TAG = ("inst-1,u1,,g1,ctr", "inst-2,u1,T4,g2,bert")
_OPENB_NODES = (
    "sn,cpu_milli,memory_mib,gpu,model",
    "n0,64000,262144,2,P100",
    "n1,94000,262144,0,",
)
_SPOT_NODES = ("gpu_model,gpu_capacity_num,cpu_num,node_name", "A10,1,128,0", "H800,8,192,1")
_PAI_NODES = ("m1,T4,96,512,2", "m2,CPU,96,768,0")

_TRACES: dict[str, tuple[str, ...]] = {"openb": _OPENB, "spot-gpu": _SPOT, "dlrm": _DLRM}
_NODES = {
    "openb.csv": _OPENB_NODES,
    "spot.csv": _SPOT_NODES,
    "pai_machine_spec.csv": _PAI_NODES,
}
_PAI = {
    "pai_job_table.csv": _PAI_JOB,
    "pai_task_table.csv": _PAI_TASK,
    "pai_instance_table.csv": _PAI_INSTANCE,
    "pai_group_tag_table.csv": _PAI_TAG,
}
_CELLS = (
    *("", " ", "0", "-1", "1.5", "nan", "inf", "-inf", "None", "1e308", "1e18", "99999999999999"),
    *("9999999", "1000000", "4096", "0.0001", "|", "A||A", "CPU", "Running", "\u0661", "\x00"),
    *('"', ",", "\n", "\r\n", "\ufeff", "j1", "p0", "i0", "x" * 200),
)
_CLUSTER = ClusterSpec.parse("1x8:T4,1x2:A10")


@st.composite
def _damaged(draw: st.DrawFn, lines: tuple[str, ...]) -> bytes:
    """Change some cells, drop or repeat some lines, then change some bytes."""
    rows = [line.split(",") for line in lines]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(_CELLS))
    kept = draw(st.lists(st.sampled_from(rows), max_size=2)) if draw(st.booleans()) else []
    data = draw(st.sampled_from(["\n", "\r\n"])).join(",".join(r) for r in [*rows, *kept]).encode()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 5)) :]
    return data


def _is_sound(workload: Workload) -> None:
    assert len(workload)
    assert workload.table["submit_s"].notna().all()
    check(workload, _CLUSTER).to_dict()
    with_digest = workload.digest()
    assert with_digest == Workload(workload.table.iloc[::-1], workload.source).digest()


@pytest.mark.parametrize("name", _TRACES)
def test_damaged_traces(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "trace.csv"

    @settings(max_examples=60)
    @given(_damaged(_TRACES[name]))
    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        try:
            workload = load(path, format=name)
            _is_sound(workload)
            if name == "dlrm":
                demand = ServingDemand.of(workload)
                assert demand.peak() >= demand.mean() >= 0
        except TandemError as error:
            assert str(path) in str(error)

    attempt()


@pytest.mark.parametrize("name", _PAI)
def test_damaged_pai(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for other, rows in _PAI.items():
        (folder / other).write_text("\n".join(rows))

    @settings(max_examples=40)
    @given(_damaged(_PAI[name]))
    def attempt(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            _is_sound(load(folder, format="pai"))
        except TandemError as error:
            assert str(folder) in str(error)

    attempt()


@pytest.mark.parametrize("name", _NODES)
def test_damaged_inventories(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name

    @settings(max_examples=40)
    @given(_damaged(_NODES[name]))
    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        try:
            assert load_cluster(path).nodes
        except TandemError as error:
            assert str(path) in str(error)

    attempt()


@pytest.mark.parametrize("name", [*_TRACES, "pai"])
def test_sound_files_are_recognised(tmp_path: Path, name: str) -> None:
    tables = _PAI if name == "pai" else {"trace.csv": _TRACES[name]}
    for file, rows in tables.items():
        (tmp_path / file).write_text("\n".join(rows))
    path = tmp_path if name == "pai" else tmp_path / "trace.csv"
    workload = load(path)
    assert workload.source.format == name
    assert len(workload) == (2 if name == "pai" else 3)


@pytest.mark.parametrize("name", [*_TRACES, "pai"])
def test_any_order_of_rows(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("order")
    tables = _PAI if name == "pai" else {"trace.csv": _TRACES[name]}
    path = folder if name == "pai" else folder / "trace.csv"
    for file, rows in tables.items():
        (folder / file).write_text("\n".join(rows))
    expected = load(path).digest()

    @settings(max_examples=10)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        for file, rows in tables.items():
            head = 0 if name == "pai" else 1
            order = data.draw(st.permutations(rows[head:]))
            (folder / file).write_text("\n".join([*rows[:head], *order]))
        assert load(path).digest() == expected

    attempt()
