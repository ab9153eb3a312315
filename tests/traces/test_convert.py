"""Canonical files: the same workload comes back, and its history with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces import ClusterSpec, DataError, Repair, Source, UsageError, Workload, generate, load
from traces.convert import ENDINGS, convert, write
from traces.provenance import from_json, record_path, to_json
from traces.scale import offered_load

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=8,
).filter(lambda text: text == text.strip())
SECONDS = st.floats(0, 1e9, allow_subnormal=False)
JOB = st.fixed_dictionaries(
    {
        "submit_s": st.floats(-1e9, 1e9, allow_subnormal=False),
        "duration_s": st.none() | SECONDS,
        "num_gpus": st.integers(0, 4096),
        "user": st.none() | WORDS,
        "vc": st.none() | WORDS,
        "gpu_type": st.none() | st.sampled_from(["v100", "t4|a10", 'odd "type", 1']),
        "cpu_milli": st.none() | st.integers(0, 10**9),
        "single_node": st.booleans(),
        "estimate_s": st.none() | SECONDS,
        "status": st.sampled_from(["completed", "failed", "unknown"]),
        "total_steps": st.none() | SECONDS,
        "right_censored": st.booleans(),
    }
)


def test_every_ending_comes_back_bit_for_bit(tmp_path: Path) -> None:
    workload = generate(
        "openb", seed=3, jobs=2_000, users=9, vcs=2, estimates=1.0, load=0.7, cluster="8x8"
    )
    for ending in ENDINGS:
        target = tmp_path / f"jobs{ending}"
        write(workload, target)
        again = load(target)
        assert again.digest() == workload.digest(), ending
        assert again.source.format == "canonical"
        assert again.source.notes == workload.source.notes
        assert again.source.options == workload.source.options


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JOB, min_size=1, max_size=6), ending=st.sampled_from(ENDINGS))
def test_any_workload_comes_back(
    tmp_path: Path, rows: list[dict[str, object]], ending: str
) -> None:
    workload = Workload.from_jobs([{"job_id": f"j{i}", **row} for i, row in enumerate(rows)])
    target = tmp_path / f"jobs{ending}"
    write(workload, target, force=True)
    assert load(target, "canonical").digest() == workload.digest()


def test_real_traces_keep_their_repairs(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "openb" / "pods.csv.gz"
    for name in ("pods.csv", "pods.parquet"):
        first = convert(source, tmp_path / name)
        again = load(tmp_path / name)
        assert again.digest() == first.digest()
        assert again.source.repairs == first.source.repairs != ()
        assert again.source.notes[-1].startswith("converted from pods.csv.gz (openb, sha256 ")
        # A second conversion adds nothing to the story.
        convert(tmp_path / name, tmp_path / f"again-{name}")
        assert load(tmp_path / f"again-{name}").source.notes == again.source.notes


def test_origin_and_zone_travel(shared_data: Path, tmp_path: Path) -> None:
    first = convert(shared_data / "philly" / "jobs.csv.gz", tmp_path / "philly.parquet")
    again = load(tmp_path / "philly.parquet")
    assert again.source.origin == first.source.origin == "2017-09-04T10:30:41"
    assert len(again) == 82_247


def test_convert_can_stretch_time(tmp_path: Path) -> None:
    cluster = ClusterSpec.parse("4x8:v100")
    write(generate("gavel", seed=1, jobs=300), tmp_path / "a.csv")
    convert(tmp_path / "a.csv", tmp_path / "b.csv", load_factor=0.8, cluster=cluster)
    assert offered_load(load(tmp_path / "b.csv"), cluster) == pytest.approx(0.8, rel=1e-9)
    with pytest.raises(UsageError, match="belong together"):
        convert(tmp_path / "a.csv", tmp_path / "c.csv", load_factor=0.8)


def test_an_edited_table_no_longer_has_its_record(tmp_path: Path) -> None:
    target = tmp_path / "jobs.csv"
    write(generate("poisson", seed=1, jobs=5), target)
    target.write_text(target.read_text().replace("poisson-0000000", "mine"))
    source = load(target).source
    assert source.options == {}
    assert source.notes == (
        "the record jobs.csv.source.json is of another version of this table: not used",
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"tandem_source": 2}', "\x00", '{"tandem_source": 1}']
)
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    target = tmp_path / "jobs.csv"
    write(generate("poisson", seed=1, jobs=5), target)
    record_path(target).write_text(text)
    with pytest.raises(DataError, match=r"jobs\.csv\.source\.json: "):
        load(target)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_record_is_read_or_refused(value: object) -> None:
    record = json.loads(to_json(Source(path="x", repairs=(Repair(rule="r", rows=1),))))
    for key in record:
        try:
            from_json(json.dumps({**record, key: value}), file=Path("x.json"))
        except DataError:
            continue


def test_the_record_says_where_a_csv_came_from(tmp_path: Path) -> None:
    written = write(generate("philly", seed=1, days=1), tmp_path / "jobs.csv.gz")
    assert [p.name for p in written] == ["jobs.csv.gz", "jobs.csv.gz.source.json"]
    source, sha256 = from_json(written[1].read_bytes(), file=written[1])
    assert source.options["seed"] == 1
    assert len(sha256) == 64
    # Compression puts no date into the file: the same workload gives the same bytes.
    first = written[0].read_bytes()
    write(generate("philly", seed=1, days=1), tmp_path / "jobs.csv.gz", force=True)
    assert (tmp_path / "jobs.csv.gz").read_bytes() == first
    assert gzip.decompress(first).startswith(b"job_id,submit_s,duration_s,num_gpus,vc\n")


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    workload = generate("poisson", seed=1, jobs=5)
    with pytest.raises(UsageError, match="end it in one of"):
        write(workload, tmp_path / "jobs.txt")
    with pytest.raises(UsageError, match="end it in one of"):
        write(workload, tmp_path / ".csv")
    with pytest.raises(UsageError, match="is a directory"):
        write(workload, tmp_path)
    write(workload, tmp_path / "jobs.csv")
    with pytest.raises(UsageError, match="--force"):
        write(workload, tmp_path / "jobs.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jobs.csv", "jobs.csv.source.json"]


@pytest.mark.parametrize("user", ["", " ann", "ann\t"])
def test_text_that_would_not_come_back_is_refused(tmp_path: Path, user: str) -> None:
    row: dict[str, object] = {"submit_s": 0.0, "duration_s": 1.0, "num_gpus": 1, "user": user}
    for ending in ENDINGS:
        with pytest.raises(DataError, match="would not come back"):
            write(Workload.from_jobs([row]), tmp_path / f"jobs{ending}")
    assert list(tmp_path.iterdir()) == []
