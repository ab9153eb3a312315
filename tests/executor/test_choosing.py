"""From which step a job goes on: the latest that is all there, else a file, else the beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.choosing import Target, behind, chosen
from executor.messages import Surveyed
from executor.shards import Held

RANKS = 3


def context(step: int, rank: int) -> bytes:
    """There is only one context of a rank after a step, so who had it makes no difference."""
    return bytes([step, rank])


def contexts(step: int, *ranks: int) -> dict[int, dict[int, bytes]]:
    return {step: {rank: context(step, rank) for rank in ranks}}


def device(
    step: int | None,
    *ranks: int,
    rows: tuple[Held, ...] = (),
    prepared: bool = False,
) -> Surveyed:
    """A device whose replica and contexts of ``ranks`` are after ``step``."""
    held = {} if step is None else contexts(step, *ranks)
    return Surveyed(step=step, contexts=held, last=None, rows=rows, prepared=prepared)


def shards(size: int, *numbers: int, holding: int = 1) -> tuple[Held, ...]:
    return (Held(holding=holding, size=size, numbers=numbers),)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    surveys: Mapping[str, Surveyed]
    saved: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    handed: Mapping[int, Mapping[int, bytes]] = field(default_factory=dict)
    sharded: bool = False
    distrusted: int | None = None
    step: int
    path: str | None = None
    holders: tuple[str, ...] = ()


CASES = [
    Case(name="nothing is left: the beginning", surveys={}, step=0),
    Case(
        name="all devices live and have done the same steps",
        surveys={"a": device(4, 0, 1), "b": device(4, 2)},
        saved=(4, 3),
        step=4,
        holders=("a", "b"),
    ),
    Case(
        name="one device was a step ahead of the others, which lack its contexts",
        surveys={"a": device(5, 0), "b": device(4, 0, 1, 2)},
        step=4,
        holders=("b",),
    ),
    Case(
        name="a device between two steps has contexts, but no replica",
        surveys={
            "a": Surveyed(step=None, contexts=contexts(4, 0, 1), last=None),
            "b": device(4, 2),
        },
        step=4,
        holders=("b",),
    ),
    Case(
        name="the contexts with which the generation began complete those of the devices",
        surveys={"a": device(4, 0)},
        handed=contexts(4, 0, 1, 2),
        step=4,
        holders=("a",),
    ),
    Case(
        name="no replica lives: the last checkpoint that can be read",
        surveys={"a": Surveyed(step=None, contexts=contexts(9, 0, 1, 2), last=None)},
        saved=(8, 6, 4),
        damaged=(8,),
        step=6,
        path="6",
    ),
    Case(
        name="no checkpoint can be read",
        surveys={"a": device(4, 0)},
        saved=(3, 2),
        damaged=(3, 2),
        step=0,
    ),
    Case(
        name="an audit does not know who is right: a file of the audit before or earlier",
        surveys={"a": device(8, 0, 1, 2)},
        saved=(8, 7, 6, 5, 4),
        distrusted=8,
        step=6,
        path="6",
    ),
    Case(
        name="no file is that old",
        surveys={"a": device(8, 0, 1, 2)},
        saved=(8, 7),
        distrusted=8,
        step=0,
    ),
    Case(
        name="all shards live",
        surveys={
            "a": device(4, 0, 1, 2, rows=shards(2, 0)),
            "b": device(4, rows=shards(2, 1)),
        },
        sharded=True,
        step=4,
        holders=("a", "b"),
    ),
    Case(
        name="a mirror lives",
        surveys={"a": device(4, 0, 1, 2, rows=shards(2, 0, 1))},
        sharded=True,
        step=4,
        holders=("a",),
    ),
    Case(
        name="a shard is lost",
        surveys={"a": device(4, 0, 1, 2, rows=shards(2, 0))},
        saved=(2,),
        sharded=True,
        step=2,
        path="2",
    ),
    Case(
        name="a shard is there, but not after the same step",
        surveys={
            "a": device(4, 0, 1, 2, rows=shards(2, 0)),
            "b": device(3, 0, 1, 2, rows=shards(2, 1)),
        },
        saved=(2,),
        sharded=True,
        step=2,
        path="2",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_job_goes_on_from(case: Case) -> None:
    def read(step: int) -> Target[str] | None:
        if step in case.damaged:
            return None
        return Target(step=step, contexts=contexts(step, 0, 1, 2)[step], path=str(step))

    target = chosen(
        case.surveys,
        case.saved,
        read,
        handed=case.handed,
        num_workers=RANKS,
        sharded=case.sharded,
        distrusted=case.distrusted,
        audit_every=2,
    )
    assert (target.step, target.path, target.holders) == (case.step, case.path, case.holders)
    assert (target.rows is not None) == (case.sharded and bool(target.holders))


def test_files_are_left_alone_if_a_replica_is_chosen() -> None:
    def fail(_: int) -> NoReturn:
        raise AssertionError

    saved = iter((3,))
    surveys = {"a": device(2, 0, 1, 2)}
    target = chosen(surveys, saved, fail, handed={}, num_workers=RANKS, sharded=False)
    assert target.step == 2
    assert list(saved) == [3]


STEPS = st.integers(1, 5)
SURVEYS = st.builds(
    lambda step, held: Surveyed(
        step=step, contexts={s: contexts(s, *ranks)[s] for s, ranks in held.items()}, last=None
    ),
    st.none() | STEPS,
    st.dictionaries(STEPS, st.sets(st.integers(0, RANKS - 1)), max_size=2),
)


@given(
    surveys=st.dictionaries(st.sampled_from("abcd"), SURVEYS),
    handed=st.dictionaries(STEPS, st.just(range(RANKS)), max_size=1),
    files=st.dictionaries(STEPS, st.booleans()),
)
def test_nothing_later_could_have_been_chosen_and_all_of_it_is_there(
    surveys: dict[str, Surveyed], handed: dict[int, range], files: dict[int, bool]
) -> None:
    def pick(surveys: dict[str, Surveyed]) -> Target[str]:
        return chosen(
            surveys,
            sorted(files, reverse=True),
            lambda step: Target(step=step, contexts={}, path="file") if files[step] else None,
            handed={step: contexts(step, *ranks)[step] for step, ranks in handed.items()},
            num_workers=RANKS,
            sharded=False,
        )

    def lives(step: int) -> bool:
        ranks = set(handed.get(step, ()))
        for surveyed in surveys.values():
            ranks |= set(surveyed.contexts.get(step, ()))
        replica = any(surveyed.step == step for surveyed in surveys.values())
        return replica and ranks == set(range(RANKS))

    target = pick(surveys)
    living = [step for step in range(1, 6) if lives(step)]
    readable = [step for step, whole in files.items() if whole]
    if living:
        assert target.step == max(living)
        assert target.holders == tuple(d for d in surveys if surveys[d].step == target.step)
        assert target.contexts == contexts(target.step, *range(RANKS))[target.step]
    else:
        assert target.holders == ()
        assert target.step == max(readable, default=0)
        assert (target.contexts is None) == (not readable)
    turned = pick(dict(reversed(surveys.items())))
    assert (turned.step, turned.contexts, turned.path) == (
        target.step,
        target.contexts,
        target.path,
    )


def test_who_is_one_step_behind_and_prepared_can_follow() -> None:
    surveys = {
        "ahead": device(4),
        "late": device(3, prepared=True),
        "unprepared": device(3),
        "too late": device(2, prepared=True),
        "in pieces": device(None, prepared=True),
    }
    assert behind(surveys) == {"late": 4}
    assert behind({"alone": device(3, prepared=True)}) == {}
    assert behind({}) == {}
