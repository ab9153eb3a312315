"""Training on a CUDA device: steps repeat bit for bit, and a run that is resumed is the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.longer.execution import PARTS, Execution
from models.train.config import NETWORKS, TrainConfig, build
from models.train.state import dense_state
from models.train.step import State, train_step
from models.train.trainer import Habits, train
from tests.gpucases import CONFIG, DATA, DEVICE, GPU, same_bits

pytestmark = GPU
HALF = Execution(half=PARTS, recompute=frozenset({"inner", "cross"}))


def steps(config: TrainConfig, count: int, *, seed: int = 0) -> tuple[State, list[float]]:
    """The state after some steps, and their losses."""
    state = config.state(build(config, seed).to(DEVICE), seed, device=DEVICE)
    losses = []
    for number in range(count):
        first = number * config.global_batch
        ranks = np.array_split(np.arange(first, first + config.global_batch) % 160, config.ranks)
        losses.append(train_step(state, [DATA.batch(rank).to(DEVICE) for rank in ranks]))
    return state, losses


def everything(state: State) -> list[torch.Tensor]:
    """All numbers of a state."""
    found = list(dense_state(state).values())
    for table in state.tables.tables.values():
        saved = table.state()
        found += [saved.ids, saved.count, saved.last_step, saved.records]
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_steps_give_the_same_bits(network: str) -> None:
    config = replace(CONFIG, network=network)
    state, losses = steps(config, 4)
    again, same = steps(config, 4)
    assert losses == same
    assert same_bits(everything(state), everything(again))
    other, _ = steps(config, 4, seed=1)
    assert not same_bits(everything(state), everything(other))


def test_the_same_steps_in_half_precision_give_the_same_bits() -> None:
    config = replace(CONFIG, execution=HALF)
    state, losses = steps(config, 4)
    again, same = steps(config, 4)
    assert losses == same
    assert same_bits(everything(state), everything(again))
    plain, _ = steps(CONFIG, 4)
    assert not same_bits(everything(state), everything(plain))


def test_in_half_precision_everything_that_stays_is_float32() -> None:
    state, _ = steps(replace(CONFIG, execution=Execution(half=PARTS)), 2)
    assert {t.dtype for t in dense_state(state).values()} == {torch.float32}
    assert {t.state().records.dtype for t in state.tables.tables.values()} == {torch.float32}


@pytest.mark.parametrize("execution", [Execution(), HALF])
def test_a_run_that_is_resumed_is_the_run(execution: Execution, tmp_path: Path) -> None:
    config = replace(CONFIG, execution=execution, train_samples=96)
    habits = Habits(eval_samples=48, evaluate_every=3)

    def run(name: str, count: int, *, resume: bool = False) -> State:
        return train(
            config,
            DATA,
            steps=count,
            seed=0,
            out=tmp_path / name,
            resume=resume,
            habits=habits,
            device=DEVICE,
        ).state

    straight = run("straight", 7)
    part = run("parts", 3)
    assert not same_bits(everything(part), everything(straight))
    resumed = run("parts", 7, resume=True)
    assert same_bits(everything(straight), everything(resumed))
    logs = [(tmp_path / name / "evaluations.csv").read_text() for name in ("straight", "parts")]
    assert logs[0] == logs[1]


@pytest.mark.skipif(DEVICE.type == "cpu", reason="compares the CPU with CUDA")
def test_the_device_learns_what_the_cpu_does() -> None:
    # Not bit for bit: libraries add in another order. Dropout draws other numbers, so it is off.
    config = replace(CONFIG, model=replace(CONFIG.model, dropout=0.0))
    _, there = steps(config, 6)
    cpu = config.state(build(config, 0), 0)
    here = []
    for number in range(6):
        first = number * config.global_batch
        ranks = np.array_split(np.arange(first, first + config.global_batch) % 160, config.ranks)
        here.append(train_step(cpu, [DATA.batch(rank) for rank in ranks]))
    assert there == pytest.approx(here, rel=1e-3)
