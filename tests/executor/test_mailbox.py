"""A worker's mailbox: what waits for the worker, what is answered and noted while it is busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any

import pytest

from executor import messages as m
from executor.mailbox import Mailbox

NEWS = m.Paused(generation=1, step=2)


class Post:
    """A mailbox of a worker that is a thread and computes since 5 s, and the agent's end of it."""

    def __init__(self) -> None:
        self.agent, theirs = Pipe()
        self.kills = 0
        self.mail = Mailbox(
            theirs,
            as_process=False,
            doing=lambda: ("compute", time.monotonic() - 5),
            on_kill=self._killed,
        )
        self.mail.open()

    def _killed(self) -> None:
        self.kills += 1

    def send(self, *orders: Any) -> None:
        for order in orders:
            self.agent.send(order)

    def heard(self) -> Any:
        assert self.agent.poll(10)
        return self.agent.recv()


@pytest.fixture
def post() -> Iterator[Post]:
    found = Post()
    yield found
    found.mail.hang_up()
    found.agent.close()


def test_orders_wait_in_order_and_wishes_do_not(post: Post) -> None:
    run, detach = m.Run(generation=1, until=5, number=3), m.Detach(serial=7)
    post.send(run, m.Pause(number=3), m.Abandon(generation=1), detach, m.Quit())
    assert post.mail.next() == run
    assert post.mail.next() == detach
    assert (post.mail.paused_run, post.mail.abandoned) == (3, 1)
    assert post.mail.next() is None


def test_a_ping_is_answered_while_the_worker_is_busy(post: Post) -> None:
    post.send(m.Ping(number=4))
    pong = post.heard()
    assert (pong.number, pong.phase) == (4, "compute")
    assert 5 <= pong.phase_s < 15


def test_a_killed_worker_says_and_does_nothing_more(post: Post) -> None:
    post.mail.say(NEWS)
    assert post.heard() == NEWS
    post.mail.kill()
    post.mail.say(NEWS)
    assert post.mail.next() is None
    assert post.kills == 1
    assert not post.agent.poll(0.05)


def test_the_end_of_the_agent_is_the_end_of_its_worker(post: Post) -> None:
    post.agent.close()
    assert post.mail.next() is None
    assert post.mail.killed.is_set()
    assert post.kills == 1


def test_to_hang_up_is_the_end_for_the_agent_too(post: Post) -> None:
    post.mail.hang_up()
    assert post.agent.poll(10)
    with pytest.raises(EOFError):
        post.agent.recv()
