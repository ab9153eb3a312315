"""D2 through the engine: a job on lanes with different kernels has the bits it has on one of them.

The twin: without D2 the same job has other bits on the two lanes, so the equality can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from executor import events as e
from executor.agent import Agent
from executor.devices import DeviceLane, parse_lanes
from executor.errors import ExecutorError
from executor.levels import Agreement, Level, agree
from executor.machine import probe
from executor.operators import differing
from executor.pool import WorkerPool
from executor.witness import Witness
from tests.executorcases import (
    Digests,
    MuteWorker,
    digests_of,
    first_difference,
    job,
    on,
    trained,
)
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


def test_lanes_that_do_not_keep_a_promise_are_found_before_a_step(
    mixed: Agent, lanes: Lanes
) -> None:
    """An agreement on nothing in common: each lane runs its own kernels, and says so."""
    broken = Agreement(level=Level.D2, threads=1)
    spec = replace(job("mlp", 4, 5, job_id="broken"), agreement=broken)
    mixed.start(spec, on(2, 2))
    with pytest.raises(ExecutorError) as caught:
        mixed.settle("broken")
    said = str(caught.value)
    assert "level D2" in said
    for name in (*(lane.name for lane in lanes), "exp", "exp gradient"):
        assert name in said
    assert not mixed.jobs["broken"].handles
    # A job that grows onto such a lane is found out as well; it had a lane of its own before.
    spec = replace(spec, job_id="grown", steps=10_000)
    mixed.start(spec, on(4))
    mixed.wait(lambda event: isinstance(event, e.Progress))
    mixed.rescale("grown", on(2, 2))
    with pytest.raises(ExecutorError, match="give other bits in"):
        mixed.settle("grown")


def test_a_lane_is_asked_once(mixed: Agent, lanes: Lanes) -> None:
    agreement = agree(Level.D2, lanes)
    spec = replace(job("mlp", 2, 2, job_id="asked"), agreement=agreement)
    trained(mixed, spec, [(2, on(1, 1))])
    kept = mixed._pool.kernels
    answers = {
        lane.name: kept[f"{lane.name} {sorted(agreement.environ(lane).items())}"] for lane in lanes
    }
    assert len(answers) == 2
    first, second = answers.values()
    assert differing(first, second) == []
    witness = Witness(agreement, kept)
    for handle in mixed._pool._all.values():
        assert witness.asks(handle) == (handle.environment not in kept)
    before = dict(kept)
    trained(mixed, replace(spec, job_id="again"), [(2, on(1, 1))])
    assert dict(kept) == before


def test_only_d2_on_cpus_asks(lanes: Lanes) -> None:
    worker = MuteWorker(0)
    for agreement in (None, agree(Level.D1, lanes[:1]), Agreement(level=Level.D2, on_gpu=True)):
        witness = Witness(agreement, {})
        assert not witness.asks(worker)
        assert witness.heard(worker, None) is None
    witness = Witness(agree(Level.D2, lanes), {})
    assert witness.asks(worker)
    assert witness.heard(worker, None) is None  # a thread has nothing to say
    worker.close()
