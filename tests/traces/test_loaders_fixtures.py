"""Publishers' formats whose data are not at hand: small files exactly as their READMEs show them,
with the defects that are known of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from traces import DataError, UsageError, Workload, load
from traces.formats.helios import read_capacity

EIGHT = [f"gpu{i}" for i in range(8)]


def attempt(start: str | None, end: str | None, *machines: list[str]) -> dict[str, object]:
    detail = [{"ip": f"m{i}", "gpus": gpus} for i, gpus in enumerate(machines)]
    return {"start_time": start, "end_time": end, "detail": detail}


def philly_job(name: str, submitted: str | None, attempts: object, status: str = "Pass") -> object:
    return {
        "status": status,
        "vc": "ee9e8c",
        "jobid": name,
        "attempts": attempts,
        "submitted_time": submitted,
        "user": "ce2f4c",
    }


# The first job is the example of the publisher's README: 74 s and 193,182 s.
README_JOB = philly_job(
    "application_1506638472019_14199",
    "2017-10-07 01:11:39",
    [
        attempt("2017-10-07 01:12:09", "2017-10-07 01:13:23", EIGHT),
        attempt("2017-10-07 01:13:30", "2017-10-09 06:53:12", EIGHT),
    ],
)
PHILLY_LOG = [
    README_JOB,
    philly_job("never", "2017-10-07 01:11:00", [], "Killed"),
    philly_job("running", "2017-10-08 00:00:00", [attempt("2017-10-09 06:00:00", None, ["gpu0"])]),
    philly_job(
        "lost-time",
        "2017-10-08 00:00:01",
        [
            attempt("None", "2017-10-08 01:00:00", ["gpu0"], ["gpu0"]),
            attempt("2017-10-08 01:00:00", "2017-10-08 02:00:00", ["gpu0"]),
        ],
        "Failed",
    ),
    philly_job("no-gpus", "2017-10-08 00:00:02", [attempt("None", "None")], "Failed"),
    philly_job("no-time", "None", [attempt(None, None, ["gpu0"])], "Failed"),
    philly_job(
        "killed",
        "2017-10-08 00:00:03",
        [attempt("2017-10-08 00:00:13", "2017-10-08 00:01:13", ["gpu3"], ["gpu1", "gpu2"])],
        "Killed",
    ),
]


def write_philly_log(folder: Path, jobs: list[object]) -> Path:
    path = folder / "cluster_job_log"
    path.write_text(json.dumps(jobs, indent=4))
    return path


def repairs(workload: Workload) -> dict[str, int]:
    return {r.rule: r.rows for r in workload.source.repairs}


def test_philly_log(tmp_path: Path) -> None:
    workload = load(write_philly_log(tmp_path, PHILLY_LOG))
    assert workload.source.format == "philly-log"
    assert workload.source.origin == "2017-10-07T01:11:39"
    table = workload.table.set_index("job_id")
    assert list(table.index) == [
        "application_1506638472019_14199", "running", "lost-time", "killed",
    ]  # fmt: skip
    first = table.loc["application_1506638472019_14199"]
    assert first["duration_s"] == 193_256  # as the flat CSV has it
    assert (first["num_gpus"], first["start_s"], first["submit_s"]) == (8, 30.0, 0.0)
    assert (first["status"], first["user"], first["vc"]) == ("completed", "ce2f4c", "ee9e8c")
    running = table.loc["running"]
    assert running["status"] == "running"
    assert running["right_censored"]
    assert running["duration_s"] == 53 * 60 + 12  # to the last instant in the log
    lost = table.loc["lost-time"]
    assert pd.isna(lost["duration_s"])
    assert (lost["status"], lost["num_gpus"]) == ("failed", 2)
    killed = table.loc["killed"]
    assert (killed["status"], killed["num_gpus"], killed["duration_s"]) == ("killed", 3, 60.0)
    assert repairs(workload) == {
        "never ran (no attempts), so no GPU count: set aside as pending": 1,
        "an attempt without its start or end: run time unknown": 1,
        "no GPUs recorded for attempt 0: set aside": 1,
        "no submission time: set aside": 1,
    }


def test_philly_log_order_of_jobs_does_not_matter(tmp_path: Path) -> None:
    digest = load(write_philly_log(tmp_path, PHILLY_LOG)).digest()
    assert load(write_philly_log(tmp_path, PHILLY_LOG[::-1])).digest() == digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", ["no known format"]),
        ("[", ["philly-log"]),
        ("[{\n\"jobid\": 'x'}]", ["row 2", "not JSON"]),
        ('[{"jobid": "a"}, 3]', ["job 1 of the array", "an object"]),
        ('[{"jobid": "a", "submitted_time": "2017-10-07"}]', ["submitted_time", "2017-10-07 01"]),
        ('[{"jobid": 7}]', ["jobid", "a string"]),
        ('[{"jobid": "a", "submitted_time": "2017-10-07 01:11:39", "attempts": 1}]', ["attempts"]),
        ('[{"jobid": "a", "submitted_time": null}]', ["no job in it"]),
    ],
)
def test_philly_log_says_what_is_wrong(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "cluster_job_log.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value)


def test_philly_log_status_and_twice(tmp_path: Path) -> None:
    ran = [attempt("2017-10-07 01:12:09", "2017-10-07 01:13:23", EIGHT)]
    odd = philly_job("odd", "2017-10-07 01:11:39", ran, "Passed")
    workload = load(write_philly_log(tmp_path, [odd]))
    assert workload.table["status"].tolist() == ["unknown"]
    assert repairs(workload) == {"status is none of Pass, Failed, Killed: unknown": 1}
    with pytest.raises(DataError, match="there twice"):
        load(write_philly_log(tmp_path, [README_JOB, README_JOB]))


HELIOS_HEADER = (
    "job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue"
)
HELIOS = [
    HELIOS_HEADER,
    "1425511,uXBbc,vcJkd,1,1,1,COMPLETED,"
    "2020-06-09 18:41:01,2020-06-09 18:41:01,2020-06-10 04:55:09,36848,0",
    "1425512,uVMrF,vc6YE,4,16,1,FAILED,"
    "2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09 18:45:36,249,0",
    "1425513,uzqls,vcpDC,0,1,1,CANCELLED,"
    "2020-06-09 18:41:28,2020-06-09 18:41:28,2020-06-17 14:15:21,675233,0",
    "1425514,uzqls,vcpDC,16,64,2,TIMEOUT,"
    "2020-06-09 18:41:29,2020-06-09 18:51:29,2020-06-09 18:52:29,90,600",
    "1425515,uzqls,vcpDC,8,64,1,SUSPENDED,2020-06-09 18:41:30,,,,",
    "1425516,uzqls,vcpDC,8,64,1,NODE_FAIL,"
    "2020-06-09 18:41:31,2020-06-09 18:41:31,2020-06-09 18:41:32,1,0",
]


def write(folder: Path, name: str, lines: list[str], newline: str = "\n") -> Path:
    path = folder / name
    path.write_bytes((newline.join(lines) + newline).encode())
    return path


def test_helios(tmp_path: Path) -> None:
    workload = load(write(tmp_path, "cluster_log.csv", HELIOS))
    assert workload.source.format == "helios"
    assert workload.source.origin == "2020-06-09T18:41:01"
    table = workload.table
    assert table["num_gpus"].tolist() == [1, 4, 0, 16, 8, 8]
    assert table["kind"].tolist() == ["training", "training", "other", *["training"] * 3]
    assert table["status"].tolist() == [
        "completed", "failed", "killed", "failed", "unknown", "failed",
    ]  # fmt: skip
    assert table["duration_s"].tolist()[:4] == [36_848, 249, 675_233, 90]
    assert pd.isna(table["duration_s"].iloc[4])
    assert table["cpu_milli"].tolist() == [1_000, 16_000, 1_000, 64_000, 64_000, 64_000]
    assert table["start_s"].iloc[3] == 628.0
    assert table["gpu_type"].isna().all()
    assert repairs(workload) == {"duration is not end - start: duration kept": 1}


def test_states_nobody_told_of_are_kept_and_counted(tmp_path: Path) -> None:
    odd = [line.replace("NODE_FAIL", "PREEMPTED") for line in HELIOS]
    workload = load(write(tmp_path, "cluster_log.csv", odd))
    assert workload.table["status"].tolist()[-1] == "unknown"
    (repair,) = [r for r in workload.source.repairs if r.rule.startswith("state is none of")]
    assert repair.rows == 1
    assert repair.example.startswith("row 7: 1425516")


def test_helios_options(tmp_path: Path) -> None:
    path = write(tmp_path, "cluster_log.csv", HELIOS)
    workload = load(path, options={"cluster": "saturn", "vcs": "merge", "drop_vcs": "vcJkd"})
    table = workload.table
    assert set(table["gpu_type"].dropna()) == {"volta|pascal"}
    assert table["gpu_type"].isna().sum() == 1  # the CPU job
    assert "vcvGl" in set(table["vc"])
    assert "vc6YE" not in set(table["vc"])
    assert table["submit_s"].min() == 26.0  # the origin stays where the file begins
    with pytest.raises(UsageError, match="did you mean 'saturn'"):
        load(path, options={"cluster": "saturm"})
    with pytest.raises(UsageError, match="did you mean 'cluster'"):
        load(path, options={"clutser": "saturn"})
    with pytest.raises(UsageError, match="drop_vcs=nope"):
        load(path, options={"drop_vcs": "nope"})
    with pytest.raises(DataError, match="no job is left"):
        load(path, options={"min_duration_s": "1e9", "only_status": "unknown", "max_gpus": "1"})


def test_helios_capacity(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "cluster_gpu_number.csv",
        ["date,vchbv,vc4om,total", "2020-09-02,64,104,168", "2020-09-01,64,96,160"],
    )
    capacity = read_capacity(path)
    assert capacity.loc["2020-09-01", "vc4om"] == 96
    assert capacity["total"].tolist() == [160, 168]
    write(tmp_path, path.name, ["date,vchbv,total", "2020-09-01,64,65"])
    with pytest.raises(DataError, match=r"row 2, column 'total'.*sum"):
        read_capacity(path)


SEREN = [
    "job_id,user,node_num,gpu_num,cpu_num,type,state,submit_time,start_time,end_time,duration,"
    "queue,gpu_time",
    "5778432,u5907,1,8,128,Other,FAILED,2023-03-01 00:18:22+08:00,2023-03-01 00:18:54+08:00,"
    "2023-03-01 00:20:51+08:00,117,32,936.0",
    "5778469,u5907,1,8,128,Pretrain,COMPLETED,2023-03-01 00:23:58+08:00,"
    "2023-03-01 00:24:11+08:00,2023-03-01 01:09:04+08:00,2693,13,21544.0",
]
KALOS = [
    "job_id,user,node_num,gpu_num,cpu_num,mem_per_pod_GB,shared_mem_per_pod,type,state,"
    "submit_time,start_time,end_time,fail_time,stop_time,duration,queue,gpu_time",
    "dlctk696s0jbvitv,uf794,8,64,960,1000,100.0,Other,FAILED,2023-05-17 11:00:58+00:00,"
    "2023-05-17 11:01:08+00:00,2023-05-17 11:01:16+00:00,2023-05-17 11:01:16+00:00,,18,10.0,1152.0",
    "dlc1t2ypl09b8qtp,uf794,8,64,960,1000,100.0,SFT,CANCELLED,2023-05-17 11:28:42+00:00,"
    "2023-05-17 11:28:54+00:00,2023-05-17 11:30:04+00:00,,2023-05-17 11:30:04+00:00,82,12.0,5248.0",
]


def test_acme_seren(tmp_path: Path) -> None:
    workload = load(write(tmp_path, "trace_seren.csv", SEREN))
    assert workload.source.format == "acme"
    assert workload.source.zone == "+08:00"
    assert workload.source.origin == "2023-03-01T00:18:22+08:00"
    table = workload.table
    assert table["duration_s"].tolist() == [117, 2_693]
    assert table["submit_s"].tolist() == [0, 336]
    assert table["gpu_type"].tolist() == ["A100", "A100"]
    assert table["kind"].tolist() == ["other", "training"]
    assert table["model"].tolist() == ["Other", "Pretrain"]
    assert table["memory_mib"].isna().all()
    assert workload.source.repairs == ()


def test_acme_kalos_durations_are_recomputed(tmp_path: Path) -> None:
    workload = load(write(tmp_path, "trace_kalos.csv", KALOS))
    table = workload.table
    assert table["duration_s"].tolist() == [8, 70]  # the file says 18 and 82, queueing included
    assert repairs(workload) == {"duration is not end - start: recomputed": 2}
    assert workload.source.zone == "+00:00"
    assert workload.source.origin == "2023-05-17T11:00:58+00:00"
    assert table["memory_mib"].tolist() == [7_629_395, 7_629_395]  # 8 pods of 1000 GB
    assert table["status"].tolist() == ["failed", "killed"]


def test_acme_still_running(tmp_path: Path) -> None:
    running = SEREN[2].replace("2023-03-01 01:09:04+08:00,2693", ",")
    workload = load(write(tmp_path, "trace_seren.csv", [*SEREN[:2], running]))
    job = workload.table.iloc[1]
    assert job["right_censored"]
    assert job["status"] == "running"
    assert job["duration_s"] == 0.0  # nothing later is known than its own start
    mixed = SEREN[2].replace("+08:00", "+00:00")
    path = write(tmp_path, "trace_seren.csv", [*SEREN[:2], mixed])
    with pytest.raises(DataError, match="row 3, column 'submit_time': another time zone"):
        load(path)


GAVEL_OLD = [
    "Transformer (batch size 128)\tcd %s && python3 train.py\t-step\t1\t95121\t0.000000\t1",
    "ResNet-18 (batch size 32)\tcd %s && python3 main.py \t--num_steps\t1\t1104675\t6.000000\t4",
    "A3C\tcd %s && python3 main.py\t--max-steps\t0\t1934260\t7.500000\t1",
]


def test_gavel_seven_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "0e4a51.trace", GAVEL_OLD)
    rates = {
        "p100": {
            "('Transformer (batch size 128)', 1)": {"null": 10.0},
            "('ResNet-18 (batch size 32)', 4)": {"null": 25.0, "('A3C', 1)": [1.0, 2.0]},
            "('A3C', 1)": {"null": 2.0},
        }
    }
    (tmp_path / "throughputs.json").write_text(json.dumps(rates))
    options = {"throughputs": str(tmp_path / "throughputs.json"), "worker": "p100"}
    workload = load(path, options=options)
    table = workload.table
    assert table["submit_s"].tolist() == [0, 6, 7.5]
    assert table["num_gpus"].tolist() == [1, 4, 1]
    assert table["duration_s"].tolist() == [9_512.1, 44_187, 967_130]
    assert table["batch_size"].tolist() == [128, 32, pd.NA]
    with pytest.raises(UsageError, match="did you mean 'p100'"):
        load(path, options={**options, "worker": "v100"})
    del rates["p100"]["('A3C', 1)"]
    (tmp_path / "throughputs.json").write_text(json.dumps(rates))
    with pytest.raises(DataError, match=r"row 3, column 'job_type': no throughput.*p100"):
        load(path, options=options)


def test_gavel_priority_and_slo(tmp_path: Path) -> None:
    line = "LM (batch size 5)\tpython main.py\tlm\t--steps\t1\t100\t2\t5\t1.2\t30"
    workload = load(write(tmp_path, "slo.trace", [line]))
    assert workload.table["priority"].tolist() == ["5"]
    assert "1 jobs have an SLO, which is not kept" in workload.source.notes


PHILLY_FLAT = [
    "timestamp,duration,num_gpus,gpu_time,cluster",
    "2017-10-09 07:01:55,66.0,1,66.0,11cb48",
    "2017-10-09 06:13:03,2951.0,2,2951.0,6214e9",
    "2017-10-09 06:13:03,10.0,,,6214e9",
    "2017-10-09 06:13:04,,4,,6214e9",
]


def test_philly_flat_repairs(tmp_path: Path) -> None:
    workload = load(write(tmp_path, "p.csv", PHILLY_FLAT, "\r\n"))
    assert len(workload) == 3
    assert repairs(workload) == {
        "no GPU count: set aside": 1,
        "gpu_time is not duration x GPUs: gpu_time ignored": 1,
    }
    assert workload.source.repairs[0].example == "row 4: 2017-10-09 06:13:03,10.0,,,6214e9"
    assert workload.table["duration_s"].isna().sum() == 1
    kept = load(tmp_path / "p.csv", options={"max_duration_s": "100"})
    assert kept.table["duration_s"].isna().sum() == 1  # unknown is not too long
    assert len(kept) == 2


def test_philly_log_without_any_known_run_time(tmp_path: Path) -> None:
    lost = philly_job("lost", "2017-10-08 00:00:01", [attempt("None", "None", ["gpu0"])], "Failed")
    workload = load(write_philly_log(tmp_path, [lost]))
    assert workload.table["duration_s"].isna().all()
    assert workload.table["start_s"].isna().all()
