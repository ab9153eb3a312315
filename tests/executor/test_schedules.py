"""D1: any sequence of worker maps leaves the bits of one undisturbed run, at every step."""

from __future__ import annotations

import itertools
import random

import pytest

from executor.agent import Agent
from tests.executorcases import (
    Digests,
    digests_of,
    first_difference,
    job,
    losses_of,
    on,
    trained,
)
from traces.workermap import WorkerMap

STEPS = 8


def random_map(rng: random.Random, workers: int) -> WorkerMap:
    """Contiguous blocks on one to four devices, in any order of devices."""
    devices = rng.randint(1, min(4, workers))
    cuts = sorted(rng.sample(range(1, workers), devices - 1))
    ends = [0, *cuts, workers]
    counts = [high - low for low, high in itertools.pairwise(ends)]
    return on(*counts, order=rng.sample(range(4), devices))


def random_schedule(rng: random.Random, workers: int, steps: int) -> list[tuple[int, WorkerMap]]:
    """Until which step on which map, up to four maps."""
    stops = [*sorted(rng.sample(range(1, steps), rng.randint(0, 3))), steps]
    return [(stop, random_map(rng, workers)) for stop in stops]


def compared(agent: Agent, name: str, seed: int, references: dict[int, Digests]) -> None:
    rng = random.Random(seed)
    workers = rng.randint(1, 8)
    if workers not in references:
        spec = job(name, workers, STEPS, job_id=f"reference {workers}")
        references[workers] = digests_of(trained(agent, spec, [(STEPS, on(workers))]))
    schedule = random_schedule(rng, workers, STEPS)
    overlap = rng.random() < 0.7
    spec = job(name, workers, STEPS, overlap=overlap, fetch_ahead=rng.choice([0, 2]))
    found = digests_of(trained(agent, spec, schedule))
    assert len(found) == STEPS
    assert first_difference(found, references[workers]) is None, schedule


@pytest.mark.parametrize(("name", "number"), [("mlp", 8), ("longer", 2)])
def test_random_schedules_equal_an_undisturbed_run(agent: Agent, name: str, number: int) -> None:
    references: dict[int, Digests] = {}
    for seed in range(number):
        compared(agent, name, seed, references)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("mlp", 140), ("longer", 60)])
def test_many_random_schedules(agent: Agent, name: str, number: int) -> None:
    references: dict[int, Digests] = {}
    for seed in range(1000, 1000 + number):
        compared(agent, name, seed, references)


def test_another_seed_has_other_bits(agent: Agent) -> None:
    """The check can fail."""
    one = digests_of(trained(agent, job("mlp", 3, 2), [(2, on(3))]))
    other = digests_of(trained(agent, job("mlp", 3, 2, seed=4), [(2, on(3))]))
    assert first_difference(one, other) is not None


def test_longer_has_the_bits_of_the_trainer(agent: Agent) -> None:
    """The engine, on three devices, and models.train.step in one process."""
    import torch

    from executor.hashing import digests
    from executor.workloads import longer_task
    from models.train.step import train_step

    task = longer_task(num_workers=3, seed=3, device=torch.device("cpu"))
    losses = []
    for step in range(5):
        batches = [task.source.fetch(rank, step)[0] for rank in range(3)]
        losses.append(train_step(task._state, batches))
    events = trained(agent, job("longer", 3, 5), [(2, on(1, 2)), (5, on(1, 1, 1))])
    expected = digests(task.state())
    assert {n: d for n, d in digests_of(events)[5].items() if "context" not in n} == expected
    assert list(losses_of(events).values()) == losses


def test_a_migration_moves_one_worker(agent: Agent) -> None:
    spec = job("mlp", 4, 6)
    reference = digests_of(trained(agent, job("mlp", 4, 6, job_id="still"), [(6, on(4))]))
    agent.start(spec, on(3, 1), pause_at=2)
    events = agent.settle("job")
    agent.migrate("job", 2, (0, 1))
    events += agent.advance("job", 4)
    assert agent.jobs["job"].map == on(2, 2)
    agent.migrate("job", 3, (0, 3))
    events += agent.advance("job", 6)
    assert first_difference(digests_of(events), reference) is None
