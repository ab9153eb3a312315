"""Scripts: rounds of requests, resumed when all have answered, closed when one never will."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from executor import messages as m
from executor.errors import ExecutorError
from executor.runner import Ending, Runner, Script
from tests.executorcases import MuteWorker


@pytest.fixture
def workers() -> Iterator[tuple[MuteWorker, MuteWorker]]:
    pair = (MuteWorker(0), MuteWorker(1))
    yield pair
    for worker in pair:
        worker.close()


def reply(worker: MuteWorker, **values: Any) -> m.Reply:
    """To the last request."""
    return m.Reply(serial=worker.told[-1].serial, **values)


def two_rounds(workers: tuple[MuteWorker, MuteWorker], seen: list[Any]) -> Script:
    """Ask both, then the first one."""
    a, b = workers
    try:
        replies = yield {a: m.Survey(), b: m.Survey()}
        seen.append((replies[a].value, replies[b].value))
        replies = yield {a: m.Detach()}
        seen.append(replies[a].value)
    except GeneratorExit:
        seen.append("closed")
        raise


def test_a_round_ends_when_all_have_answered(workers: tuple[MuteWorker, MuteWorker]) -> None:
    a, b = workers
    runner = Runner()
    seen: list[Any] = []
    assert runner.begin(two_rounds(workers, seen)) is None
    assert runner.asked == [a, b]
    assert runner.answered(b, reply(b, value=2))
    assert runner.go_on() is None
    assert (runner.asked, seen) == ([a], [])
    assert runner.answered(a, reply(a, value=1))
    assert runner.go_on() is None
    assert (runner.asked, seen) == ([a], [(1, 2)])
    assert runner.answered(a, reply(a, value=3))
    assert runner.go_on() == Ending(how="done")
    assert seen == [(1, 2), 3]
    assert [type(order) for order in a.told] == [m.Survey, m.Detach]
    assert runner.go_on() is None


def test_a_reply_that_nobody_waits_for_is_not_taken(workers: tuple[MuteWorker, MuteWorker]) -> None:
    a, _ = workers
    runner = Runner()
    runner.ask(a, m.Detach())
    assert runner.answered(a, reply(a))
    assert not runner.answered(a, reply(a))
    assert runner.asked == []


def test_a_death_closes_the_script_once_the_others_have_answered(
    workers: tuple[MuteWorker, MuteWorker],
) -> None:
    a, b = workers
    runner = Runner()
    seen: list[Any] = []
    runner.begin(two_rounds(workers, seen))
    runner.disturb(b)
    assert runner.go_on() is None
    runner.answered(a, reply(a, value=1))
    assert runner.go_on() == Ending(how="disturbed")
    assert seen == ["closed"]


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ({"lost": True, "error": "a peer was lost"}, Ending(how="disturbed")),
        ({"error": "no"}, Ending(how="refused", text="no")),
    ],
)
def test_what_a_worker_says_may_end_the_script(
    workers: tuple[MuteWorker, MuteWorker], values: dict[str, Any], ending: Ending
) -> None:
    a, b = workers
    runner = Runner()
    seen: list[Any] = []
    runner.begin(two_rounds(workers, seen))
    runner.answered(a, reply(a))
    runner.answered(b, reply(b, **values))
    assert runner.go_on() == ending
    assert seen == ["closed"]


def test_a_worker_that_is_gone_already_disturbs_at_once(
    workers: tuple[MuteWorker, MuteWorker],
) -> None:
    deaf = MuteWorker(2, deaf=True)
    seen: list[Any] = []
    assert Runner().begin(two_rounds((deaf, deaf), seen)) == Ending(how="disturbed")
    assert seen == ["closed"]
    deaf.close()


def test_a_new_script_does_not_hear_of_what_disturbed_the_last(
    workers: tuple[MuteWorker, MuteWorker],
) -> None:
    runner = Runner()
    runner.disturb()

    def nothing() -> Script:
        replies = yield {}
        assert replies == {}

    assert runner.begin(nothing()) == Ending(how="done")


def test_an_older_request_is_waited_for_too(workers: tuple[MuteWorker, MuteWorker]) -> None:
    a, b = workers
    runner = Runner()
    seen: list[Any] = []

    def one_round() -> Script:
        seen.append((yield {a: m.Detach()}))

    runner.ask(b, m.Survey())
    runner.begin(one_round())
    runner.answered(a, reply(a))
    assert runner.go_on() is None
    runner.answered(b, reply(b))
    assert runner.go_on() == Ending(how="done")
    assert set(seen[0]) == {a, b}


def test_the_error_of_a_script_is_its_ending() -> None:
    def fails() -> Script:
        yield {}
        raise ExecutorError("damaged", where="file")

    assert Runner().begin(fails()) == Ending(how="failed", text="file: damaged")
