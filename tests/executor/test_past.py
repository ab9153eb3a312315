"""What a journal says of an execution that ended: nothing is lost, and what was open is closed."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from executor.journal import FORMAT, Journal, Left, folder_of
from executor.past import Past, joined
from executor.resuming import past_of
from policies.books import Outcomes
from tests.memorylog import MemoryLog
from traces import DataError, Workload
from traces.runlog import END_REASONS, EVENT_CODE, OUTCOMES

MAP = [[[0, 0]], [2]]


def workload() -> Workload:
    names = ("a", "b", "c", "d")
    return Workload.from_jobs(
        [
            {
                "job_id": name,
                "submit_s": float(i),
                "duration_s": 10.0,
                "num_gpus": 1,
                "num_workers": 2,
                "max_gpus": 2,
                "model": "dense:width=16",
                "batch_size": 4,
                "total_steps": 100,
            }
            for i, name in enumerate(names)
        ]
    )


def event(time_s: float, kind: Any, rank: int, detail: str | None = None) -> dict[str, Any]:
    line: dict[str, Any] = {"time_s": time_s, "event": [time_s, EVENT_CODE[kind], rank, detail]}
    if kind in {"start", "resize", "migrate"}:
        line["stay"] = [[[0, 1]], 1000, MAP]
    return line


def stay(rank: int, start_s: float, end_s: float, why: Any, rate: float = 1.0) -> dict[str, Any]:
    row = [rank, [[[0, 1]], 1000], start_s, start_s + 0.5, end_s, rate, END_REASONS.index(why), MAP]
    return {"time_s": end_s, "allocation": row}


def device(time_s: float, kind: Any, mask: int) -> dict[str, Any]:
    return {"time_s": time_s, "device": [time_s, EVENT_CODE[kind], 0, mask, None]}


LINES = [
    event(0.0, "submit", 0),
    event(0.0, "start", 0),
    event(1.0, "submit", 1),
    stay(0, 0.0, 4.0, "finish"),
    {"time_s": 4.0, "finished": "a", "step": 100, "loss": 0.5, "digest": "d"},
    event(4.0, "finish", 0),
    event(4.0, "start", 1),
    event(2.0, "submit", 2),
    device(5.0, "device_lent", 2),
    {
        "time_s": 6.0,
        "open": {"1": [4.0, 4.25, 2.0, 3.5]},
        "loans": [[0, 0, 1, 5.0, 5.5, 2]],
    },
    {"time_s": 6.5, "told": "rescaled", "job": "b"},
    {"time_s": 7.0, "reading": [7.0, [0, 1], 0.5, 12.0]},
]


def test_a_crash_closes_what_was_open() -> None:
    past = Past(LINES)
    past.close(lambda rank: 1.5)
    log = MemoryLog()
    past.write(log)
    assert past.time_s == 7.0
    assert past.over == {0}
    assert past.finished["a"].digest == "d"
    assert past.told["rescaled", "b"] == 1
    assert past.readings[0].place == (0, 1)
    assert log.events[-1] == (7.0, "fail", 1)
    (_, last) = log.allocations
    assert (last[0], *last[2:]) == (1, 4.0, 4.25, 7.0, 2.0, "fail")
    assert log.devices[-1][1:4] == ("device_given_back", 0, 2)
    assert log.loans == [(0, 0, 1, 5.0, 5.5, 7.0, "reclaimed")]
    found = past.outcomes(workload())
    assert [OUTCOMES[code] for code in found.status] == [
        "finished",
        "waiting",
        "waiting",
        "unsubmitted",
    ]
    assert found.finish_s[0] == found.jct_s[0] == 4.0
    assert isnan(found.finish_s[1])
    assert found.start_s[1] == 4.0
    assert list(found.queueing_s)[:3] == [0.0, 3.0, 5.0]
    assert isnan(found.queueing_s[3])  # not submitted
    assert list(found.service_gpu_s) == [4.0, 3.0, 0.0, 0.0]
    assert list(found.overhead_gpu_s) == [0.5, 0.25, 0.0, 0.0]
    assert list(found.failures) == [0, 1, 0, 0]
    assert list(found.lost_gpu_s) == [0.0, 2.0, 0.0, 0.0]  # 3.5 s were done, 1.5 s were saved
    assert past.counts() == {"finished": 1, "failures": 1, "submitted": 1}


def test_what_it_closed_stays_so_for_the_next_that_goes_on() -> None:
    past = Past(LINES)
    past.close(lambda rank: 1.5)
    again = Past(json.loads(json.dumps(past.lines)))
    again.close(lambda rank: 9.9)
    assert again.lines == past.lines
    found, wanted = again.outcomes(workload()).columns(), past.outcomes(workload()).columns()
    for name, column in found.items():
        assert list(column) == pytest.approx(list(wanted[name]), nan_ok=True), name


def test_a_stay_of_which_nothing_was_measured_made_no_progress_that_is_known() -> None:
    past = Past([line for line in LINES if "open" not in line])
    past.close(lambda rank: 0.0)
    (row,) = [x["allocation"] for x in past.lines if "allocation" in x and x["allocation"][0] == 1]
    assert row[2:6] == [4.0, 7.0, 7.0, 0.0]


def test_a_job_that_was_stopped_with_a_checkpoint_was_preempted() -> None:
    past = Past([*LINES[:7], stay(1, 4.0, 8.0, "open")])
    past.close(lambda rank: 0.0)
    log = MemoryLog()
    past.write(log)
    assert log.events[-1] == (8.0, "preempt", 1)
    assert log.allocations[-1][-1] == "preempt"
    assert past.outcomes(workload()).preemptions[1] == 1


def test_a_job_that_failed_for_good_is_not_begun_again() -> None:
    over = [stay(1, 4.0, 6.0, "fail"), event(6.0, "give_up", 1, "a bad disk")]
    past = Past([*LINES[:7], *over])
    assert past.over == {0, 1}
    assert past.failed == {1: "a bad disk"}
    found = past.outcomes(workload())
    assert OUTCOMES[found.status[1]] == "failed"
    assert isnan(found.finish_s[1])
    assert found.lost_gpu_s[1] == 1.5
    assert found.queueing_s[1] == 3.0


def test_what_came_since_is_added() -> None:
    past = Past(LINES)
    past.close(lambda rank: 1.5)
    since = Outcomes(3)
    since.start_s[0], since.finish_s[0], since.jct_s[0], since.status[0] = 9.0, 12.0, 11.0, 0
    since.queueing_s[0], since.service_gpu_s[0], since.resizes[0] = 2.0, 3.0, 1
    since.start_s[1], since.queueing_s[1] = 8.0, 1.0
    since.start_s[2], since.queueing_s[2] = 9.0, 2.0  # submitted after the crash
    whole = joined(past.outcomes(workload()), [1, 2, 3], since)
    assert (whole.start_s[1], whole.finish_s[1], whole.jct_s[1]) == (4.0, 12.0, 11.0)
    assert (whole.queueing_s[1], whole.service_gpu_s[1]) == (5.0, 6.0)
    assert (whole.resizes[1], whole.failures[1]) == (1, 1)
    assert (whole.start_s[2], whole.queueing_s[2]) == (8.0, 6.0)
    assert (whole.start_s[3], whole.queueing_s[3]) == (9.0, 2.0)
    assert whole.jct_s[0] == 4.0


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = Journal(folder_of(run), {"resumptions": []}, workload())
    for line in LINES:
        journal.keep(line["time_s"], {k: v for k, v in line.items() if k != "time_s"})
    journal.close()
    with (folder_of(run) / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time_s": 9.0, "eve')  # the crash cut it short
    left = Left(run)
    assert left.past.time_s == 7.0
    whole = left.workload()
    assert whole.table["job_id"].tolist() == ["a", "b", "c", "d"]
    past, rest, ranks = past_of(left, whole)
    assert rest.table["job_id"].tolist() == ["b", "c", "d"]
    assert rest.table["submit_s"].tolist() == [1.0, 2.0, 3.0]
    assert list(ranks) == [1, 2, 3]
    (gap,) = left.resumptions()
    assert gap["at_s"] == 7.0
    # It goes on, and is left once more: everything is there still.
    Journal(folder_of(tmp_path / "next"), {"resumptions": [gap]}, whole, left).close()
    assert not folder_of(run).exists()
    again = Left(tmp_path / "next")
    assert again.past.lines == past.lines
    assert len(again.resumptions()) == 2


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Journal(folder_of(run), {}, workload()).close()
    path = folder_of(run) / "execution.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"journal": {FORMAT}', '"journal": 1'), encoding="utf-8")
    with pytest.raises(DataError, match=r"another version.*found 1"):
        Left(run)
