"""The fast engine against the slow one: every job's start, end, waiting time and preemptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memorylog import drive
from tests.policies.oracle import Asked, Discipline, Fate, Oracle, workload_of

QUICK = settings(max_examples=150)
MANY = settings(max_examples=3000)

# Gangs divide 12 and limits are multiples of it, so every crossing is at a whole second and the
# engine's floats are exact. Powers of two make them exact for any limit.
TWELFTHS = (1, 2, 3, 4, 6, 12)
BINARY = (1, 2, 4, 8)
NO_SERVICE = {"fifo", "best-effort", "sjf", "srtf", "srsf"}


@st.composite
def jobs_of(
    draw: st.DrawFn,
    sizes: Sequence[int],
    pools: Sequence[int],
    *,
    most: int = 14,
    longest: int = 40,
) -> list[Asked]:
    """Draw jobs that crowd: few distinct instants, few distinct lengths, up to whole pools."""
    rush = draw(st.sampled_from([1, 5, 30, 120]))
    lengths = draw(
        st.sampled_from([st.integers(0, longest), st.sampled_from([1, 2, 3]), st.just(7)])
    )
    asked = []
    for _ in range(draw(st.integers(1, most))):
        pool = draw(st.integers(0, len(pools) - 1))
        fitting = [s for s in sizes if s <= pools[pool]]
        asked.append(
            Asked(
                draw(st.integers(0, rush)),
                draw(lengths),
                draw(st.sampled_from([*fitting, max(fitting)])),
                pool,
            )
        )
    return asked


Case = tuple[list[Asked], str, Discipline]


@st.composite
def plain_cases(draw: st.DrawFn, *, most: int = 14) -> Case:
    """Draw a case for a policy without queues by service."""
    asked = draw(jobs_of((1, 2, 3, 5, 7, 8), [8], most=most))
    text, how = draw(st.sampled_from(PLAIN))
    return asked, text, how


PLAIN: list[tuple[str, Discipline]] = [
    ("fifo", Discipline(rule="fifo", blocks=True)),
    ("best-effort", Discipline(rule="best-effort")),
    ("sjf", Discipline(rule="sjf")),
    ("sjf:blocks=true", Discipline(rule="sjf", blocks=True)),
    ("sjf:by=gpu-time", Discipline(rule="sjf", by_gpus=True)),
    ("sjf:by=gpu-time,blocks=true", Discipline(rule="sjf", by_gpus=True, blocks=True)),
    ("srtf", Discipline(rule="srtf")),
    ("srsf", Discipline(rule="srsf")),
]


def las(quantum: int) -> tuple[str, Discipline]:
    return f"las:quantum_gpu_s={quantum}", Discipline(rule="las", quantum=quantum)


def tiresias(limits: Sequence[int], knob: int, *, by_gpus: bool) -> tuple[str, Discipline]:
    by = "gpu-time" if by_gpus else "time"
    text = f"tiresias:thresholds={';'.join(map(str, limits))},knob={knob},by={by}"
    how = Discipline(rule="tiresias", limits=tuple(limits), knob=knob, by_gpus=by_gpus)
    return text, how


@st.composite
def las_cases(draw: st.DrawFn, *, most: int = 12) -> Case:
    """Draw a case for least attained service."""
    if draw(st.booleans()):
        asked = draw(jobs_of(TWELFTHS, [12], most=most))
        text, how = las(12 * draw(st.integers(1, 6)))
    else:
        asked = draw(jobs_of(BINARY, [8], most=most))
        text, how = las(draw(st.integers(1, 60)))
    return asked, text, how


@st.composite
def tiresias_cases(draw: st.DrawFn, *, most: int = 12) -> Case:
    """Draw a case for Tiresias."""
    by_gpus = draw(st.booleans())
    step, sizes, pool = draw(st.sampled_from([(12, TWELFTHS, 12), (1, BINARY, 8)]))
    longest = 40 if by_gpus else 60
    asked = draw(jobs_of(sizes, [pool], most=most, longest=longest))
    limits = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(sorted))
    knob = draw(st.sampled_from([0, 0, 1, 2, 5]))
    text, how = tiresias([step * x for x in limits], knob, by_gpus=by_gpus)
    return asked, text, how


def engine(
    asked: Sequence[Asked],
    cluster: str,
    policy: str,
    types: Sequence[str] = (),
    placement: str = "count",
) -> list[Fate]:
    """What the engine makes of the jobs, in the order of ``asked``."""
    driver, _ = drive(workload_of(asked, types), cluster, policy, placement)
    table = driver.outcomes
    columns = (table.start_s, table.finish_s, table.queueing_s, table.preemptions)
    order = sorted(range(len(asked)), key=lambda i: (asked[i].submit_s, i))
    by_rank = [Fate(*row) for row in zip(*columns, strict=True)]
    fates = {i: by_rank[rank] for rank, i in enumerate(order)}
    return [fates[i] for i in range(len(asked))]


def agree(case: Case) -> None:
    asked, text, how = case
    gpus = 8 if all(j.gpus in {1, 2, 4, 5, 7, 8} for j in asked) or how.rule in NO_SERVICE else 12
    assert engine(asked, f"1x{gpus}:v100", text) == Oracle([gpus], how).run(asked)


@pytest.mark.parametrize(("text", "how"), PLAIN, ids=[text for text, _ in PLAIN])
@given(asked=jobs_of((1, 2, 3, 5, 7, 8), [8]))
@QUICK
def test_plain_policies(text: str, how: Discipline, asked: list[Asked]) -> None:
    agree((asked, text, how))


@given(case=las_cases())
@QUICK
def test_least_attained_service(case: Case) -> None:
    agree(case)


@given(case=tiresias_cases())
@QUICK
def test_tiresias(case: Case) -> None:
    agree(case)


@st.composite
def pinned_cases(draw: st.DrawFn) -> Case:
    """Draw jobs pinned to one of three types."""
    text, how = draw(
        st.sampled_from([*PLAIN, las(12), las(24), tiresias([12, 48], 2, by_gpus=True)])
    )
    asked = draw(jobs_of((1, 2, 4), [8, 4, 2], most=20))
    return asked, text, how


@given(case=pinned_cases())
@QUICK
def test_pools_of_types_jobs_are_pinned_to(case: Case) -> None:
    agree_pinned(case)


@pytest.mark.parametrize("nodes", [1, 2, 8])
@given(case=st.one_of(plain_cases(), tiresias_cases()))
@settings(max_examples=60)
def test_counting_does_not_care_how_gpus_lie_on_nodes(nodes: int, case: Case) -> None:
    asked, text, _ = case
    if any(j.gpus in {3, 6, 12} for j in asked) and text.startswith("tiresias"):
        return
    assert engine(asked, f"{nodes}x{8 // nodes}", text) == engine(asked, "1x8", text)


PREEMPTIVE = [p for p in PLAIN if p[1].stops]


@st.composite
def one_node_cases(draw: st.DrawFn, *, most: int = 14) -> Case:
    """Draw a case for a preemptive policy."""
    asked = draw(jobs_of(BINARY, [8], most=most))
    text, how = draw(
        st.sampled_from([*PREEMPTIVE, las(8), las(5), tiresias([5, 20], 2, by_gpus=True)])
    )
    return asked, text, how


@given(case=one_node_cases())
@QUICK
def test_searching_for_places_on_one_node_is_counting(case: Case) -> None:
    """On one node a placement finds room wherever there is enough: who runs must be the same."""
    agree_by_place(case)


def agree_pinned(case: Case) -> None:
    asked, text, how = case
    fates = engine(asked, "2x4:a,1x4:b,2x1:c", text, "abc")
    assert fates == Oracle([8, 4, 2], how).run(asked)
    if how.blocks:
        return  # the head of the line blocks the other types too
    for pool, gpus in enumerate([8, 4, 2]):
        mine = [(j, f) for j, f in zip(asked, fates, strict=True) if j.pool == pool]
        if mine:
            alone = Oracle([gpus], how).run([j._replace(pool=0) for j, _ in mine])
            assert alone == [f for _, f in mine]


def agree_by_place(case: Case) -> None:
    asked, text, how = case
    assert engine(asked, "1x8", text, placement="consolidated") == Oracle([8], how).run(asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "check"),
    [
        (plain_cases(most=30), agree),
        (las_cases(most=24), agree),
        (tiresias_cases(most=24), agree),
        (pinned_cases(), agree_pinned),
        (one_node_cases(most=20), agree_by_place),
    ],
    ids=["plain", "las", "tiresias", "pinned", "one-node"],
)
def test_thousands(cases: st.SearchStrategy[Case], check: Callable[[Case], None]) -> None:
    @given(case=cases)
    @MANY
    def every(case: Case) -> None:
        check(case)

    every()
