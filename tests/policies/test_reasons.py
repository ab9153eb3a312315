"""Why a job waits: every code by a case of its own, and a reason for everybody always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies import Policy, Reason, make_policy
from policies.plan import Draft, Plan
from policies.view import ClusterView
from tests.memorylog import drive
from traces import ClusterSpec, Workload
from traces.cluster import Node


def explained(
    rows: list[dict[str, Any]],
    job: str,
    at_s: float,
    policy: Policy | str = "fifo",
    cluster: ClusterSpec | str = "1x4:v100",
    placement: str = "count",
) -> Reason:
    table = [{"submit_s": 0.0, "duration_s": 10.0, "num_gpus": 1} | row for row in rows]
    workload = Workload.from_jobs(table)
    driver, _ = drive(workload, cluster, policy, placement, until_s=at_s)
    view = driver.view
    view.now = at_s
    (state,) = [j for j in [*view.waiting, *view.running] if j.job_id == job]
    return driver.policy.explain(view, state)


def jobs(*rows: tuple[float, float, int]) -> list[dict[str, Any]]:
    return [
        {"job_id": chr(97 + i), "submit_s": s, "duration_s": d, "num_gpus": g}
        for i, (s, d, g) in enumerate(rows)
    ]


def test_running() -> None:
    reason = explained(jobs((2, 10, 4)), "a", 5.0)
    assert (reason.code, reason.text) == ("running", "it runs on v100-0000 since 2 s")


def test_not_enough_and_when_there_will_be() -> None:
    rows = jobs((0, 10, 2), (0, 25, 1), (1, 5, 4))
    known = explained(rows, "c", 5.0, "easy")
    assert known.code == "not_enough_gpus"
    assert known.text == "needs 4 free v100; 1 free, 3 more at 25 s at the earliest"
    assert known.facts["earliest_s"] == 25
    unknown = explained(rows, "c", 5.0, "fifo")
    assert unknown.text.startswith("needs 4 free v100; 1 free; when more will be is unknown")


def test_behind_the_head_of_the_line() -> None:
    rows = jobs((0, 10, 2), (0, 5, 4), (1, 5, 2), (2, 5, 1))
    reason = explained(rows, "d", 5.0)
    assert reason.code == "behind"
    assert reason.text == (
        "behind 2 jobs (submitted earlier); first in line is b, which needs 4 GPU"
    )
    assert reason.facts["ahead"] == 2


def test_behind_jobs_with_less_attained_service() -> None:
    rows = jobs((0, 30, 4), (5, 30, 4), (6, 30, 4))
    reason = explained(rows, "a", 8.0, "las:quantum_gpu_s=8")
    assert reason.code in {"not_enough_gpus", "behind"}
    assert "less attained service" in reason.text


def test_running_jobs_that_go_first_end_first() -> None:
    rows = jobs((0, 5, 3), (1, 20, 4))
    reason = explained(rows, "b", 2.0, "srtf")
    assert reason.code == "not_enough_gpus"
    assert reason.facts["earliest_s"] == 5


def test_fragmented() -> None:
    rows = [
        {"job_id": "a", "num_gpus": 3},
        {"job_id": "b", "num_gpus": 3},
        {"job_id": "c", "num_gpus": 2, "single_node": True},
    ]
    reason = explained(rows, "c", 1.0, "fifo", "2x4:v100", "best-fit")
    assert reason.code == "fragmented"
    assert reason.facts == {
        "needs": 2, "free": 2, "nodes": 2, "most_on_one_node": 1, "ahead": 0,
    }  # fmt: skip


def test_host_limits() -> None:
    spec = ClusterSpec((Node(name="n", gpu_type="t", num_gpus=4, cpu_milli=4000, memory_mib=100),))
    rows = [{"job_id": "a", "cpu_milli": 3000}, {"job_id": "b", "cpu_milli": 2000}]
    reason = explained(rows, "b", 1.0, "fifo", spec, "best-fit")
    assert reason.code == "host"
    assert reason.facts["cpu_milli"] == 2000


def test_reserved_for_the_head() -> None:
    rows = jobs((0, 10, 2), (0, 5, 4), (1, 50, 1))
    reason = explained(rows, "c", 2.0, "easy")
    assert reason.code == "reserved"
    assert (reason.facts["for"], reason.facts["reserved_s"]) == ("b", 10)
    assert "would delay b (4 GPU), which has a reservation at 10 s" in reason.text
    reason = explained(rows, "c", 2.0, "conservative")
    assert reason.code == "reserved"
    assert reason.facts["own_s"] == 15
    assert explained(rows, "c", 2.0, "conservative:depth=1").facts["depth"] == 1


def test_quota() -> None:
    rows: list[dict[str, Any]] = [
        {"job_id": "a", "vc": "x", "num_gpus": 2},
        {"job_id": "b", "vc": "x"},
        {"job_id": "c", "vc": "y"},
        {"job_id": "d", "vc": "x", "num_gpus": 3},
    ]
    policy = "quota:shares=x=1;y=1,inner=best-effort"
    reason = explained(rows, "b", 1.0, policy)
    assert reason.code == "quota"
    assert reason.text == (
        "virtual cluster 'x' uses 2 of its quota of 2 v100; 1 more would exceed it"
    )
    assert explained(rows, "d", 1.0, policy).facts["never"]


class Rounds(Policy):
    """Best effort every 60 s."""

    name: ClassVar[str] = "rounds"

    @property
    def interval_s(self) -> float | None:
        return 60.0

    def plan(self, view: ClusterView) -> Plan:
        draft = view.draft()
        for job in view.waiting:
            draft.start(job)
        return draft


@dataclass(frozen=True, kw_only=True)
class Picky(Policy):
    """Never starts jobs of two GPUs."""

    name: ClassVar[str] = "picky"

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        for job in view.waiting:
            if job.request.num_gpus != 2:
                draft.start(job)
        return draft


def test_the_next_round_starts_it() -> None:
    reason = explained(jobs((5, 10, 1)), "a", 10.0, Rounds())
    assert reason.code == "round"
    assert reason.facts["next_s"] == 60


def test_a_policy_of_its_own_mind() -> None:
    reason = explained(jobs((0, 10, 2), (0, 10, 1)), "a", 1.0, Picky())
    assert reason.code == "policy"


ROWS = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(1, 15),
        st.integers(1, 4),
        st.sampled_from(["a", "b"]),
        st.sampled_from([None, "v", "w", "v|w"]),
    ),
    min_size=1,
    max_size=15,
)
KNOWN = {
    "starting", "not_enough_gpus", "fragmented", "behind", "reserved", "quota", "host",
}  # fmt: skip


@settings(max_examples=60)
@given(
    rows=ROWS,
    policy=st.sampled_from(
        ["fifo", "best-effort", "easy", "conservative", "sjf", "srtf", "srsf",
         "las:quantum_gpu_s=7", "tiresias:thresholds=6;15,knob=1",
         "gittins:levels=4;12,min_history=2",
         "quota:inner=easy", "quota:inner=srtf,borrow=true"]
    ),
    placement=st.sampled_from(["count", "consolidated", "spread"]),
    at_s=st.integers(0, 40),
)  # fmt: skip
@example(  # a borrower that is called in has a place in its quota on the other type
    [(0, 1, 1, "b", None)] * 2 + [(0, 2, 2, "b", None), (0, 2, 4, "b", None), (1, 1, 3, "a", None)],
    "quota:inner=srtf,borrow=true", "count", 1,
)  # fmt: skip
def test_every_waiting_job_of_every_policy_has_a_reason(
    rows: list[tuple[int, int, int, str, str | None]], policy: str, placement: str, at_s: int
) -> None:
    workload = Workload.from_jobs(
        [
            {"submit_s": s, "duration_s": d, "num_gpus": g, "vc": vc, "gpu_type": t}
            for s, d, g, vc, t in rows
        ]
    )
    driver, _ = drive(workload, "2x4:v,2x4:w", policy, placement, until_s=float(at_s))
    view = driver.view
    for job in view.waiting:
        reason = driver.policy.explain(view, job)
        assert reason.code in KNOWN
        assert reason.text
        # Nothing happened since the last decision, so it starts nobody it did not start then.
        assert reason.code != "starting"


def test_policies_say_what_their_names_leave_open() -> None:
    for name in ("fifo", "best-effort", "easy", "conservative", "gittins", "quota"):
        assert len(make_policy(name).says()) >= 3


@pytest.mark.parametrize("policy", ["fifo", "srtf"])
def test_no_gpus_of_that_type(policy: str) -> None:
    rows = [{"job_id": "a", "gpu_type": "h100"}]
    with pytest.raises(ValueError, match="needs 1 h100; this cluster has none"):
        explained(rows, "a", 1.0, policy)
