"""What the publishers' own files must come out as; the numbers were computed from the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traces import Elastic, Workload, load


@pytest.fixture(scope="module")
def philly(shared_data: Path) -> Workload:
    return load(shared_data / "philly" / "jobs.csv.gz")


def test_philly_file_and_span(philly: Workload) -> None:
    source = philly.source
    assert source.format == "philly"
    assert source.sha256.startswith("ebffb3dd1589")
    assert source.origin == "2017-09-04T10:30:41"
    assert source.zone is None
    assert source.repairs == ()  # gpu_time = duration x GPUs in every row
    table = philly.table
    assert len(philly) == 82_247
    assert table["submit_s"].min() == 0.0
    assert table["submit_s"].max() == 9_408_690.0
    last = pd.Timestamp(source.origin) + pd.Timedelta(seconds=9_408_690)
    assert last == pd.Timestamp("2017-12-22 08:02:11")


def test_philly_sums_and_sizes(philly: Workload) -> None:
    table = philly.table
    duration = table["duration_s"]
    assert not duration.isna().any()
    assert duration.sum() == 1_080_390_950
    assert (duration * table["num_gpus"].astype(float)).sum() == 3_521_082_502
    assert table["num_gpus"].value_counts().sort_index().to_dict() == {
        1: 76_627, 2: 1_818, 4: 1_870, 8: 1_643, 12: 7, 16: 199, 24: 7, 32: 67, 64: 6, 128: 3,
    }  # fmt: skip
    quantiles = duration.quantile([0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0])
    assert quantiles.round().tolist() == [48, 115, 1_144, 2_932, 43_646, 254_758, 4_628_226]
    assert (duration < 60).sum() == 7_654
    assert round(float(table["num_gpus"].mean()), 2) == 1.30


def test_philly_people_and_time(philly: Workload) -> None:
    table = philly.table
    assert table["vc"].nunique() == 15
    origin = pd.Timestamp(philly.source.origin)
    day = pd.Timestamp("2017-09-24")
    assert (table["submit_s"] < (day - origin).total_seconds()).sum() == 69
    content = table.drop(columns="job_id")
    assert content.duplicated().sum() == 65  # kept: without ids nobody can tell them apart
    low = (pd.Timestamp("2017-10-02") - origin).total_seconds()
    weeks = table[(table["submit_s"] >= low) & (table["submit_s"] < low + 70 * 86_400)]
    assert len(weeks) == 74_174


def test_philly_unconstrained_demand(philly: Workload) -> None:
    table = philly.table
    gpus = table["num_gpus"].to_numpy(dtype=np.int64)
    start = table["submit_s"].to_numpy()
    end = start + table["duration_s"].to_numpy()
    times = np.concatenate([end, start])  # at one instant ends come first
    change = np.concatenate([-gpus, gpus])
    order = np.argsort(times, kind="stable")
    assert np.cumsum(change[order]).max() == 1_243
    low = (pd.Timestamp("2017-10-02") - pd.Timestamp(philly.source.origin)).total_seconds()
    weeks = (start >= low) & (start < low + 70 * 86_400)
    work = (gpus * (end - start))[weeks].sum()
    assert round(float(work / (70 * 86_400)), 1) == 447.4  # 18 % of 2,490 GPUs


def test_philly_sia_filter(shared_data: Path) -> None:
    workload = load(
        shared_data / "philly" / "jobs.csv.gz",
        options={"min_duration_s": "60", "max_gpu_hours": "1000"},
    )
    assert len(workload) == 74_428
    assert sum(r.rows for r in workload.source.repairs) == 82_247 - 74_428
    assert workload.source.options["min_duration_s"] == "60"


def test_tiresias(shared_data: Path) -> None:
    workload = load(shared_data / "tiresias" / "60_job.csv")
    table = workload.table
    assert workload.source.format == "tiresias"
    assert workload.source.sha256.startswith("17575949a6e5")
    assert len(workload) == 60
    assert table["num_gpus"].value_counts().to_dict() == {1: 30, 2: 10, 4: 10, 8: 10}
    assert (table["submit_s"].min(), table["submit_s"].max()) == (0.0, 1_779.0)
    duration = table["duration_s"]
    assert (duration.min(), duration.max(), duration.sum()) == (121, 1_800, 10_705)
    assert (duration * table["num_gpus"].astype(float)).sum() == 26_624


@pytest.mark.parametrize(
    ("name", "jobs", "two_gpu", "v100_s"),
    [
        ("artifact_evaluation", 15, 3, 20_320),
        ("medium_test", 20, 0, 174_407),
        ("small_test", 20, 3, 1_164),
    ],
)
def test_gavel(shared_data: Path, name: str, jobs: int, two_gpu: int, v100_s: int) -> None:
    folder = shared_data / "gavel"
    workload = load(
        folder / f"{name}.trace", options={"throughputs": str(folder / "throughputs.json.gz")}
    )
    table = workload.table
    assert workload.source.format == "gavel"
    assert len(workload) == jobs
    assert (table["num_gpus"] == 2).sum() == two_gpu
    assert (table["num_gpus"] > 2).sum() == 0
    assert (table["submit_s"] == 0).all()
    assert (table["priority"] == "1").all()
    assert not any("SLO" in note for note in workload.source.notes)
    assert round(float(table["duration_s"].sum())) == v100_s
    without = load(folder / f"{name}.trace")
    assert without.table["duration_s"].isna().all()
    assert (without.table["total_steps"] > 0).all()


def test_easyscale_keeps_all_rows(shared_data: Path) -> None:
    path = shared_data / "easyscale" / "workload.csv"
    workload = load(path)
    table = workload.table
    assert workload.source.format == "easyscale"
    assert workload.source.sha256.startswith("88ed28df5471")
    assert len(workload) == 68
    assert (table["submit_s"].min(), table["submit_s"].max()) == (115.0, 4_814.0)
    assert table["num_workers"].value_counts().to_dict() == {32: 38, 16: 18, 8: 11, 4: 1}
    assert table["gpu_type"].value_counts().to_dict() == {"v100": 52, "p100": 13, "t4": 3}
    assert table["model"].value_counts().to_dict() == {
        "electra": 20, "bert": 15, "resnet50": 14, "yolov3": 7, "ncf": 4,
        "shufflenetv2": 3, "swintransformer": 3, "vgg19": 2,
    }  # fmt: skip
    names = table["job_id"].str.replace(r"#\d$", "", regex=True)
    assert names.nunique() == 62
    thrice = names.value_counts()
    assert sorted(thrice[thrice == 3].index) == ["electra-28-1", "electra-28-2", "electra-28-3"]
    assert table["duration_s"].isna().all()
    rules = {r.rule: r for r in workload.source.repairs}
    flag = rules["flag is neither 0 nor 1: taken as 1"]
    assert flag.rows == 1
    assert flag.example.startswith("row 2: bert-0")


def test_easyscale_work_and_mixing(shared_data: Path) -> None:
    path = shared_data / "easyscale" / "workload.csv"
    table = load(path).table.set_index("job_id")
    # 200 epochs of 886.41 samples in batches of 4 on 4 workers: 11,080 whole steps and a rest.
    assert table.loc["electra-1", "total_steps"] == 11_081
    assert table["mixes_types"].sum() == 42
    assert (table["max_gpus"] == table["num_workers"]).all()
    assert (table["min_gpus"] == 0).all()


def test_easyscale_jobs_are_elastic(shared_data: Path) -> None:
    jobs = {job.job_id: job for job in load(shared_data / "easyscale" / "workload.csv").jobs()}
    assert jobs["electra-1"].elastic == Elastic(
        num_workers=4,
        max_gpus=4,
        mixes_types=True,
        model="electra",
        batch_size=4,
        total_steps=11_081.0,
        preferred_type="v100",
    )
    assert jobs["electra-1"].request.num_gpus == 4
    mixing = {job.elastic.model for job in jobs.values() if job.elastic and job.elastic.mixes_types}
    assert mixing == {"bert", "electra", "swintransformer", "ncf"}


def test_easyscale_as_the_artifact_reads_it(shared_data: Path) -> None:
    path = shared_data / "easyscale" / "workload.csv"
    table = load(path, options={"duplicates": "artifact"}).table.set_index("job_id")
    assert len(table) == 62
    assert table.loc["electra-28-1", "submit_s"] == 4_498
    assert table.loc["electra-28-2", "submit_s"] == 4_100
    assert table.loc["electra-28-3", "submit_s"] == 4_698


def test_philly_first_thousand(philly: Workload) -> None:
    """They never queue on 512 GPUs, so this is their mean JCT under any work-conserving policy."""
    first = philly.head(1_000)
    assert first.table["duration_s"].mean() == pytest.approx(103_997.614, abs=1e-9)
