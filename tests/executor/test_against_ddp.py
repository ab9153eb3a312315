"""The engine's bits are those of DistributedDataParallel with a process for each rank."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from executor.agent import Agent
from tests.executorcases import Digests, digests_of, first_difference, job, on, trained

STEPS = 50
RUNS = ("2:50:0", "4:50:1", "8:15:1", "4:50:0", "8:15:0", "6:10:0")


@pytest.fixture(scope="module")
def references(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Digests]:
    """Digests by run and step: ``WORLD:STEPS:HOOK`` as in ``tests.ddpreference``."""
    out = tmp_path_factory.mktemp("ddp") / "out.json"
    command = [sys.executable, "-m", "tests.ddpreference", str(out), *RUNS]
    subprocess.run(command, cwd=repo, check=True, timeout=120)
    return {run: merged(ranks) for run, ranks in json.loads(out.read_text()).items()}


def merged(ranks: list[list[dict[str, str]]]) -> Digests:
    """Digests by step of all ranks, which must agree on what they share."""
    found: Digests = {}
    for rank in ranks:
        for step, of_step in enumerate(rank, start=1):
            together = found.setdefault(step, {})
            for name, value in of_step.items():
                assert together.setdefault(name, value) == value, (step, name)
    return found


def test_two_workers_on_one_device_equal_two_gloo_ranks(
    agent: Agent, references: dict[str, Digests]
) -> None:
    """Dropout, noise, batch normalisation and AdamW; parameters, moments, generators, buffers."""
    found = digests_of(trained(agent, job("mlp", 2, STEPS), [(STEPS, on(2))]))
    assert len(found) == STEPS
    assert first_difference(found, references["2:50:0"]) is None


@pytest.mark.parametrize(("run", "counts"), [("4:50:1", (4,)), ("8:15:1", (3, 4, 1))])
def test_more_workers_equal_a_hook_that_folds_in_the_same_tree(
    agent: Agent, references: dict[str, Digests], run: str, counts: tuple[int, ...]
) -> None:
    world, steps, _ = map(int, run.split(":"))
    found = digests_of(trained(agent, job("mlp", world, steps), [(steps, on(*counts))]))
    assert first_difference(found, references[run]) is None


@pytest.mark.parametrize(
    ("run", "counts"),
    [("4:50:0", (4,)), ("4:50:0", (1, 3)), ("8:15:0", (3, 4, 1)), ("6:10:0", (2, 2, 1, 1))],
)
def test_with_the_order_of_the_ring_they_equal_stock(
    agent: Agent, references: dict[str, Digests], run: str, counts: tuple[int, ...]
) -> None:
    """Nothing but DistributedDataParallel as it comes, and not only for powers of two."""
    world, steps, _ = map(int, run.split(":"))
    spec = replace(job("mlp", world, steps), reduction="ring")
    found = digests_of(trained(agent, spec, [(steps, on(*counts))]))
    assert len(found) == steps
    assert first_difference(found, references[run]) is None


def test_with_the_order_of_the_ring_rescales_change_no_bit(
    agent: Agent, references: dict[str, Digests]
) -> None:
    schedule = [(1, on(4)), (4, on(1, 2, 1)), (7, on(2, 2, first=2)), (50, on(3, 1))]
    spec = replace(job("mlp", 4, 50), reduction="ring")
    found = digests_of(trained(agent, spec, schedule))
    assert first_difference(found, references["4:50:0"]) is None


@pytest.mark.parametrize("run", ["4:50:0", "6:10:0"])
def test_gloo_itself_does_not_sum_along_the_tree(
    agent: Agent, references: dict[str, Digests], run: str
) -> None:
    """The checks above can fail: along the tree the bits of four ranks, and of six, differ."""
    world = int(run.split(":", maxsplit=1)[0])
    found = digests_of(trained(agent, job("mlp", world, 3), [(3, on(world))]))
    expected = {step: references[run][step] for step in found}
    assert first_difference(found, expected) is not None
