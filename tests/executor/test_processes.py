"""Worker processes: the same bits as threads, no orphan, and lanes with kernels of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from executor import events as e
from executor.agent import Agent
from executor.checkpoint import checkpoints
from executor.devices import DeviceLane
from executor.faults import Fault
from executor.pool import WorkerPool, slow_to_open
from tests.executorcases import (
    LANES,
    contradiction,
    digests_of,
    first_difference,
    job,
    on,
    trained,
)


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


def listening(pids: Iterable[int]) -> set[tuple[str, str]]:
    """The sockets, with their addresses in hex, at which these processes listen on a network."""
    held = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                held.add(str(entry.readlink()))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    found = {(f"socket:[{row[9]}]", row[1].split(":")[0]) for row in rows if row[3] == "0A"}
    return {(name, address) for name, address in found if name in held}


def test_nothing_listens_but_on_the_loopback_address() -> None:
    """Neither the agent's board nor what groups are built of."""
    own = [os.getpid()]
    before = listening(own)
    with socket.create_server(("", 0)):
        assert [address for _, address in listening(own) - before] == ["00000000"]
    with Agent(LANES) as agent:
        agent.start(job("mlp", 3, 50), on(2, 1), pause_at=2)
        agent.settle("job")
        heard = listening([*own, *agent._pool.pids()]) - before
    assert {address for _, address in heard} == {"0100007F"}


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


def test_a_killed_agent_leaves_nobody_and_a_new_one_resumes(
    agent: Agent, repo: Path, tmp_path: Path
) -> None:
    alone = subprocess.Popen(
        [sys.executable, "-m", "tests.agentalone", str(tmp_path)],
        cwd=repo,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert alone.stdout is not None
    try:
        pids = [int(pid) for pid in alone.stdout.readline().split()]
        assert len(pids) == 3  # two workers and their zygote
        os.kill(pids[0], signal.SIGSTOP)  # it cannot even notice that its pipe has ended
    finally:
        alone.kill()
        alone.wait()
        alone.stdout.close()
    end = time.monotonic() + 5
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pids)
    last = checkpoints(tmp_path)[-1]
    spec = job("mlp", 3, last + 2, folder=str(tmp_path), resume=True)
    found = digests_of(trained(agent, replace(spec, steps=10**6), [(last + 2, on(1, 1, 1))]))
    agent.stop("job", checkpoint=False)
    agent.settle("job")
    whole = job("mlp", 3, last + 2, job_id="whole")
    expected = digests_of(trained(agent, whole, [(last + 2, on(3))]))
    assert found == {step: expected[step] for step in (last + 1, last + 2)}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_killed_and_a_stopped_process_cost_a_step(agent: Agent, processes: WorkerPool) -> None:
    expected = digests_of(trained(agent, job("mlp", 4, 5), [(5, on(4))]))
    faults = [
        Fault(kind="kill", step=1, rank=3, point="fold"),
        Fault(kind="kill", step=3, rank=0, point="apply"),
    ]
    with Agent(LANES, pool=processes) as real:
        spec = job("mlp", 4, 5, faults=faults, deadline_s=2.0)
        real.start(spec, on(2, 1, 1), pause_at=2)
        events = real.settle("job")
        stopped = real.jobs["job"].members[0, 2].pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        events += real.advance("job", 5)
    assert contradiction(events, expected) is None
    assert sum(isinstance(event, e.Recovered) for event in events) == 3
    reasons = [event.reason for event in events if isinstance(event, e.LaneLost)]
    assert any("does not answer" in reason for reason in reasons)
    assert not alive([stopped])


@pytest.mark.parametrize("busy", [True, False])
def test_a_killed_zygote_costs_its_workers_and_no_job(agent: Agent, busy: bool) -> None:
    """``busy``: it is still importing, so it has not heard what it was asked for."""
    expected = digests_of(trained(agent, job("mlp", 3, 5), [(5, on(3))]))
    with WorkerPool() as pool, Agent(LANES, pool=pool) as real:
        real.start(job("mlp", 3, 5), on(2, 1), pause_at=2)
        events = [] if busy else real.settle("job")
        (zygote,) = pool._zygotes.values()
        os.kill(zygote.process.pid, signal.SIGKILL)
        handles = real.jobs["job"].handles
        zygote.process.wait()
        if busy:
            assert [handle.pid for handle in handles] == [None, None]
            # Nothing of it is left to be heard, and that is no error.
            zygote.listen()
        events += real.advance("job", 5)
        assert len(pool._zygotes) == 1
        assert zygote not in pool._zygotes.values()
        assert zygote._socket.fileno() == -1
    assert contradiction(events, expected) is None


def test_one_worker_of_a_lane_that_is_slow_to_open_is_kept_ready(agent: Agent) -> None:
    """It takes the place of one that is killed, and another takes its own."""
    expected = digests_of(trained(agent, job("mlp", 3, 5), [(5, on(3))]))
    fault = Fault(kind="kill", step=3, rank=2, point="fold")
    with WorkerPool(spare=lambda _: True) as pool, Agent(LANES, pool=pool) as real:
        real.start(job("mlp", 3, 5, faults=[fault]), on(2, 1), pause_at=2)
        events = real.settle("job")
        killed, spares = real.jobs["job"].handles[1], dict(pool._idle)
        (spare,) = spares[killed.environment]
        events += real.advance("job", 4)
        assert real.jobs["job"].handles == [real.jobs["job"].handles[0], spare]
        assert [len(idle) for idle in pool._idle.values()] == [1, 1]
        assert spare not in pool._idle[killed.environment]
        events += real.advance("job", 5)
        pids = pool.pids()
    assert contradiction(events, expected) is None
    assert sum(isinstance(event, e.Recovered) for event in events) == 1
    assert not alive(pids)


def test_only_whole_gpus_are_slow_to_open() -> None:
    whole = DeviceLane(name="gpu", gpu_type="h100", device="cuda:0")
    assert slow_to_open(whole)
    assert not slow_to_open(replace(whole, sm_fraction=0.5))
    assert not slow_to_open(LANES[0, 0])
