"""The timeline: valid trace-event JSON, and nothing in it that Perfetto rejects."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reports import timeline
from reports.timeline import write_timeline
from tests.reports.runs import Hold, MakeRun
from traces import RunLog, UsageError

Event = dict[str, Any]


def _events(path: Path) -> list[Event]:
    data = path.read_bytes()
    document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    events: list[Event] = document["traceEvents"]
    return events


def _check_trace(events: list[Event]) -> None:
    """Slices of one thread do not overlap, asynchronous events pair up, times are sane."""
    rows: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    begun: Counter[str] = Counter()
    for event in events:
        assert event["ph"] in "XbeCMi"
        assert {"name", "pid", "tid"} <= set(event)
        if event["ph"] != "M":
            assert isinstance(event["ts"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] in "be":
            begun[event["id"]] += 1 if event["ph"] == "b" else -1
    for slices in rows.values():
        slices.sort()
        for (_, end), (start, _) in pairwise(slices):
            assert start >= end
    assert set(begun.values()) <= {0}


@pytest.mark.parametrize("name", ["timeline.json", "timeline.json.gz"])
def test_timeline_of_a_random_run(
    random_run: Callable[..., RunLog], tmp_path: Path, name: str
) -> None:
    run = random_run(3, 150)
    count = write_timeline(run, tmp_path / name)
    events = _events(tmp_path / name)
    assert len(events) == count
    _check_trace(events)
    table = run.table("allocations")
    whole = table["gpu_milli"] == 1000
    assert sum(e["ph"] == "X" for e in events) == table["gpus"][whole].map(len).sum()
    assert sum(e["ph"] == "b" for e in events) == table["gpus"][~whole].map(len).sum()
    named = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named == {"cluster", "v100-0000 (v100)", "v100-0001 (v100)", "t4-0002 (t4)"}


def test_what_a_slice_says(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        jobs=[{"job_id": "a", "submit_s": 1.0, "duration_s": 7.0, "num_gpus": 2}],
        holds=[Hold(job="a", node=0, gpus=[1, 3], start=2, begin=2.5, end=9.5)],
        devices=[(9.75, "device_lost", 0, [2])],
    )
    write_timeline(run, tmp_path / "t.json")
    events = _events(tmp_path / "t.json")
    slices = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in slices] == [
        ("a", 2_000_000, 7_500_000, 2),
        ("a", 2_000_000, 7_500_000, 4),
    ]
    assert slices[0]["args"]["progress from (s)"] == 2.5
    assert slices[0]["args"]["ends by"] == "finish"
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert (threads[2], threads[4]) == ("GPU 1", "GPU 3")
    held = [(e["ts"], e["args"]["value"]) for e in events if e["name"] == "GPUs held, v100"]
    assert held == [(1_000_000, 0), (2_000_000, 2), (9_500_000, 0)]
    waiting = [(e["ts"], e["args"]["value"]) for e in events if e["name"] == "waiting jobs"]
    assert waiting == [(1_000_000, 1), (2_000_000, 0)]
    assert [e["tid"] for e in events if e["name"] == "device lost"] == [3]


def test_a_window_cuts_what_reaches_over_it(
    random_run: Callable[..., RunLog], tmp_path: Path
) -> None:
    run = random_run(5, 80)
    write_timeline(run, tmp_path / "w.json", start_s=500.0, end_s=900.0)
    events = _events(tmp_path / "w.json")
    _check_trace(events)
    timed = [e for e in events if e["ph"] != "M"]
    assert timed
    for event in timed:
        assert event["ts"] >= 500_000_000
        assert event["ts"] + event.get("dur", 0) <= 900_000_000


def test_counters_with_too_many_points_keep_their_peak(
    random_run: Callable[..., RunLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = random_run(6, 120)
    write_timeline(run, tmp_path / "exact.json")
    monkeypatch.setattr(timeline, "COUNTER_POINTS", 10)
    write_timeline(run, tmp_path / "binned.json")

    def peak(name: str) -> tuple[int, float]:
        found = [e for e in _events(tmp_path / name) if e["name"] == "waiting jobs"]
        return len(found), max(e["args"]["value"] for e in found)

    assert peak("binned.json")[0] == 10
    assert peak("binned.json")[1] == peak("exact.json")[1]


def test_equal_runs_give_equal_bytes(random_run: Callable[..., RunLog], tmp_path: Path) -> None:
    for i in range(2):
        write_timeline(random_run(1, 30), tmp_path / f"{i}.json.gz")
    assert (tmp_path / "0.json.gz").read_bytes() == (tmp_path / "1.json.gz").read_bytes()


def test_an_empty_run_and_wrong_windows(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(jobs=[])
    write_timeline(run, tmp_path / "e.json")
    _check_trace(_events(tmp_path / "e.json"))
    with pytest.raises(UsageError, match="window is empty"):
        write_timeline(run, tmp_path / "e.json", start_s=5, end_s=5)
    with pytest.raises(UsageError, match="--from nan"):
        write_timeline(run, tmp_path / "e.json", start_s=float("nan"))
    with pytest.raises(UsageError, match="is a directory"):
        write_timeline(run, tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        write_timeline(run, tmp_path / "no" / "such" / "t.json")
    assert not list(tmp_path.glob(".*tmp"))
