"""The first thousand jobs of Philly never queue on 512 GPUs: the mean JCT is that of the trace.

The figure (whole-second durations, origin at the first submission) is the mean of the durations
themselves. A policy that is off by a second somewhere, keeps a GPU idle while somebody waits, or
charges what was not asked for, shows here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.registry import POLICIES
from simulator import simulate
from traces import Workload, load

MEAN_JCT_S = 103_997.614
# Names whose defaults read what this trace lacks (user estimates), or leave GPUs idle on purpose.
PARAMETERS = {
    "easy": "easy:estimates=true",
    "conservative": "conservative:estimates=true",
    "quota": "quota:borrow=true",
}

# Those that let a job wait beside idle GPUs, as their names promise.
LETS_WAIT = {"yarn-cs": "one job at a time", "optimus": "decides every 600 s"}


@pytest.fixture(scope="module")
def first_thousand(shared_data: Path) -> Workload:
    return load(shared_data / "philly" / "jobs.csv.gz").head(1000)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in LETS_WAIT])
def test_mean_jct(first_thousand: Workload, name: str) -> None:
    run = simulate(first_thousand, "64x8:v100", policy=PARAMETERS.get(name, name))
    jct_s = run.jobs["jct_s"]
    assert run.complete
    assert round(float(jct_s.mean()), 3) == MEAN_JCT_S
    assert (run.jobs["queueing_s"] == 0).all()
    assert (run.jobs["preemptions"] == 0).all()
    # To the second, job by job, and exactly so.
    assert (jct_s == first_thousand.table["duration_s"]).all()
    assert float(jct_s.sum()) == 103_997_614.0


@pytest.mark.parametrize("name", LETS_WAIT)
def test_the_others_let_jobs_wait(first_thousand: Workload, name: str) -> None:
    run = simulate(first_thousand.head(50), "64x8:v100", policy=name)
    assert (run.jobs["queueing_s"] > 0).any()


@pytest.mark.parametrize("placement", ["count", "consolidated", "best-fit", "spread"])
def test_placement_has_no_part_in_it(first_thousand: Workload, placement: str) -> None:
    run = simulate(first_thousand, "64x8:v100", policy="best-effort", placement=placement)
    assert round(float(run.jobs["jct_s"].mean()), 3) == MEAN_JCT_S
