"""D2 through the engine: a job on lanes with different kernels has the bits it has on one of them.

The twin: without D2 the same job has other bits on the two lanes, so the equality can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from executor.agent import Agent
from executor.devices import DeviceLane, parse_lanes
from executor.levels import Agreement, Level, agree
from executor.machine import probe
from executor.pool import WorkerPool
from tests.executorcases import Digests, digests_of, first_difference, job, on, trained
from traces.workermap import WorkerMap

Lanes = tuple[DeviceLane, ...]


@pytest.fixture(scope="module")
def lanes() -> Lanes:
    """The best kernels of this CPU, and the plainest."""
    machine = probe()
    if len(machine.capabilities) < 2:
        pytest.skip("this CPU has one set of kernels only")
    return parse_lanes(
        f"cpu-{machine.capabilities[-1]},cpu-{machine.capabilities[0]}:slowdown=1.5", machine
    )


@pytest.fixture(scope="module")
def mixed(lanes: Lanes) -> Iterator[Agent]:
    """An agent of the two lanes."""
    with (
        WorkerPool() as pool,
        Agent({(0, i): lane for i, lane in enumerate(lanes)}, pool=pool) as agent,
    ):
        yield agent


def run(agent: Agent, name: str, agreement: Agreement, *schedule: tuple[int, WorkerMap]) -> Digests:
    """Digests of a task of four logical workers, by step and tensor; all devices must agree."""
    until = schedule[-1][0]
    spec = replace(job(name, 4, until), agreement=agreement)
    return digests_of(trained(agent, spec, schedule))


@pytest.mark.parametrize("name", ["mlp", "longer"])
def test_at_d2_every_mix_of_lanes_has_the_same_bits(mixed: Agent, lanes: Lanes, name: str) -> None:
    agreement = agree(Level.D2, lanes)
    reference = run(mixed, name, agreement, (5, on(4)))
    assert sorted(reference) == [1, 2, 3, 4, 5]
    moving = [(2, on(1, 3)), (4, on(4, first=1)), (5, on(2, 2, order=(1, 0)))]
    assert first_difference(run(mixed, name, agreement, *moving), reference) is None


def test_without_d2_the_two_lanes_give_other_bits(mixed: Agent, lanes: Lanes) -> None:
    fast, plain = (
        run(mixed, "mlp", agree(Level.D1, [lane]), (1, on(4, first=first)))
        for first, lane in enumerate(lanes)
    )
    different = first_difference(fast, plain)
    assert different is not None
    assert different[0] == 1
