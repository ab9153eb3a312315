"""EASY and conservative backfill against hand-drawn cases and slow oracles."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Policy, make_policy
from policies.inter.backfill import Easy, reserve
from policies.inter.conservative import Conservative
from tests.memorylog import drive
from traces import UsageError, Workload

Row = tuple[int, int, int]  # submit, duration, GPUs


def workload(rows: list[Row], **columns: Sequence[object]) -> Workload:
    return Workload.from_jobs(
        [
            {
                "job_id": f"{i:03d}",
                "submit_s": s,
                "duration_s": d,
                "num_gpus": g,
                **{name: values[i] for name, values in columns.items()},
            }
            for i, (s, d, g) in enumerate(rows)
        ]
    )


def starts(
    policy: str | Policy,
    rows: list[Row],
    gpus: int = 4,
    placement: str = "count",
    cluster: str | None = None,
    **columns: Sequence[object],
) -> list[float]:
    driver, _ = drive(workload(rows, **columns), cluster or f"1x{gpus}", policy, placement)
    return list(driver.outcomes.start_s)


# GPUs
# 4 | . . . . . . . . . . 1 1 1 1 1
# 3 | 3 3 . . . . . . . . 1 1 1 1 1       0: 2 GPUs, 10 s     1: 4 GPUs, 5 s, the head
# 2 | 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1       2: 2 GPUs, 11 s: would delay job 1
# 1 | 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 2 ..  3: 1 GPU, 2 s: ends by the shadow time 10
CASE: list[Row] = [(0, 10, 2), (0, 5, 4), (0, 11, 2), (0, 2, 1)]


@pytest.mark.parametrize("policy", ["easy", "conservative"])
def test_a_short_job_passes_and_a_long_one_does_not(policy: str) -> None:
    assert starts(policy, CASE) == [0, 10, 15, 0]


def test_easy_lets_a_long_job_pass_on_the_spare_gpus() -> None:
    # The head needs 3 of 4 at 10: one GPU is spare for as long as anybody likes, but only one.
    rows: list[Row] = [(0, 10, 2), (0, 5, 3), (0, 50, 1), (0, 50, 1)]
    assert starts("easy", rows) == [0, 10, 0, 15]


def test_conservative_protects_the_second_in_line_and_easy_does_not() -> None:
    # Head (1) needs 3 GPUs at 10; 2 is next, all 4 at 15. Job 3 fits beside the head until 20:
    # EASY lets it pass and pushes 2 to 20, conservative does not.
    #      0         10   15        25
    # easy 0 0 ..... 1    3 ...     and 2 only at 20
    # cons 0 0 ..... 1    2 ....... 3
    rows: list[Row] = [(0, 10, 2), (0, 5, 3), (0, 10, 4), (0, 20, 1)]
    assert starts("easy", rows) == [0, 10, 20, 0]
    assert starts("conservative", rows) == [0, 10, 15, 25]


def test_an_overrun_job_ends_at_any_moment() -> None:
    # The user said 5 s for job 0, which runs 20 s. After 5 s the head's shadow time is "now", so
    # nobody passes any more, though at 4 s a job of 1 s still could.
    rows: list[Row] = [(0, 20, 3), (1, 5, 4), (4, 1, 1), (6, 1, 1)]
    assert starts("easy:estimates=user", rows, estimate_s=[5, 5, 1, 1]) == [0, 20, 4, 25]


def test_depth_is_how_many_are_looked_at() -> None:
    rows: list[Row] = [(0, 10, 3), (0, 5, 4), (0, 20, 1), (0, 2, 1)]
    assert starts("easy:depth=1", rows)[3] == 15
    assert starts("easy:depth=2", rows)[3] == 0
    assert starts("easy:depth=0", rows) == starts("fifo", rows)
    assert starts("conservative:depth=3", rows)[3] == 15
    assert starts("conservative:depth=4", rows)[3] == 0


@pytest.mark.parametrize("name", ["easy", "conservative"])
@pytest.mark.parametrize("params", ["estimates=none", "estimates=maybe", "depth=-1"])
def test_parameters_that_make_no_sense(name: str, params: str) -> None:
    with pytest.raises(UsageError):
        make_policy(f"{name}:{params}")


# Oracles: whole schedules by brute force over integer seconds, one GPU type, by count.


def easy_oracle(rows: list[Row], gpus: int) -> list[int]:
    started: dict[int, int] = {}
    now = 0
    while len(started) < len(rows):
        queue = [i for i, r in enumerate(rows) if i not in started and r[0] <= now]

        def used(at: int, extra: tuple[int, ...] = (), now: int = now) -> int:
            held = sum(rows[i][2] for i, s in started.items() if s <= at < s + rows[i][1])
            return held + sum(rows[i][2] for i in extra if now <= at < now + rows[i][1])

        while queue and used(now) + rows[queue[0]][2] <= gpus:
            started[queue.pop(0)] = now
        if queue:
            head, *rest = queue
            need = rows[head][2]
            shadow = now
            while used(shadow) + need > gpus:
                shadow += 1
            for k in rest:
                g = rows[k][2]
                if used(now) + g <= gpus and used(shadow, (k,)) + need <= gpus:
                    started[k] = now
        now += 1
    return [started[i] for i in range(len(rows))]


def conservative_oracle(rows: list[Row], gpus: int) -> list[int]:
    """With exact estimates each job starts at its first reservation, made on arrival."""
    horizon = max(r[0] for r in rows) + sum(r[1] for r in rows) + 1
    used = [0] * horizon
    found = []
    for submit, duration, need in rows:
        at = submit
        while any(used[t] + need > gpus for t in range(at, at + duration)):
            at += 1
        for t in range(at, at + duration):
            used[t] += need
        found.append(at)
    return found


ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=14
).map(sorted)


@settings(max_examples=40)
@given(rows=ROWS)
def test_easy_is_the_oracles_schedule(rows: list[Row]) -> None:
    assert starts("easy", rows) == easy_oracle(rows, 4)


@settings(max_examples=40)
@given(rows=ROWS)
def test_conservative_is_the_oracles_schedule(rows: list[Row]) -> None:
    assert starts("conservative", rows) == conservative_oracle(rows, 4)


@settings(max_examples=40)
@given(rows=ROWS)
def test_devices_and_counting_agree_on_one_node(rows: list[Row]) -> None:
    # One node of 4 under "spread" is not by count to the policy, yet any free GPUs will do.
    assert starts("easy", rows, placement="spread") == easy_oracle(rows, 4)
    assert starts("conservative", rows, placement="spread") == conservative_oracle(rows, 4)


MIXED = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(1, 9),
        st.integers(1, 3),
        st.sampled_from(["a", "b", "a|b", "b|a", None]),
    ),
    min_size=1,
    max_size=14,
).map(lambda rows: sorted(rows, key=lambda r: r[:3]))


@settings(max_examples=40)
@given(rows=MIXED)
def test_nobody_is_started_later_than_a_reservation_says(
    rows: list[tuple[int, int, int, str | None]],
) -> None:
    """Two GPU types: with exact estimates a conservative reservation, once made, is kept."""
    booked: dict[str, float] = {}

    class Watched(Conservative):
        def plan(self, view):  # type: ignore[no-untyped-def]
            if len(view.waiting):
                last = list(view.waiting)[-1]
                _, found = self.reservations(view, until=last)
                for job, at_s in found.items():
                    assert at_s <= booked.get(job.job_id, at_s)
                    booked[job.job_id] = at_s
            return super().plan(view)

    plain = [r[:3] for r in rows]
    begun = starts(Watched(), plain, cluster="1x3:a,1x3:b", gpu_type=[r[3] for r in rows])
    assert begun == [booked[f"{i:03d}"] for i in range(len(rows))]


@settings(max_examples=60)
@given(rows=MIXED, placement=st.sampled_from(["count", "spread", "consolidated"]))
def test_easy_keeps_the_reservation_of_the_head(
    rows: list[tuple[int, int, int, str | None]], placement: str
) -> None:
    """Types and nodes, exact estimates: the head starts by the time it was first told."""
    told: dict[str, float] = {}

    class Watched(Easy):
        def plan(self, view):  # type: ignore[no-untyped-def]
            plan = super().plan(view)
            draft = view.draft()
            head = next((j for j in view.waiting if not draft.start(j)), None)
            if head is not None:
                shadow_s = reserve(view, draft, head).shadow_s
                assert shadow_s <= told.setdefault(head.job_id, shadow_s)
            return plan

    plain = [r[:3] for r in rows]
    types = [r[3] for r in rows]
    begun = starts(Watched(), plain, placement=placement, cluster="2x2:a,1x3:b", gpu_type=types)
    for job_id, shadow_s in told.items():
        assert begun[int(job_id)] <= shadow_s
