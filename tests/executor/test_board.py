"""Where devices meet: notes that come when they are there, and go with the last visitor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from torch._C._distributed_c10d import PrefixStore

from executor.board import Board, Visit


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_note_is_read_as_soon_as_it_is_there(board: Board) -> None:
    early, late = Visit(board.address, "a"), Visit(board.address, "a")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(early.get, "key")
        late.set("key", b"\x00value\xff")
        assert found.result(10) == b"\x00value\xff"
    late.set("text", "words")
    assert early.get("text") == b"words"
    assert early.check(["key", "text"])
    assert not early.check(["key", "other"])
    assert (early.add("n", 2), late.add("n", -3)) == (2, -1)
    assert (late.delete_key("key"), early.delete_key("key")) == (True, False)
    for visit in (early, late):
        visit.close()


def test_a_wait_has_an_end(board: Board) -> None:
    visit = Visit(board.address, "a", timeout_s=0.05)
    began = time.monotonic()
    for wait in (
        lambda: visit.get("key"),
        lambda: visit.wait(["key"]),
        lambda: visit.wait(["key"], timedelta(seconds=0.6)),
    ):
        with pytest.raises(RuntimeError, match="key: not on the board within"):
            wait()
    assert time.monotonic() - began >= 0.7
    assert not visit.have_come(["key"], 0.01)
    visit.close()


def test_meetings_are_apart_and_go_with_their_last_visitor(board: Board) -> None:
    one, other, elsewhere = (Visit(board.address, name) for name in ("a", "a", "b"))
    one.set("key", b"1")
    assert not elsewhere.check(["key"])
    assert sorted(board.meetings) == ["a", "b"]
    one.close()
    assert other.get("key") == b"1"  # who comes late finds what those who left have said
    copy = other.clone()
    other.close()
    with pytest.raises(RuntimeError, match="the board is gone, or the visit is over"):
        copy.get("key")
    until(lambda: board.meetings == ["b"])
    again = Visit(board.address, "a")
    assert not again.check(["key"])
    again.close()
    elsewhere.close()
    until(lambda: board.meetings == [])


def test_a_wait_ends_when_the_visit_is_closed(board: Board) -> None:
    visit = Visit(board.address, "a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(visit.get, "never")
        time.sleep(0.05)
        visit.close()
        with pytest.raises(RuntimeError, match="the visit is over"):
            waiting.result(10)
    until(lambda: board.meetings == [])


def test_a_visitor_that_is_killed_has_left(board: Board, repo: Path) -> None:
    code = (
        "import sys; from executor.board import Visit\n"
        "visit = Visit(sys.argv[1].encode().decode('unicode_escape'), 'a')\n"
        "visit.set('key', b'1'); print('there', flush=True); visit.get('never')"
    )
    address = board.address.replace("\0", "\\x00")
    with subprocess.Popen(
        [sys.executable, "-c", code, address], cwd=repo, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert board.meetings == ["a"]
        process.kill()
    until(lambda: board.meetings == [])


def test_no_other_user_is_served(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by a board that takes itself for somebody else's."""
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    # It hangs up, before or after we have said where we want to go.
    with (
        pytest.raises(RuntimeError, match=r"the board is gone|the agent is not there: Broken"),
        closing(Visit(board.address, "a", timeout_s=5)) as visit,
    ):
        visit.get("key")
    assert board.meetings == []


def test_an_agent_that_goes_while_it_is_visited_is_not_there(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Connection, "send", send)
    with pytest.raises(RuntimeError, match="the agent is not there: Broken pipe"):
        Visit(board.address, "a")


def test_a_board_that_is_closed_takes_no_visitor() -> None:
    board = Board()
    board.close()
    with pytest.raises(RuntimeError, match="the agent is not there: Connection refused"):
        Visit(board.address, "a")
    assert not [thread for thread in threading.enumerate() if thread.name == "board"]


def test_groups_use_it_as_torchs_own_store(board: Board) -> None:
    assert board._server.socket.family == socket.AF_UNIX
    visit = Visit(board.address, "a")
    store = PrefixStore("group", visit)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert visit.get("group/key") == b"value"
    store.wait(["key"], timedelta(seconds=1))
    visit.close()
    with pytest.raises(RuntimeError, match="the visit is over"):
        store.get("key")
