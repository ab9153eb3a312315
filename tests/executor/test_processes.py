"""Worker processes: the same bits as threads, no orphan, and lanes with kernels of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from executor import events as e
from executor.agent import Agent
from executor.pool import WorkerPool
from tests.executorcases import LANES, digests_of, first_difference, job, on, trained


def alive(pids: Iterable[int]) -> list[int]:
    """Processes that are there and no zombies."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def children() -> set[int]:
    """All processes below this one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        below = parents.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def test_processes_and_threads_have_the_same_bits_and_leave_nobody_behind(
    agent: Agent,
) -> None:
    schedule = [(2, on(2, 1)), (4, on(1, 1, 1, order=(2, 0, 3))), (5, on(3, first=1))]
    reference = digests_of(trained(agent, job("mlp", 3, 5), [(5, on(3))]))
    before = children()
    with WorkerPool() as pool, Agent(LANES, pool=pool) as real:
        events = trained(real, job("mlp", 3, 5), schedule)
        pids = pool.pids()
        assert len(pids) >= 4  # three workers at once, and their zygote
        assert alive(pids) == pids
    assert first_difference(digests_of(events), reference) is None
    end = time.monotonic() + 5
    while (children() - before or alive(pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pids)
    assert not children() - before
    rescaled = [event for event in events if isinstance(event, e.Rescaled)]
    assert [event.worker_map for event in rescaled] == [m for _, m in schedule[1:]]
