"""One experiment of ``learning.py``: train, evaluate, and say what it took.

Sample by sample the training step is the trainer's (``models.train.step``); checkpoints and logs
are left out. Besides the exact Bayes AUC, the Bayes score itself is evaluated on the very samples
on which the network is: their difference is free of most of the noise of drawing samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from learning_list import Experiment, Stage, step_flops

from models.batch import Batch
from models.config import LongerConfig
from models.data.generator import Generator, GeneratorConfig
from models.train.config import build
from models.train.evaluate import evaluate
from models.train.metrics import auc
from models.train.step import State, train_step

WARMUP_STEPS = 50
FINAL_SCALE = 0.03
HELD_OUT = 2**30
LOSSES_KEPT = 20


class Clocked:
    """Warm-up, then a cosine over the steps; over the seconds of a clock if these run out first."""

    def __init__(self, lr: float, steps: int, seconds: float, clock: Callable[[], float]) -> None:
        self.lr = lr
        self.steps = steps
        self.seconds = seconds
        self.clock = clock
        self.began = clock()

    def spent(self) -> float:
        """Share of the time that is over."""
        return (self.clock() - self.began) / self.seconds

    def scale(self, step: int) -> float:
        """By what the rates are multiplied."""
        done = min(max(step / self.steps, self.spent()), 1.0)
        cosine = FINAL_SCALE + (1 - FINAL_SCALE) * (1 + math.cos(math.pi * done)) / 2
        return min((step + 1) / WARMUP_STEPS, 1.0) * cosine


def batches(data: Generator, first: int, stage: Stage, device: str) -> Iterator[Batch]:
    """The stage's batches; on a GPU each is made while the one before is trained on."""

    def make(number: int) -> Batch:
        start = first + number * stage.batch
        return data.batch(np.arange(start, start + stage.batch), visible=stage.visible)

    if device == "cpu":
        yield from map(make, range(stage.steps))
        return
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(make, number) for number in range(min(3, stage.steps))]
        for number in range(stage.steps):
            batch = waiting.pop(0).result()
            if number + 3 < stage.steps:
                waiting.append(ahead.submit(make, number + 3))
            yield batch.to(device)
        for rest in waiting:
            rest.cancel()


def perform(experiment: Experiment, device: str, seconds: float) -> dict[str, Any]:
    """Run an experiment within so many seconds (and a short evaluation after them).

    On a CPU they are those of the processor, which other programs do not lengthen.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    began, began_wall = clock(), time.perf_counter()
    config = experiment.config
    network = build(config, experiment.seed).to(device)
    state = config.state(network, experiment.seed, device=device)
    steps = sum(stage.steps for stage in experiment.stages)
    schedule = Clocked(config.dense.lr, steps, seconds, clock)
    state.schedule = schedule  # type: ignore[assignment]
    losses: list[float] = []
    done_flops = samples = first = 0
    stage_ends = []
    for stage in experiment.stages:
        data = Generator(stage.data, seed=100 + experiment.seed)
        length = min(stage.data.length, stage.visible or stage.data.length)
        each = step_flops(experiment.network, experiment.model, length, stage.batch)
        for batch in batches(data, first, stage, device):
            losses.append(train_step(state, [batch]))
            done_flops += each
            samples += stage.batch
            if schedule.spent() >= 1:
                break
        first += stage.steps * stage.batch
        stage_ends.append(
            {
                "length": stage.data.length,
                "visible": length,
                "steps": len(losses),
                "loss": round(float(np.mean(losses[-100:])), 4),
            }
        )
    trained = clock() - began
    last = experiment.stages[-1]
    return {
        "name": experiment.name,
        "group": experiment.group,
        "variant": experiment.variant,
        "seed": experiment.seed,
        "network": experiment.network,
        "device": device,
        "steps": len(losses),
        "planned_steps": steps,
        "samples": samples,
        "flops": done_flops,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(trained, 1),
        "stages": stage_ends,
        "losses": [
            round(float(np.mean(part)), 4)
            for part in np.array_split(losses, min(LOSSES_KEPT, len(losses)))
        ],
        "evaluations": [
            measured(state, experiment, last, visible, device)
            for visible in (last.visible, *experiment.also_visible)
        ],
        "all_seconds": round(time.perf_counter() - began_wall, 1),
    }


def measured(
    state: State, experiment: Experiment, stage: Stage, visible: int | None, device: str
) -> dict[str, Any]:
    """AUC of the network and of the Bayes score on held-out samples, at one visible length."""
    data = Generator(stage.data, seed=100 + experiment.seed)
    seen = stage.data.length if visible is None else visible
    size = experiment.eval_samples
    index = np.arange(HELD_OUT, HELD_OUT + size)
    batch = 256 if seen < 1024 else 128
    found = evaluate(
        state.network, state.tables, data, index, batch=batch, visible=visible, device=device
    )
    parts = np.array_split(index, max(1, size // 512))
    labels = np.concatenate([data.batch(part, visible=0).label.numpy() for part in parts])
    bayes = np.concatenate([data.posterior(part, visible=seen) for part in parts])
    return {
        "visible": seen,
        "samples": size,
        "auc": round(found.auc, 5),
        "auc_deviation": round(found.auc_deviation, 5),
        "logloss": round(found.logloss, 5),
        "bayes_auc": round(data.bayes_auc(seen), 5),
        "bayes_score_auc": round(auc(bayes, labels), 5),
    }


def described(experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment that differ from the network's defaults, for the file."""
    model = {
        f.name: getattr(experiment.model, f.name)
        for f in fields(LongerConfig)
        if getattr(experiment.model, f.name) != f.default
    }
    return {
        "model": model,
        "recipe": asdict(experiment.recipe),
        "stages": [
            {"steps": s.steps, "batch": s.batch, "visible": s.visible, "data": _data(s.data)}
            for s in experiment.stages
        ],
    }


def _data(config: GeneratorConfig) -> dict[str, Any]:
    return {
        f.name: getattr(config, f.name)
        for f in fields(GeneratorConfig)
        if getattr(config, f.name) != f.default
    }
