"""PAI 2020: header-less tables in the publisher's columns, joined; with their known defects."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from traces.errors import DataError, TandemError
from traces.formats import pai
from traces.loading import load, load_cluster
from traces.workload import Workload

_TABLES: dict[str, list[str]] = {
    "pai_job_table.csv": [
        "j1,inst-1,u1,Terminated,1000.0,1500.0",
        "j2,inst-2,u1,Terminated,2000.0,2400.0",
        "j3,inst-3,u2,Failed,3000.0,3050.0",
        "j4,inst-4,u2,Running,4000.0,",
        "j5,inst-5,u3,Waiting,5000.0,0.0",
        "j6,inst-6,u3,Terminated,0.0,6600.0",
    ],
    "pai_task_table.csv": [
        # A parameter server on CPUs and two workers of half a GPU each.
        "j1,ps,1,Terminated,1010.0,1500.0,600.0,29.296875,,CPU",
        "j1,worker,2,Terminated,1010.0,1490.0,600.0,29.296875,50.0,T4",
        "j2,tensorflow,1,Terminated,2100.0,2400.0,400.0,10.0,25.0,MISC",
        "j3,worker,3,Failed,3010.0,3050.0,100.0,2.0,50.0,P100",
        "j3,chief,1,Failed,3005.0,3050.0,100.0,2.0,100.0,V100",
        "j4,worker,4,Running,4001.0,,800.0,64.0,200.0,V100M32",
        "j5,worker,8,Waiting,,,600.0,29.296875,100.0,",
        "j6,worker,1,Terminated,6100.0,6600.0,600.0,29.296875,100.0,T4",
    ],
    "pai_instance_table.csv": [
        "j1,ps,i1,w1,inst-1,Terminated,1012.0,1492.0,m1",
        "j1,worker,i2,w2,inst-1,Failed,1012.0,1020.0,m1",  # retried: the row below counts
        "j1,worker,i2,w2,inst-1,Terminated,1022.0,1442.0,m2",
        "j1,worker,i3,w3,inst-1,Terminated,1011.0,1191.0,m2",
        "j2,tensorflow,i4,w4,inst-2,Terminated,2100.0,2100.0,m3",  # 0 s: taken as 1 s
        "j3,worker,i5,w5,inst-3,Failed,3010.0,0.0,m4",  # no end
        "j3,chief,i6,w6,inst-3,Failed,3005.0,3045.0,m4",
        "j4,worker,i7,w7,inst-4,Running,4002.0,,m5",
        "j6,worker,i8,,inst-6,Terminated,6101.0,6301.0,m5",
    ],
    "pai_group_tag_table.csv": [
        "inst-1,u1,,g1,ctr",
        "inst-2,u1,T4,g2,bert",
        "inst-4,u2,V100M32,g3,",
    ],
    "pai_machine_spec.csv": [
        "m1,T4,96,512,2",
        "m2,CPU,96,768,0",
        "m3,MISC,64,512,8",
        "m4,V100M32,96,384,8",
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "pai", _TABLES)


def _write(folder: Path, tables: dict[str, list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder


def test_tables_are_joined(folder: Path) -> None:
    workload = load(folder)
    assert workload.source.format == "pai"
    assert workload.source.zone == "UTC+8"
    rows = workload.table.set_index("job_id")
    asked = rows[["num_gpus", "gpu_milli", "num_workers", "cpu_milli", "memory_mib"]]
    assert asked.T.to_dict("list") == {
        # 2 x 50 % is one GPU; 3 x 6 CPUs, 3 x 30,000 MiB.
        "j1": [1, 1000, 3, 18_000, 90_000],
        "j2": [1, 250, 1, 4_000, 10_240],
        # 3 x 50 % + 100 % is 2.5 GPUs, rounded up.
        "j3": [3, 1000, 4, 4_000, 8_192],
        "j4": [8, 1000, 4, 32_000, 262_144],
        "j5": [8, 1000, 8, 48_000, 240_000],
        "j6": [1, 1000, 1, 6_000, 30_000],
    }
    assert rows["gpu_type"].fillna("-").to_dict() == {
        "j1": "T4",
        "j2": "MISC",
        "j3": "P100|V100",
        "j4": "V100M32",
        "j5": "-",
        "j6": "T4",
    }
    assert rows["status"].to_dict() == {
        "j1": "completed",
        "j2": "completed",
        "j3": "failed",
        "j4": "running",
        "j5": "pending",
        "j6": "completed",
    }
    assert rows["model"].fillna("-").to_dict() == {
        "j1": "ctr",
        "j2": "bert",
        "j3": "-",
        "j4": "-",
        "j5": "-",
        "j6": "-",
    }
    assert rows.index[rows["single_node"]].tolist() == ["j2", "j6"]
    assert rows.index[rows["right_censored"]].tolist() == ["j4"]


def test_times_come_from_the_instances(folder: Path) -> None:
    rows = load(folder).table.set_index("job_id")
    assert rows["submit_s"].tolist() == [1000, 2000, 3000, 4000, 5000, 6101]
    assert rows["start_s"].fillna(0).tolist() == [1011, 2100, 3005, 4002, 0, 6101]
    # j1: (480 + 420 + 180) / 3; j3: only the chief's instance has an end.
    assert rows["duration_s"].fillna(-1).tolist() == [360, 1, 40, -1, -1, 200]


def test_repairs_are_recorded(folder: Path) -> None:
    assert {r.rule: r.rows for r in load(folder).source.repairs} == {
        "fractional GPUs above one in total: rounded up to whole GPUs": 1,
        "no submission time: its first start is taken": 1,
        "run time of 0 s or less: taken as 1 s": 1,
        "several rows of one worker: the last by (status, start, end) is kept": 1,
        "shares of a GPU for several instances: added up": 2,
        "tasks on several GPU types: kept as alternatives": 1,
    }


def test_job_table_alone_finds_the_others_beside_it(folder: Path) -> None:
    whole = load(folder)
    for name in ("pai_task_table.csv", "pai_instance_table.csv"):
        plain = folder / name
        (folder / (name + ".gz")).write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    beside = load(folder / "pai_job_table.csv")
    assert beside.digest() == whole.digest()
    assert beside.source.sha256 == whole.source.sha256


def test_without_instances_the_tasks_times_count(folder: Path) -> None:
    skipped = load(folder, options={"instances": "skip"})
    (folder / "pai_instance_table.csv").unlink()
    without = load(folder)
    assert skipped.digest() == without.digest()
    rows = without.table.set_index("job_id")
    # j1: (1 x 490 + 2 x 480) / 3.
    assert rows.loc["j1", "duration_s"] == pytest.approx(1450 / 3)
    assert rows.loc["j6", ["submit_s", "start_s"]].tolist() == [6100, 6100]
    assert any("no instance table" in note for note in without.source.notes)


def test_types_as_the_user_asked(folder: Path) -> None:
    rows = load(folder, options={"gpu_type": "spec"}).table.set_index("job_id")
    assert rows["gpu_type"].fillna("-").tolist() == ["-", "T4", "-", "V100M32", "-", "-"]
    (folder / "pai_group_tag_table.csv").unlink()
    with pytest.raises(TandemError, match="no group_tag table"):
        load(folder, options={"gpu_type": "spec"})


def test_rows_that_cannot_be_jobs_are_set_aside(folder: Path) -> None:
    tables = {name: list(rows) for name, rows in _TABLES.items()}
    tables["pai_job_table.csv"] += [
        "j7,inst-7,u1,Terminated,7000.0,7100.0",  # no task
        "j8,inst-8,u1,Failed,0.0,0.0",  # no time at all
        "j2,inst-2,u1,Failed,1900.0,1950.0",  # an earlier try of j2
    ]
    tables["pai_task_table.csv"] += [
        "j8,worker,1,Failed,0.0,0.0,600.0,29.3,100.0,T4",
        "j9,worker,1,Failed,8000.0,8010.0,600.0,29.3,100.0,T4",  # no job
        "j2,tensorflow,1,Failed,1900.0,1950.0,400.0,10.0,100.0,MISC",
    ]
    tables["pai_instance_table.csv"].append("j9,worker,i9,w9,inst-9,Failed,1.0,2.0,m1")
    workload = load(_write(folder, tables))
    assert workload.digest() == load(_write(folder.parent / "plain", _TABLES)).digest()
    found = {r.rule: (r.rows, r.example[:7]) for r in workload.source.repairs}
    assert found["a job without tasks: what it asked for is unknown"] == (1, "row 7: ")
    assert found["neither a submission nor a start time"] == (1, "row 8: ")
    assert found["a task of no job: set aside"] == (1, "row 10:")
    assert found["an instance of no job: not used"] == (1, "row 10 ")
    assert found["several rows of one job: the last by (status, start, end) is kept"][0] == 1
    assert found["several rows of one task: the last by (status, start, end) is kept"][0] == 1


def test_a_header_line_is_accepted(folder: Path) -> None:
    plain = load(folder).digest()
    for name, columns in (
        ("pai_job_table.csv", "job_name,inst_id,user,status,start_time,end_time"),
        ("pai_machine_spec.csv", "machine,gpu_type,cap_cpu,cap_mem,cap_gpu"),
    ):
        path = folder / name
        path.write_text(columns + "\n" + path.read_text())
    assert load(folder).digest() == plain
    assert load_cluster(folder / "pai_machine_spec.csv").num_gpus == 18


def test_machines(folder: Path) -> None:
    for path in (folder, folder / "pai_machine_spec.csv"):
        spec = load_cluster(path)
        assert spec.gpus_by_type() == {"T4": 2, "MISC": 8, "V100M32": 8}
        assert [n.gpu_type for n in spec.nodes] == ["T4", "cpu", "MISC", "V100M32"]
        assert (spec.nodes[3].cpu_milli, spec.nodes[3].memory_mib) == (96_000, 393_216)


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("pai_job_table.csv", "j9,inst-9,u1,Terminated,soon,1.0", "start_time"),
        ("pai_job_table.csv", ",inst-9,u1,Failed,1.0,1.0", "job_name"),
        ("pai_task_table.csv", "j1,w,1.5,Failed,1.0,1.0,600.0,2.0,100.0,T4", "inst_num"),
        ("pai_task_table.csv", "j1,w,1,Failed,1.0,1.0,600.0,2.0,-1,T4", "plan_gpu"),
        ("pai_instance_table.csv", "j1,ps,i1,w9,inst-1,Failed,x,1.0,m1", "start_time"),
        ("pai_task_table.csv", "j1,w,1", None),
    ],
)
def test_errors_name_file_row_and_column(
    folder: Path, name: str, row: str, column: str | None
) -> None:
    path = folder / name
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, row]))
    with pytest.raises(DataError) as caught:
        load(folder)
    assert caught.value.file == path
    assert (caught.value.row, caught.value.column) == (len(rows) + 1, column)


def test_missing_tables_say_what_to_do(folder: Path) -> None:
    (folder / "pai_task_table.csv").unlink()
    with pytest.raises(DataError, match=r"no task_table here.*pai_task_table\.csv, unpacked"):
        load(folder)
    with pytest.raises(DataError, match="no machine_spec here"):
        pai.read_nodes(folder.parent)


def test_row_order_does_not_matter(folder: Path) -> None:
    tables = {name: list(rows) for name, rows in _TABLES.items()}
    # The same task twice with equal times and different requests: still one answer.
    tables["pai_task_table.csv"].append(
        "j6,worker,1,Terminated,6100.0,6600.0,600.0,29.296875,50.0,T4"
    )
    expected = load(_write(folder, tables)).digest()
    rng = np.random.default_rng(3)
    for _ in range(5):
        for rows in tables.values():
            rng.shuffle(rows)
        assert load(_write(folder, tables)).digest() == expected


def test_totals_are_conserved_over_many_jobs(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    jobs, tasks, instances, milli, means = [], [], [], [], []
    for i in range(300):
        counts = rng.integers(1, 5, size=int(rng.integers(1, 4)))
        percent = rng.choice([0, 25, 50, 100, 200], size=len(counts))
        milli.append(int((counts * percent * 10).sum()))
        jobs.append(f"j{i},inst-{i},u,Terminated,{1000 + i}.0,9999999.0")
        seconds = []
        for t, (count, gpu) in enumerate(zip(counts, percent, strict=True)):
            tasks.append(f"j{i},t{t},{count},Terminated,{2000 + i}.0,9.0e6,100.0,1.0,{gpu},T4")
            for k in range(int(count)):
                seconds.append(int(rng.integers(1, 5000)))
                end = 2000 + i + seconds[-1]
                instances.append(
                    f"j{i},t{t},i{k},w{i}-{t}-{k},inst-{i},Terminated,{2000 + i}.0,{end}.0,m"
                )
        means.append(float(np.mean(seconds)))
    workload: Workload = load(
        _write(
            tmp_path / "many",
            {
                "pai_job_table.csv": jobs,
                "pai_task_table.csv": tasks,
                "pai_instance_table.csv": instances,
            },
        )
    )
    table = workload.table
    gpus = [m if m < 1000 else -(-m // 1000) * 1000 for m in milli]
    shown = (table["num_gpus"] * table["gpu_milli"]).where(table["num_gpus"] > 0, 0)
    assert shown.tolist() == gpus
    assert table["duration_s"].tolist() == pytest.approx(means)


def test_instances_in_pieces_are_instances_at_once(folder: Path) -> None:
    from traces.formats.pai_instances import run_times
    from traces.formats.raw import read_raw

    names = "job_name task_name inst_name worker_name inst_id status start_time end_time machine"
    columns = tuple(names.split())
    path = folder / "pai_instance_table.csv"
    path.write_text(path.read_text() + "\n\nj9,worker,i9,w9,inst-9,Failed,1.0,2.0,m1\n")
    jobs = [f"j{i}" for i in range(1, 7)]
    whole, repairs = run_times(read_raw(path), columns, jobs)
    for size in (1, 60, 200, 400):
        pieces, same = run_times(read_raw(path), columns, jobs, piece_bytes=size)
        assert pieces.equals(whole)
        assert same == repairs
    assert repairs[0].example == "row 12 of pai_instance_table.csv"
    headed = folder / "headed.csv"
    headed.write_text(",".join(columns) + "\n" + path.read_text())
    assert run_times(read_raw(headed), columns, jobs, piece_bytes=500)[0].equals(whole)
    path.write_text(path.read_text() + "j1,ps,i1\n")
    with pytest.raises(DataError) as caught:
        run_times(read_raw(path), columns, jobs, piece_bytes=100)
    assert caught.value.row == 13


def test_undocumented_states_are_kept(folder: Path) -> None:
    path = folder / "pai_job_table.csv"
    path.write_text(path.read_text().replace("u1,Terminated,1000.0", "u1,Asleep,1000.0"))
    workload = load(folder)
    assert workload.table["status"].tolist()[0] == "unknown"
    assert any("status is none of" in r.rule for r in workload.source.repairs)
