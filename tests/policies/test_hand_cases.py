"""The cases computed by hand on the pages of ``docs/policies``, held against the engine.

A page states a case as a line ``Case: `POLICY` on `CLUSTER`.``, a table with each job's start, end
and preemptions, and a drawing: a row per GPU, a column per second. Both were worked out on paper;
here the table is compared with the run's outcomes and the drawing, GPU by GPU, with its log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import pytest

from tests.memorylog import MemoryLog, drive
from traces import ClusterSpec, Workload
from traces.cluster import gpus_of

PAGES = Path(__file__).resolve().parents[2] / "docs" / "policies"
NAMES = (
    "fifo",
    "best-effort",
    "sjf",
    "srtf",
    "srsf",
    "las",
    "tiresias",
    "easy",
    "conservative",
    "gittins",
    "quota",
    "yarn-cs",
    "easyscale",
    "afs",
    "optimus",
    "static-share",
)
_CASE = re.compile(r"^Case: `([^`]+)` on `([^`]+)`\.$", re.MULTILINE)
_DRAWN = re.compile(r"^gpu (\d+)\s+(\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of one page. ``rows``: the table. ``drawn``: GPU index to its row of the drawing."""

    page: str
    policy: str
    cluster: str
    rows: list[dict[str, str]]
    drawn: dict[int, str]

    def __str__(self) -> str:
        return self.policy


def cases_of(page: str) -> list[Case]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    marks = list(_CASE.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    found = []
    for mark, end in zip(marks, ends, strict=True):
        part = text[mark.end() : end]
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in part.splitlines()
            if line.startswith("|")
        ]
        rows = [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]
        drawn = {int(gpu): row for gpu, row in _DRAWN.findall(part)}
        found.append(Case(page=page, policy=mark[1], cluster=mark[2], rows=rows, drawn=drawn))
    return found


CASES = [case for page in NAMES for case in cases_of(page)]


def workload(case: Case) -> Workload:
    jobs = []
    for row in case.rows:
        job: dict[str, object] = {
            "job_id": row["job"],
            "submit_s": float(row["submit_s"]),
            "duration_s": float(row["duration_s"]),
            "num_gpus": int(row["GPUs"]),
        }
        if "estimate_s" in row:
            job["estimate_s"] = float(row["estimate_s"])
        if "vc" in row:
            job["vc"] = row["vc"]
        if "workers" in row:
            job["num_workers"] = job["max_gpus"] = int(row["workers"])
        jobs.append(job)
    return Workload.from_jobs(jobs)


def drawing(log: MemoryLog, jobs: list[str], cluster: str) -> dict[int, str]:
    """Draw whole seconds, GPU by GPU; nodes follow one another."""
    sizes = [node.num_gpus for node in ClusterSpec.parse(cluster).nodes]
    first = list(accumulate(sizes, initial=0))
    last = int(max(end for *_, end, _, _ in log.allocations))
    rows = [["."] * last for _ in range(first[-1])]
    for rank, allocation, start, _, end, _, _ in log.allocations:
        assert start == int(start)
        assert end == int(end), "a case to be drawn changes at whole seconds"
        for node, mask in allocation.shares:
            for gpu in gpus_of(mask):
                for second in range(int(start), int(end)):
                    assert rows[first[node] + gpu][second] == "."
                    rows[first[node] + gpu][second] = jobs[rank]
    return {gpu: "".join(row) for gpu, row in enumerate(rows)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_does_what_the_page_says(case: Case) -> None:
    driver, log = drive(workload(case), case.cluster, case.policy)
    found = driver.outcomes
    jobs = list(driver.workload.table["job_id"])
    happened = {
        job: (found.start_s[i], found.finish_s[i], found.preemptions[i])
        for i, job in enumerate(jobs)
    }
    assert happened == {
        row["job"]: (float(row["start_s"]), float(row["finish_s"]), int(row["preemptions"]))
        for row in case.rows
    }
    assert drawing(log, jobs, case.cluster) == case.drawn


@pytest.mark.parametrize("page", NAMES)
def test_every_page_has_a_case(page: str) -> None:
    cases = cases_of(page)
    assert cases
    for case in cases:
        assert case.policy.partition(":")[0] == page
        assert case.drawn


def test_reordering_the_table_changes_nothing() -> None:
    for case in CASES:
        turned = Case(
            page=case.page,
            policy=case.policy,
            cluster=case.cluster,
            rows=case.rows[::-1],
            drawn=case.drawn,
        )
        test_the_engine_does_what_the_page_says(turned)


def test_a_mean_that_a_page_quotes() -> None:
    means = {}
    for page in ("fifo", "best-effort"):
        (case,) = islice(cases_of(page), 1)
        means[page] = sum(float(r["finish_s"]) - float(r["submit_s"]) for r in case.rows)
    assert means == {"fifo": 39.0, "best-effort": 26.0}


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        # One GPU of each type. a holds that of t when b, for t too, and c, for k, come together.
        #
        # second         012345678
        # t              aaaabb...      fifo: b is the head and waits for t until 4 s; c, which k
        # k              ....cc...      could take at once, waits behind it
        #
        # t              aaaabb...      best-effort: c passes
        # k              .cc......
        ("fifo", [0, 4, 4]),
        ("best-effort", [0, 4, 1]),
    ],
)
def test_one_line_for_all_gpu_types(policy: str, starts: list[float]) -> None:
    rows = [("a", 0, 4, "t"), ("b", 1, 2, "t"), ("c", 1, 2, "k")]
    jobs = [
        {"job_id": j, "submit_s": s, "duration_s": d, "num_gpus": 1, "gpu_type": t}
        for j, s, d, t in rows
    ]
    driver, _ = drive(Workload.from_jobs(jobs), "1x1:t,1x1:k", policy)
    assert list(driver.outcomes.start_s) == starts
