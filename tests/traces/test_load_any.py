"""Loading in general: compression, recognition, column maps, canonical tables, runs, bad files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from traces import ClusterSpec, DataError, RunWriter, UsageError, Workload, load, load_cluster
from traces.formats import FORMATS
from traces.runlog import JOB_OUTCOME_COLUMNS

TIRESIAS = (
    b"job_id,num_gpu,submit_time,iterations,model_name,duration,interval\n"
    b"0,1,0,606,vgg19,164,30\n"
    b"1,8,30,133,vgg11,147,23\n"
)
ANY = b"when;gpus;ran;who;note\n10;1;60;ann;x\n12.5;2;;bob;y\n"
MAP = {"submit_s": "when", "num_gpus": "gpus", "duration_s": "ran", "user": "who"}


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("suffix", "squeeze"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compression_is_told_by_content(
    tmp_path: Path, suffix: str, squeeze: Callable[[bytes], bytes]
) -> None:
    plain = load(put(tmp_path, "plain.csv", TIRESIAS))
    for name in (f"jobs.csv{suffix}", "no-ending"):
        workload = load(put(tmp_path, name, squeeze(TIRESIAS)))
        assert workload.digest() == plain.digest()
        assert workload.source.sha256 == plain.source.sha256


def test_byte_order_mark_line_endings_and_blank_lines(tmp_path: Path) -> None:
    plain = load(put(tmp_path, "plain.csv", TIRESIAS)).digest()
    for data in (
        b"\xef\xbb\xbf" + TIRESIAS,
        TIRESIAS.replace(b"\n", b"\r\n"),
        TIRESIAS.replace(b"\n", b"\r"),
        TIRESIAS.rstrip(),
        b"\n\n" + TIRESIAS.replace(b"\n", b"\n\n") + b"\n\n\n",
        TIRESIAS.replace(b"vgg19", b'"vgg19"'),
    ):
        assert load(put(tmp_path, "odd.csv", data), format="tiresias").digest() == plain


def test_rows_are_lines_of_the_file(tmp_path: Path) -> None:
    quoted = TIRESIAS.replace(b"vgg19", b'"vgg\n\n19"').replace(b"147", b"soon")
    with pytest.raises(DataError, match=r"row 5, column 'duration': not a number \(found 'soon'\)"):
        load(put(tmp_path, "quoted.csv", quoted))
    blank = b"\n" + TIRESIAS.replace(b"606", b"many")
    with pytest.raises(DataError, match="row 3, column 'iterations'"):
        load(put(tmp_path, "blank.csv", blank), format="tiresias")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.csv", b"", "empty"),
        ("blank.csv", b" \n\n", "empty"),
        ("junk.csv", bytes(range(256)), "no known format"),
        ("junk.gz", b"not gzip", "named .gz but not gzip"),
        ("cut.csv.gz", gzip.compress(TIRESIAS, mtime=0)[:-12], "damaged gzip"),
        ("cut.parquet", b"PAR1 and no more", "damaged Parquet"),
        ("head.csv", TIRESIAS.split(b"\n")[0], "no rows"),
        ("latin.csv", TIRESIAS.replace(b"vgg11", b"caf\xe9"), "row 3: not UTF-8"),
        ("zero.csv", TIRESIAS.replace(b"vgg11", b"\x00"), "row 3: not a text file"),
        ("short.csv", TIRESIAS + b"2,1\n", "row 4: 2 cells in the row; expected 7"),
        ("long.csv", TIRESIAS + b"2,1,2,3,4,5,6,7\n", "row 4: 8 cells in the row; expected 7"),
        ("quote.csv", TIRESIAS + b'2,"1,2,3,4,5,6\n', "row 4: a quote"),
        ("twice.csv", TIRESIAS + b"1,1,40,1,a,1,1\n", "row 4, column 'job_id': the id is there"),
        ("minus.csv", TIRESIAS + b"2,-1,40,1,a,1,1\n", "row 4, column 'num_gpu': too small"),
        ("half.csv", TIRESIAS + b"2,1.5,40,1,a,1,1\n", "row 4, column 'num_gpu': not a whole"),
        ("inf.csv", TIRESIAS + b"2,1,inf,1,a,1,1\n", "row 4, column 'submit_time': not a number"),
        ("huge.csv", TIRESIAS + b"2,1,1e300,1,a,1,1\n", "row 4, column 'submit_time': too large"),
    ],
)
def test_bad_files_say_where(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = put(tmp_path, name, data)
    with pytest.raises(DataError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="no known format"):
        load(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load("x" * 5_000)
    with pytest.raises(DataError, match="is a directory"):
        load(tmp_path, format="tiresias")


def test_unknown_names_answer_with_the_nearest(tmp_path: Path) -> None:
    path = put(tmp_path, "jobs.csv", TIRESIAS)
    with pytest.raises(UsageError, match="did you mean 'tiresias'"):
        load(path, format="tiresius")
    with pytest.raises(UsageError, match="format tiresias: no option 'since'; it has no options"):
        load(path, options={"since": "1"})
    with pytest.raises(UsageError, match="a column map is for the format 'table'"):
        load(path, format="tiresias", columns=MAP)
    put(tmp_path, "any.csv", ANY.replace(b";", b","))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "any.csv")
    for name in FORMATS:
        assert name in str(caught.value)
    assert "--column submit_s=NAME" in str(caught.value)
    assert "when, gpus, ran, who, note" in str(caught.value)


def test_every_format_has_a_module_and_a_page(repo: Path) -> None:
    for name, entry in FORMATS.items():
        module = entry.load()
        assert module.OPTIONS is not None, name
        assert callable(module.sniff), name
        assert (repo / entry.page).is_file(), entry.page
        page = (repo / entry.page).read_text(encoding="utf-8")
        for option in module.OPTIONS:
            assert f"`{option.name}`" in page, f"{entry.page} lacks the option {option.name}"


def test_column_map(tmp_path: Path) -> None:
    path = put(tmp_path, "any.csv", ANY)
    workload = load(path, columns={**MAP, "gpu_type": "=v100"}, options={"delimiter": "semicolon"})
    table = workload.table
    assert workload.source.format == "table"
    assert table["submit_s"].tolist() == [0.0, 2.5]
    assert table["duration_s"].isna().tolist() == [False, True]
    assert table["gpu_type"].tolist() == ["v100", "v100"]
    assert table["user"].tolist() == ["ann", "bob"]
    assert table["job_id"].tolist() == ["job-000000", "job-000001"]
    assert workload.source.origin is None
    assert "gpu_type==v100" in workload.source.notes[0]


def test_column_map_of_dates_and_ends(tmp_path: Path) -> None:
    data = (
        b"in,out,since,n,ended\n"
        b"2024-03-01T00:00:10Z,2024-03-01T01:00:00Z,2024-03-01T00:30:00Z,4,Completed\n"
        b"2024-03-01T00:00:00Z,,2024-03-01T00:30:00Z,1,\n"
        b",,,1,\n"
        b"2024-03-01T00:00:20Z,2024-03-01T00:10:00Z,2024-03-01T00:30:00Z,1,failed\n"
    )
    columns = {"submit_s": "in", "start_s": "since", "end_s": "out", "num_gpus": "n"}
    workload = load(put(tmp_path, "dates.csv", data), columns={**columns, "status": "ended"})
    table = workload.table
    assert workload.source.origin == "2024-03-01T00:00:00+00:00"
    assert table["submit_s"].tolist() == [0, 10, 20]
    assert table["start_s"].tolist() == [1_800] * 3
    assert table["duration_s"].fillna(-1).tolist() == [-1, 1_800, -1]
    assert table["status"].tolist() == ["unknown", "completed", "failed"]
    assert [(r.rule, r.rows) for r in workload.source.repairs] == [
        ("no submit_s: set aside", 1),
        ("ends before it starts: run time unknown", 1),
    ]


def test_column_map_units_and_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "t": [1_500, 500],
            "h": [0.5, None],
            "g": [2, 1],
            "at": pd.to_datetime(["2024-01-02", "2024-01-01"]),
        }
    )
    frame.to_parquet(tmp_path / "any.parquet")
    columns = {"submit_s": "t", "duration_s": "h", "num_gpus": "g"}
    options = {"time_unit": "ms", "duration_unit": "h"}
    workload = load(tmp_path / "any.parquet", columns=columns, options=options)
    assert workload.table["submit_s"].tolist() == [0.0, 1.0]
    assert workload.table["duration_s"].tolist()[1] == 1_800.0
    dated = load(tmp_path / "any.parquet", columns={"submit_s": "at", "num_gpus": "g"})
    assert dated.table["submit_s"].tolist() == [0.0, 86_400.0]
    assert dated.source.origin == "2024-01-01T00:00:00"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"submit": "when", "num_gpus": "gpus"}, "did you mean 'submit_s'"),
        ({"submit_s": "when"}, "num_gpus is missing"),
        ({"submit_s": "when", "num_gpus": "=many"}, "num_gpus==many: not a number"),
        ({"submit_s": "when", "num_gpus": "gpus", "end_s": "ran"}, "end_s gives duration_s"),
    ],
)
def test_column_maps_that_cannot_be_meant(
    tmp_path: Path, columns: dict[str, str], words: str
) -> None:
    path = put(tmp_path, "any.csv", ANY)
    with pytest.raises(UsageError) as caught:
        load(path, columns=columns, options={"delimiter": "semicolon"})
    assert words in str(caught.value)


def test_column_map_names_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = put(tmp_path, "any.csv", ANY)
    columns = {"submit_s": "wen", "num_gpus": "gpus"}
    with pytest.raises(DataError, match=r"column 'wen'.*did you mean 'when'"):
        load(path, columns=columns, options={"delimiter": "semicolon"})
    with pytest.raises(UsageError, match="submit_s is missing"):
        load(path, format="table")


def workload() -> Workload:
    return Workload.from_jobs(
        [
            {"job_id": "a2", "submit_s": 0.1, "duration_s": 1 / 3, "num_gpus": 2, "vc": "x, y"},
            {"job_id": "a10", "submit_s": 0.1, "duration_s": None, "num_gpus": 0, "user": "NA"},
            {
                "job_id": "b", "submit_s": 7.0, "duration_s": 60.0, "num_gpus": 1, "gpu_milli": 250,
                "gpu_type": "t4|a10", "single_node": True, "status": "killed", "start_s": 9.25,
                "kind": "serving", "right_censored": True, "memory_mib": 4096,
            },
        ]
    )  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "parquet", "csv.gz"])
def test_canonical_round_trip(tmp_path: Path, ending: str) -> None:
    original = workload()
    path = tmp_path / f"canonical.{ending}"
    if ending == "parquet":
        original.table.to_parquet(path, index=False)
    else:
        original.table.to_csv(path, index=False)
    again = load(path)
    assert again.source.format == "canonical"
    assert again.digest() == original.digest()


def test_canonical_errors(tmp_path: Path) -> None:
    good = b"submit_s,num_gpus,single_node\n0,1,true\n"
    assert len(load(put(tmp_path, "c.csv", good))) == 1
    with pytest.raises(DataError, match="row 2, column 'single_node': not a truth value"):
        load(put(tmp_path, "c.csv", good.replace(b"true", b"maybe")))
    with pytest.raises(DataError, match="row 2, column 'num_gpus': missing value"):
        load(put(tmp_path, "c.csv", good.replace(b",1,", b",,")))
    with pytest.raises(DataError, match=r"not a canonical column.*did you mean 'submit_s'"):
        load(put(tmp_path, "c.csv", good.replace(b"submit_s", b"submits")), format="canonical")
    with pytest.raises(DataError, match="column 'status'"):
        load(put(tmp_path, "c.csv", b"submit_s,num_gpus,status\n0,1,done\n"))


def test_a_run_is_a_trace(tmp_path: Path) -> None:
    original, spec = workload(), ClusterSpec.parse("2x8:v100")
    zeros = {c.name: [0] * len(original) for c in JOB_OUTCOME_COLUMNS}
    record = {
        "status": "partial",
        "name": "monday",
        "workload": {"path": "jobs.csv", "origin": "2024-01-01T00:00:00", "zone": None},
        "cluster": {
            "nodes": [
                {"name": n.name, "gpu_type": n.gpu_type, "num_gpus": n.num_gpus} for n in spec.nodes
            ],
            "links": {},
        },
    }
    with RunWriter(tmp_path / "run", original, spec) as writer:
        writer.finish(record, zeros)
    again = load(tmp_path / "run")
    assert again.source.format == "run"
    assert again.digest() == original.digest()
    assert again.source.origin == "2024-01-01T00:00:00"
    assert "the run is partial" in again.source.notes
    assert load_cluster(tmp_path / "run").num_gpus == 16
    (tmp_path / "run" / "jobs.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "run")


def test_clusters(tmp_path: Path) -> None:
    assert load_cluster("4x8:a100").num_gpus == 32
    assert load_cluster(",".join(["1x8:a100"] * 500)).num_gpus == 4_000
    nodes = b"node,gpu_type,num_gpus,memory_mib,rack\nn1,t4,4,1024,r1\nn2,t4,8,,\n"
    spec = load_cluster(put(tmp_path, "nodes.csv", nodes))
    assert [(n.name, n.num_gpus, n.memory_mib, n.rack) for n in spec.nodes] == [
        ("n1", 4, 1024, "r1"),
        ("n2", 8, None, None),
    ]
    pd.DataFrame({"node": ["a"], "gpu_type": ["t4"], "num_gpus": [2]}).to_parquet(
        tmp_path / "nodes.parquet"
    )
    assert load_cluster(tmp_path / "nodes.parquet").num_gpus == 2
    with pytest.raises(DataError, match=r"row 3, column 'node'.*there twice"):
        load_cluster(put(tmp_path, "nodes.csv", nodes.replace(b"n2", b"n1")))
    with pytest.raises(DataError, match="not an inventory"):
        load_cluster(put(tmp_path, "jobs.csv", TIRESIAS))
    with pytest.raises(DataError, match="no such file"):
        load_cluster("absent.csv")
    with pytest.raises(UsageError, match="NODESxGPUS"):
        load_cluster("64*8")
