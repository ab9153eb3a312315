"""Quota by virtual cluster: hand-drawn cases, and the promise that nobody exceeds his quota."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Driver, Policy, StarvationError, make_policy
from policies.inter.quota import largest_remainder
from tests.memorylog import MemoryLog, drive
from traces import UsageError, Workload

Row = tuple[int, int, int, str | None]  # submit, duration, GPUs, virtual cluster


def workload(rows: list[Row], gpu_types: list[str | None] | None = None) -> Workload:
    return Workload.from_jobs(
        [
            {
                "job_id": f"{i:03d}",
                "submit_s": s,
                "duration_s": d,
                "num_gpus": g,
                "vc": vc,
                "gpu_type": gpu_types[i] if gpu_types else None,
            }
            for i, (s, d, g, vc) in enumerate(rows)
        ]
    )


def run(policy: str | Policy, rows: list[Row], cluster: str = "1x4") -> tuple[Driver, MemoryLog]:
    return drive(workload(rows), cluster, policy)


def starts(policy: str | Policy, rows: list[Row], cluster: str = "1x4") -> list[float]:
    return list(run(policy, rows, cluster)[0].outcomes.start_s)


# GPU 4 | b b b b b . . . . .      Two virtual clusters of two GPUs each. a's second job waits for
#     3 | b b b b b . . . . .      a's first, though b's half is idle from 5 s on.
#     2 | 0 0 0 0 0 0 0 0 0 0 1
#     1 | 0 0 0 0 0 0 0 0 0 0 1
ROWS: list[Row] = [(0, 10, 2, "a"), (0, 4, 2, "a"), (0, 5, 2, "b")]


def test_idle_quota_is_not_lent_unless_said() -> None:
    assert starts("quota:shares=a=1;b=1", ROWS) == [0, 10, 0]
    assert starts("quota:shares=a=1;b=1,borrow=true", ROWS) == [0, 5, 0]
    assert starts("quota:shares=equal", ROWS) == [0, 10, 0]


# a borrows b's half at 0; b comes at 3 and wants it back.
#     4 | 1 1 1 2 2 2 1 1        the borrower of a started last is preempted, and goes on at 6
#     2 | 0 0 0 0 0 0 0 0 0 0
LENT: list[Row] = [(0, 10, 2, "a"), (0, 5, 2, "a"), (3, 3, 2, "b")]


def test_borrowers_are_called_in() -> None:
    driver, _ = run("quota:shares=a=1;b=1,borrow=true", LENT)
    assert list(driver.outcomes.start_s) == [0, 0, 3]
    assert list(driver.outcomes.finish_s) == [10, 8, 6]
    assert list(driver.outcomes.preemptions) == [0, 1, 0]


def test_or_the_owner_waits() -> None:
    driver, _ = run("quota:shares=a=1;b=1,borrow=true,reclaim=false", LENT)
    assert list(driver.outcomes.start_s) == [0, 0, 5]
    assert list(driver.outcomes.preemptions) == [0, 0, 0]


def test_a_borrower_is_not_stopped_for_a_gang_that_cannot_start() -> None:
    # b's quota is 2; a gang of 3 could never run inside it, and must not stop anybody either.
    rows: list[Row] = [(0, 10, 2, "a"), (0, 5, 2, "a"), (3, 3, 3, "b")]
    driver, _ = run("quota:shares=a=1;b=1,borrow=true", rows)
    assert list(driver.outcomes.preemptions) == [0, 0, 0]
    assert driver.outcomes.start_s[2] == 10


def test_the_inner_policy_and_its_parameters() -> None:
    policy = make_policy("quota:inner=tiresias,inner.knob=2,inner.by=time,shares=a=3;b=1")
    assert policy.params()["inner"] == "tiresias:knob=2,by=time"
    assert policy.remembers
    rows: list[Row] = [(0, 10, 2, "a"), (0, 3, 2, "a"), (0, 9, 2, "b")]
    assert starts("quota:inner=srtf,shares=a=1;b=1", rows) == [3, 0, 0]
    # EASY inside: the head of a (2 GPUs) is reserved at 10 in a's half; a short job passes.
    rows = [(0, 10, 1, "a"), (0, 5, 2, "a"), (0, 11, 1, "a"), (0, 9, 1, "a"), (0, 20, 2, "b")]
    assert starts("quota:inner=easy,shares=a=1;b=1", rows) == [0, 10, 15, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "shares=a",
        "shares=a=-1",
        "shares=a=1;a=2",
        "shares=a=0",
        "inner=quota",
        "inner=fifo,inner.nothing=1",
        "inner=nobody",
        "borrow=maybe",
    ],
)
def test_parameters_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        make_policy(f"quota:{text}")


def test_a_virtual_cluster_without_a_share_is_named() -> None:
    with pytest.raises(UsageError, match=r"job 002 is of virtual cluster 'b'"):
        starts("quota:shares=a=1", ROWS)
    assert starts("quota:shares=a=1,borrow=true", ROWS) == [0, 0, 4]


def test_a_gang_larger_than_its_quota_is_told_why() -> None:
    with pytest.raises(StarvationError, match="quota of 2"):
        starts("quota:shares=a=1;b=1", [(0, 5, 3, "a")])


@given(
    total=st.integers(0, 100),
    weights=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1),
)
def test_largest_remainder_adds_up_and_is_off_by_less_than_one(
    total: int, weights: dict[str, float]
) -> None:
    found = largest_remainder(total, weights)
    assert sum(found.values()) == total
    for vc, weight in weights.items():
        assert abs(found[vc] - total * weight / sum(weights.values())) < 1


RANDOM = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(1, 15), st.integers(1, 3), st.sampled_from(["a", "b", None])
    ),
    min_size=1,
    max_size=25,
).map(lambda rows: sorted(rows, key=lambda r: r[:3]))
INNER = st.sampled_from(
    ["fifo", "best-effort", "easy", "conservative", "sjf", "srtf", "las:quantum_gpu_s=5",
     "tiresias:thresholds=4;9", "gittins:levels=3;9,min_history=2"]
)  # fmt: skip


def peaks(rows: list[Row], log: MemoryLog) -> dict[str, int]:
    """Most GPUs each virtual cluster held at once."""
    changes: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for rank, allocation, start_s, _, end_s, _, _ in log.allocations:
        vc = rows[rank][3] or "-"
        changes[vc] += [(end_s, -allocation.num_gpus), (start_s, allocation.num_gpus)]
    found = {}
    for vc, steps in changes.items():
        held = most = 0
        for _, step in sorted(steps):
            held += step
            most = max(most, held)
        found[vc] = most
    return found


@settings(max_examples=60)
@given(rows=RANDOM, inner=INNER, placement=st.sampled_from(["count", "spread"]))
def test_nobody_exceeds_his_quota(rows: list[Row], inner: str, placement: str) -> None:
    name, _, params = inner.partition(":")
    text = f"quota:inner={name}," + "".join(f"inner.{p}," for p in params.split(",") if p)
    driver, log = drive(workload(rows), "2x5", text + "shares=a=4;b=3;-=3", placement)
    assert driver.counts.finished == len(rows)
    quota = {"a": 4, "b": 3, "-": 3}
    assert all(most <= quota[vc] for vc, most in peaks(rows, log).items())


@settings(max_examples=60)
@given(rows=RANDOM, inner=INNER, reclaim=st.booleans())
def test_borrowing_lets_everybody_finish(rows: list[Row], inner: str, reclaim: bool) -> None:
    name, _, params = inner.partition(":")
    text = f"quota:inner={name}," + "".join(f"inner.{p}," for p in params.split(",") if p)
    text += f"shares=a=2;b=1,borrow=true,reclaim={str(reclaim).lower()}"
    driver, _ = drive(workload(rows), "1x4", text)
    assert driver.counts.finished == len(rows)
    assert sum(row[1] * row[2] for row in rows) == pytest.approx(sum(driver.outcomes.service_gpu_s))


# Two gangs, each larger than its half: neither may wait for what the other could not use.
#     gpu 3 | a a a b b
#     gpu 2 | a a a b b
#     gpu 1 | a a a b b
#     gpu 0 | . . . . .
def test_gangs_larger_than_their_quotas_borrow_in_turn() -> None:
    rows: list[Row] = [(0, 3, 3, "a"), (0, 2, 3, "b")]
    assert starts("quota:shares=a=1;b=1,borrow=true", rows) == [0, 3]
    # Smaller jobs behind them that their quota could hold, but whose turn it is not, block nobody.
    rows += [(0, 1, 2, "a"), (0, 1, 2, "b")]
    done, _ = run("quota:shares=a=1;b=1,borrow=true", rows)
    assert done.complete
    with pytest.raises(StarvationError):
        run("quota:shares=a=1;b=1", rows)


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(1, 9),
            st.integers(1, 6),
            st.sampled_from(["a", "b", "c"]),
        ),
        min_size=1,
        max_size=8,
    ),
    inner=st.sampled_from(["fifo", "best-effort", "easy:estimates=true", "srtf", "tiresias"]),
)
@settings(max_examples=150)
def test_who_may_borrow_never_starves(rows: list[Row], inner: str) -> None:
    inner, _, parameters = inner.partition(":")
    parameters = "".join(f",inner.{p}" for p in parameters.split(",") if p)
    done, _ = run(f"quota:inner={inner}{parameters},borrow=true", rows, "2x3")
    assert done.complete
