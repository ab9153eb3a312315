"""What can be profiled, by a text: ``dense:width=256``, ``mlp``, ``longer``, ``tiny:length=32``.

A text names a configuration; with a batch size per logical worker and a number of logical workers
it is a task. ``dense``, ``mlp`` and ``longer`` are those of ``executor.workloads``; ``tiny``,
``paper`` and ``long`` are the presets of ``models.config``, LONGER at its sizes, trained as
``tandem train`` does. The text is the model's name in a profile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from executor.longertask import LongerTask
from executor.task import TaskSpec
from executor.workloads import workload
from models.config import PRESETS
from models.data.generator import Generator, GeneratorConfig
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig
from models.train.step import DenseOptimizer
from traces.errors import UsageError, did_you_mean

_SETTINGS = {
    "dense": ("width", "layers"),
    "mlp": ("hidden",),
    "longer": (),
    **dict.fromkeys(PRESETS, ("length",)),
}


def model_task(text: str, batch: int, num_workers: int) -> TaskSpec:
    """Return the task of a configuration. Raises :class:`UsageError` for one that is not known."""
    name, settings = _read(text)
    if batch < 1 or num_workers < 1:
        raise UsageError(f"model {text!r}: a batch of {batch} for {num_workers} workers")
    if name in PRESETS:
        return TaskSpec(
            factory=f"{__name__}:preset_task",
            settings={"num_workers": num_workers, "preset": name, "batch": batch, **settings},
        )
    if name == "longer":
        return workload(name, num_workers, global_batch=batch * num_workers)
    return workload(name, num_workers, batch=batch, **settings)


def _read(text: str) -> tuple[str, dict[str, int]]:
    name, *options = text.split(":")
    if name not in _SETTINGS:
        raise UsageError(f"model {text!r}: unknown; {did_you_mean(name, _SETTINGS)}")
    settings: dict[str, int] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in _SETTINGS[name]:
            known = ", ".join(_SETTINGS[name]) or "none"
            raise UsageError(f"model {text!r}: no setting {key!r}; there are: {known}")
        if not value.isdigit() or int(value) < 1:
            raise UsageError(f"model {text!r}: {key} is {value!r}; expected a whole number from 1")
        settings[key] = int(value)
    return name, settings


def preset_task(
    *,
    num_workers: int,
    preset: str,
    batch: int,
    device: torch.device,
    length: int | None = None,
    seed: int = 0,
) -> LongerTask:
    """Return LONGER at a preset's size, on the generator's data, ``batch`` samples a worker."""
    model = PRESETS[preset]
    if length is not None:
        model = replace(model, max_length=length)
    config = TrainConfig(
        model=replace(model, dropout=0.1),
        global_batch=batch * num_workers,
        ranks=num_workers,
        dense=DenseOptimizer(lr=3e-3),
        sparse=RowAdam(lr=1e-2),
    )
    shape = GeneratorConfig(length=model.max_length, num_cross=model.num_cross)
    data: Any = Generator(shape, seed)
    return LongerTask(config, data, seed=seed, device=device)
