"""Damaged files end in a workload or in an error of ours, never in another exception; and the
order of a file's rows never shows in what is loaded.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from traces import ClusterSpec, RunWriter, TandemError, Workload, load, load_cluster
from traces.runlog import JOB_OUTCOME_COLUMNS

# One small valid file per format: (format, columns, header lines, rows, row separator).
HELIOS = (
    "job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue",
    "11,uX,vcJ,1,1,1,COMPLETED,2020-06-09 18:41:01,2020-06-09 18:41:01,2020-06-09 18:41:02,1,0",
    "12,uV,vcb,4,16,1,FAILED,2020-06-09 18:41:01,2020-06-09 18:41:27,2020-06-09 18:45:36,249,26",
    "13,uz,vcp,0,1,1,CANCELLED,2020-06-09 18:41:28,,,,",
)
ACME = (
    "job_id,user,node_num,gpu_num,cpu_num,mem_per_pod_GB,shared_mem_per_pod,type,state,"
    "submit_time,start_time,end_time,fail_time,stop_time,duration,queue,gpu_time",
    "d1,u1,8,64,960,1000,100.0,Other,FAILED,2023-05-17 11:00:58+00:00,2023-05-17 11:01:08+00:00,"
    "2023-05-17 11:01:16+00:00,2023-05-17 11:01:16+00:00,,18,10.0,1152.0",
    "d2,u1,8,64,960,1000,,SFT,CANCELLED,2023-05-17 11:28:42+00:00,2023-05-17 11:28:54+00:00,,,,,,",
)
PHILLY = (
    "timestamp,duration,num_gpus,gpu_time,cluster",
    "2017-10-09 07:01:55,66.0,1,66.0,11cb48",
    "2017-10-09 07:01:55,66.0,1,66.0,11cb48",
    "2017-10-09 06:13:03,2951.0,2,5902.0,6214e9",
    "2017-10-09 06:13:03,10.0,,,6214e9",
)
TIRESIAS = (
    "job_id,num_gpu,submit_time,iterations,model_name,duration,interval",
    "0,1,0,606,vgg19,164,30",
    "1,8,30,133,vgg11,147,23",
    "10,8,30,133,vgg11,147,23",
)
GAVEL = (
    "LM (batch size 5)\tpython main.py\tlm\t--steps\t1\t100\t2\t5\t-1\t30",
    "A3C\tpython main.py\trl\t--steps\t0\t1000\t1\t1\t1.2\t0",
)
GAVEL_OLD = (
    "LM (batch size 5)\tpython main.py\t--steps\t1\t100\t30.00\t2",
    "A3C\tpython main.py\t--steps\t0\t1000\t0.00\t1",
)
EASYSCALE = (
    "name,time,application,max_parallelism,batch_size,epochs,enable_heterogeneous_deterministic,"
    "preferred_gpu,",
    "bert-0,115,bert,16,8,4,40,v100,0.4",
    "ncf-1,230,ncf,4,4,200,1,v100,100",
    "ncf-1,120,ncf,4,4,20,0,t4",
)
CANONICAL = (
    "job_id,submit_s,duration_s,num_gpus,gpu_milli,gpu_type,single_node,kind,status,model",
    "a,0.5,10,1,500,t4|a10,true,training,completed,x",
    "b,1.5,,8,1000,,false,serving,unknown,",
)
TABLE = ("when;n;len;id", "2024-01-01 00:00:01;1;5;a", "2024-01-01 00:00:00;2;6;b", ";2;6;c")
PHILLY_LOG = json.dumps(
    [
        {
            "status": status,
            "vc": "ee9e8c",
            "jobid": name,
            "attempts": [
                {
                    "start_time": "2017-10-07 01:12:09",
                    "end_time": end,
                    "detail": [{"ip": "m47", "gpus": ["gpu0", "gpu1"]}],
                }
            ],
            "submitted_time": "2017-10-07 01:11:39",
            "user": "ce2f4c",
        }
        for name, status, end in (("a_1", "Pass", "2017-10-07 01:13:23"), ("a_2", "Killed", None))
    ]
)
MAP = {"submit_s": "when", "num_gpus": "n", "duration_s": "len", "job_id": "id"}
FILES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "helios": ("helios", HELIOS, 1),
    "acme": ("acme", ACME, 1),
    "philly": ("philly", PHILLY, 1),
    "tiresias": ("tiresias", TIRESIAS, 1),
    "gavel": ("gavel", GAVEL, 0),
    "gavel-old": ("gavel", GAVEL_OLD, 0),
    "easyscale": ("easyscale", EASYSCALE, 1),
    "canonical": ("canonical", CANONICAL, 1),
    "table": ("table", TABLE, 1),
    "philly-log": ("philly-log", (PHILLY_LOG,), 0),
}
TOKENS = (
    "", "-1", "0", "1e999", "nan", "inf", "None", "NA", "99999999999999999999999", "1.5", "0x10",
    "2017-13-45 99:99:99", "0000-00-00", "9999-12-31 23:59:59", "2017-10-09T07:01:55+25:00",
    "2017-10-09 07:01:55+08:00", "now", '"', '""', "\x00", "\ufeff", ",", "\t", ";", "\n", "\r",
    "\u0661", "\U0001f6b2", "true", "[", "]", "{", "}", "null", "1e15", "1e13", "=", " ", "a" * 300,
)  # fmt: skip

edits = st.lists(
    st.tuples(
        st.integers(0, 2_000),
        st.integers(0, 12),
        st.one_of(st.sampled_from(TOKENS).map(str.encode), st.binary(max_size=4)),
    ),
    min_size=1,
    max_size=4,
)


def read_as(kind: str, path: Path) -> Workload:
    if kind == "table":
        return load(path, columns=MAP, options={"delimiter": "semicolon"})
    return load(path, format=FILES[kind][0])


def damaged(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, token in changes:
        at = place % (len(data) + 1)
        data = data[:at] + token + data[at + length :]
    return data


def sound(workload: Workload) -> None:
    assert len(workload) > 0
    assert workload.table["submit_s"].notna().all()
    assert (workload.table["num_gpus"] >= 0).all()


@pytest.mark.parametrize("kind", FILES)
def test_the_undamaged_file_loads(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("\n".join(FILES[kind][1]))
    sound(read_as(kind, path))
    if kind != "table":
        assert load(path).source.format == FILES[kind][0]


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    data = "\n".join(FILES[kind][1]).encode()

    @settings(max_examples=60)
    @given(changes=edits)
    @example(changes=[(0, 2_000, b"[" * 100_000)])
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        path.write_bytes(damaged(data, changes))
        for by_name in (True, False):
            try:
                sound(read_as(kind, path) if by_name else load(path))
            except TandemError as error:
                assert str(path) in str(error)

    check()


@pytest.mark.parametrize("kind", [k for k in FILES if k != "philly-log"])
def test_damaged_cells(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    _, lines, header = FILES[kind]
    delimiter = {"gavel": "\t", "gavel-old": "\t", "table": ";"}.get(kind, ",")

    @settings(max_examples=60)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        rows = [line.split(delimiter) for line in lines]
        for _ in range(data.draw(st.integers(1, 3))):
            row = data.draw(st.sampled_from(rows[header:]))
            row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(TOKENS))
        path.write_text("\n".join(delimiter.join(row) for row in rows))
        try:
            sound(read_as(kind, path))
        except TandemError as error:
            assert str(path) in str(error)

    check()


@pytest.mark.parametrize("kind", [k for k in FILES if k != "philly-log"])
def test_order_of_rows_does_not_show(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    path = tmp_path_factory.mktemp("order") / "file"
    _, lines, header = FILES[kind]
    rows = [*lines[header:], *(lines[header:] if kind == "philly" else ())]
    path.write_text("\n".join([*lines[:header], *rows]))
    expected = read_as(kind, path).digest()

    @settings(max_examples=15)
    @given(st.permutations(rows))
    def check(order: list[str]) -> None:
        path.write_text("\n".join([*lines[:header], *order]))
        assert read_as(kind, path).digest() == expected

    check()


def test_order_of_rows_does_not_show_in_real_philly(shared_data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(shared_data / "philly" / "jobs.csv.gz", dtype=str)
    path = tmp_path / "philly.csv"
    table.sample(frac=1.0, random_state=5).to_csv(path, index=False)
    assert load(path).digest() == load(shared_data / "philly" / "jobs.csv.gz").digest()


def test_damaged_parquet_and_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    original = Workload.from_jobs([{"submit_s": 0.0, "duration_s": 1.0, "num_gpus": 1}])
    with RunWriter(folder / "run", original, ClusterSpec.parse("1x1")) as writer:
        record = {"status": "complete", "workload": {"origin": None}}
        writer.finish(record, {c.name: [0] for c in JOB_OUTCOME_COLUMNS})
    tables = {
        folder / "run" / name: (folder / "run" / name).read_bytes()
        for name in ("jobs.parquet", "run.json")
    }
    original.table.to_parquet(folder / "canonical.parquet")
    tables[folder / "canonical.parquet"] = (folder / "canonical.parquet").read_bytes()

    @settings(max_examples=80)
    @given(which=st.sampled_from(sorted(tables)), at=st.integers(0, 100_000), changes=edits)
    def check(which: Path, at: int, changes: list[tuple[int, int, bytes]]) -> None:
        data = tables[which]
        which.write_bytes(damaged(data, [((p + at) % len(data), n, t) for p, n, t in changes]))
        try:
            sound(load(folder / "run" if which.parent.name == "run" else which))
        except TandemError:
            pass
        finally:
            which.write_bytes(data)

    check()


def test_damaged_inventories(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("nodes") / "nodes.csv"
    good = (
        b"node,gpu_type,num_gpus,gpu_memory_mib,cpu_milli,memory_mib,rack\n"
        b"n1,t4,4,16384,96000,1024,r1\nn2,t4,8,,,,\n"
    )
    path.write_bytes(good)
    assert load_cluster(path).num_gpus == 12

    @settings(max_examples=60)
    @given(changes=edits)
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        path.write_bytes(damaged(good, changes))
        with suppress(TandemError):
            assert load_cluster(path).num_gpus >= 0

    check()


@settings(max_examples=100)
@given(st.text(alphabet="x0123456789:,v.-e", max_size=20))
def test_cluster_texts(text: str) -> None:
    try:
        spec = load_cluster(text)
    except TandemError:
        return
    assert spec.num_gpus >= 1
