"""The engine's bits are those of DistributedDataParallel with a process for each rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from executor.agent import Agent
from tests.executorcases import Digests, digests_of, first_difference, job, on, trained

STEPS = 50
RUNS = ("2:50:0", "4:50:1", "8:15:1", "4:3:0")


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


def test_gloo_itself_sums_four_ranks_in_another_order(
    agent: Agent, references: dict[str, Digests]
) -> None:
    """The checks above can fail: without the hook the bits of four ranks differ."""
    found = digests_of(trained(agent, job("mlp", 4, 3), [(3, on(4))]))
    assert first_difference(found, references["4:3:0"]) is not None
