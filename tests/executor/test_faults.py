"""Injected faults, by (rank, step, point): the same bits as undisturbed, no step lost or twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from executor import events as e
from executor.agent import Agent
from executor.checkpoint import checkpoints
from executor.errors import ExecutorError
from executor.faults import POINTS, Fault
from tests.executorcases import (
    Digests,
    contradiction,
    digests_of,
    job,
    losses_of,
    on,
    trained,
)

STEPS = 6
BETWEEN_STEPS = {"configure", "transfer", "arrival", "checkpoint"}


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, int], Digests]:
    return {}


def reference(
    agent: Agent, found: dict[tuple[str, int], Digests], name: str, workers: int
) -> Digests:
    if (name, workers) not in found:
        spec = job(name, workers, STEPS, job_id=f"reference {name} {workers}")
        found[name, workers] = digests_of(trained(agent, spec, [(STEPS, on(workers))]))
    return found[name, workers]


def recovered(events: list[e.Event]) -> list[e.Recovered]:
    return [event for event in events if isinstance(event, e.Recovered)]


@pytest.mark.parametrize("point", [p for p in POINTS if p not in BETWEEN_STEPS - {"configure"}])
@pytest.mark.parametrize("name", ["mlp", "longer"])
def test_a_kill_at_any_point_costs_at_most_the_step_in_flight(
    agent: Agent, references: dict[tuple[str, int], Digests], name: str, point: str
) -> None:
    expected = reference(agent, references, name, 4)
    step = 0 if point == "configure" else 3
    fault = Fault(kind="kill", step=step, rank=2, point=point)
    events = trained(agent, job(name, 4, STEPS, faults=[fault]), [(STEPS, on(2, 1, 1))])
    assert contradiction(events, expected) is None
    assert sorted(losses_of(events)) == list(range(1, STEPS + 1))
    (recovery,) = recovered(events)
    assert recovery.resumed_at >= step
    assert any(isinstance(event, e.LaneLost) and event.gpu == (0, 1) for event in events)


def test_two_deaths_at_once_and_one_during_the_recovery(
    agent: Agent, references: dict[tuple[str, int], Digests]
) -> None:
    expected = reference(agent, references, "mlp", 6)
    faults = [
        Fault(kind="kill", step=2, rank=0, point="fold"),
        Fault(kind="kill", step=2, rank=4, point="exchange"),
        Fault(kind="kill", step=2, rank=1, point="configure"),
        Fault(kind="kill", step=2, rank=5, point="arrival"),
    ]
    events = trained(agent, job("mlp", 6, STEPS, faults=faults), [(STEPS, on(2, 2, 2))])
    assert contradiction(events, expected) is None
    assert sorted(losses_of(events)) == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("point", "device"), [("configure", 2), ("transfer", 0), ("arrival", 2)])
def test_a_rescale_interrupted_half_way(
    agent: Agent, references: dict[tuple[str, int], Digests], point: str, device: int
) -> None:
    """Rank 3 goes from device 0 to device 2."""
    expected = reference(agent, references, "mlp", 4)
    fault = Fault(kind="kill", step=3, rank=3, point=point)
    schedule = [(3, on(4)), (STEPS, on(2, 1, 1))]
    events = trained(agent, job("mlp", 4, STEPS, faults=[fault]), schedule)
    assert contradiction(events, expected) is None
    assert [event.gpu for event in events if isinstance(event, e.LaneLost)] == [(0, device)]
    assert agent.jobs["job"].over


@pytest.mark.parametrize("point", ["micro-step", "apply"])
def test_a_hung_worker_is_killed_after_the_deadline(
    agent: Agent, references: dict[tuple[str, int], Digests], point: str
) -> None:
    expected = reference(agent, references, "mlp", 4)
    fault = Fault(kind="hang", step=2, rank=3, point=point)
    spec = job("mlp", 4, STEPS, faults=[fault], deadline_s=1.0)
    events = trained(agent, spec, [(STEPS, on(2, 2))])
    assert contradiction(events, expected) is None
    (lost,) = [event for event in events if isinstance(event, e.LaneLost)]
    assert lost.gpu == (0, 1)
    assert "hangs" in lost.reason


@pytest.mark.parametrize(
    ("kind", "point"), [("oom", "micro-step"), ("nan", "micro-step"), ("damage", "exchange")]
)
def test_a_transient_error_or_garbage_is_done_again(
    agent: Agent, references: dict[tuple[str, int], Digests], kind: str, point: str
) -> None:
    expected = reference(agent, references, "mlp", 4)
    fault = Fault(kind=kind, step=2, rank=3, point=point)
    events = trained(agent, job("mlp", 4, STEPS, faults=[fault]), [(STEPS, on(2, 1, 1))])
    assert contradiction(events, expected) is None
    assert len(recovered(events)) == 1


def test_a_silently_changed_replica_is_outvoted(
    agent: Agent, references: dict[tuple[str, int], Digests]
) -> None:
    expected = reference(agent, references, "mlp", 4)
    fault = Fault(kind="flip", step=2, rank=1, point="applied")
    spec = job("mlp", 4, STEPS, faults=[fault], audit_every=1, digest_every=0)
    events = trained(agent, spec, [(STEPS, on(1, 1, 2))])
    (lost,) = [event for event in events if isinstance(event, e.LaneLost)]
    assert lost.gpu == (0, 1)
    assert "replicas differ" in lost.reason
    final = next(event for event in events if isinstance(event, e.Finished))
    clean = trained(agent, job("mlp", 4, STEPS, digest_every=0), [(STEPS, on(4))])
    assert final.digest == next(event for event in clean if isinstance(event, e.Finished)).digest
    assert expected[STEPS]


def test_without_an_audit_the_flip_stays(agent: Agent) -> None:
    """The check above can fail."""
    fault = Fault(kind="flip", step=2, rank=0, point="applied")
    ends = []
    for faults in ([fault], []):
        spec = job("mlp", 4, STEPS, faults=faults, digest_every=0)
        events = trained(agent, spec, [(STEPS, on(1, 1, 2))])
        ends += [event.digest for event in events if isinstance(event, e.Finished)]
    assert ends[0] != ends[1]


def test_an_error_that_comes_back_ends_the_job_with_its_text(agent: Agent) -> None:
    faults = [Fault(kind="oom", step=2, rank=1, point="micro-step")] * 2
    with pytest.raises(ExecutorError, match="injected at step 2, rank 1"):
        trained(agent, job("mlp", 2, STEPS, faults=faults), [(STEPS, on(1, 1))])
    assert agent.jobs["job"].over
    assert not agent.jobs["job"].handles


def test_when_all_replicas_die_the_last_checkpoint_is_taken(
    agent: Agent, references: dict[tuple[str, int], Digests], tmp_path: Path
) -> None:
    expected = reference(agent, references, "mlp", 4)
    faults = [Fault(kind="kill", step=4, rank=r, point="micro-step") for r in (0, 2)]
    spec = job("mlp", 4, STEPS, faults=faults, folder=str(tmp_path), checkpoint_every=2)
    events = trained(agent, spec, [(STEPS, on(2, 2))])
    assert contradiction(events, expected) is None
    assert checkpoints(tmp_path)[-1] == STEPS


def test_a_lost_lane_leaves_its_ranks_to_the_others(
    agent: Agent, references: dict[tuple[str, int], Digests]
) -> None:
    expected = reference(agent, references, "mlp", 4)
    agent.start(job("mlp", 4, STEPS), on(2, 1, 1), pause_at=3)
    events = agent.settle("job")
    lane = agent.lanes[0, 1]
    agent.lose_lane((0, 1))
    events += agent.advance("job", STEPS)
    agent.return_lane((0, 1), lane)
    assert contradiction(events, expected) is None
    assert recovered(events)[-1].worker_map == on(2, 2, order=(0, 2))


def some_kill(rng: random.Random, workers: int) -> Fault:
    point = rng.choice([p for p in POINTS if p not in BETWEEN_STEPS])
    return Fault(kind="kill", step=rng.randrange(STEPS), rank=rng.randrange(workers), point=point)


@pytest.mark.slow
def test_a_hundred_scripted_kills(agent: Agent, references: dict[tuple[str, int], Digests]) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        workers = rng.randint(2, 6)
        expected = reference(agent, references, "mlp", workers)
        faults = [some_kill(rng, workers) for _ in range(rng.randint(1, 3))]
        counts = rng.choice([c for c in ((1, workers - 1), (workers,)) if min(c) > 0])
        events = trained(agent, job("mlp", workers, STEPS, faults=faults), [(STEPS, on(*counts))])
        assert contradiction(events, expected) is None, (seed, faults)
        assert sorted(losses_of(events)) == list(range(1, STEPS + 1))
