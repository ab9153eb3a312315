"""The pages of ``docs/policies``: one for all that is registered, true to the classes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from policies.registry import (
    INTRAS,
    PLACEMENTS,
    POLICIES,
    intra_class,
    placement_class,
    policy_class,
)
from simulator import simulate
from tests.memorylog import drive
from traces import Workload, load

PAGES = Path(__file__).resolve().parents[2] / "docs" / "policies"
_ROW = re.compile(r"^\| \[`([^`]+)`\]\(([^)]+)\) \|(.+)\|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, list[str]]]:
    """The index: name to (page, the other cells)."""
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    return {
        name: (page, [cell.strip() for cell in rest.split(" | ")])
        for name, page, rest in _ROW.findall(text)
    }


def workload(*jobs: tuple[float, float, int]) -> Workload:
    return Workload.from_jobs(
        [
            {"job_id": f"{i}", "submit_s": s, "duration_s": d, "num_gpus": g}
            for i, (s, d, g) in enumerate(jobs)
        ]
    )


def test_the_index_names_all_in_order() -> None:
    assert list(rows()) == [*POLICIES, *PLACEMENTS, *INTRAS]


def class_of(name: str) -> type:
    if name in INTRAS:
        return intra_class(name)
    return policy_class(name) if name in POLICIES else placement_class(name)


def page_of(name: str) -> str:
    if name in INTRAS:
        return f"intra-{name}.md"
    return f"{name}.md" if name in POLICIES else f"placement-{name}.md"


@pytest.mark.parametrize("name", [*POLICIES, *PLACEMENTS, *INTRAS])
def test_every_one_has_a_page_that_names_its_parameters(name: str) -> None:
    page, _ = rows()[name]
    assert page == page_of(name)
    text = (PAGES / page).read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    cls = class_of(name)
    missing = [
        field.name
        for field in fields(cls)
        if field.init
        and not field.name.startswith("_")
        and not re.search(rf"`{re.escape(field.name)}\b", text)
    ]
    assert missing == []


@pytest.mark.parametrize("name", [*POLICIES, *PLACEMENTS, *INTRAS])
def test_every_one_says_what_its_name_leaves_open(name: str) -> None:
    made = class_of(name)()
    assert made.name == name
    assert made.says()
    assert all(sentence.endswith(".") for sentence in made.says())


@pytest.mark.parametrize("name", POLICIES)
def test_the_index_tells_the_truth(name: str) -> None:
    _, (_, preempts, blocks, estimates) = rows()[name]
    # A long job holds everything when a short one arrives.
    driver, _ = drive(workload((0, 20_000, 4), (10_000, 10, 4)), "1x4", name)
    assert preempts.startswith("yes" if driver.counts.preemptions else "no")
    # The second job needs more than is free; the third would fit, and end before that changes.
    driver, _ = drive(workload((0, 10, 2), (1, 20, 4), (2, 1, 1)), "1x4", name)
    assert blocks.startswith("yes" if driver.outcomes.start_s[2] > 2 else "no")
    assert estimates.startswith("yes" if policy_class(name).needs_estimates else "no")


def test_what_a_name_leaves_open_is_worth_so_much(shared_data: Path) -> None:
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| `([a-z-]+)` \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [row[0] for row in cells] == ["fifo", "best-effort"]
    jobs = load(shared_data / "philly" / "jobs.csv.gz").head(5000)
    for policy, *means in cells:
        for placement, mean in zip(("count", "consolidated"), means, strict=True):
            run = simulate(jobs, "64x8:v100", policy=policy, placement=placement)
            assert f"{run.jobs['jct_s'].mean():,.0f}" == mean
