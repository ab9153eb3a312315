"""Training in one process: samples by number, steps, evaluations, checkpoints, two tables.

The sampler says which samples step s has, the curriculum how much of their histories is seen, and
``models.train.step`` does the step; all are functions of (config, seed, data, step). So a run is
one sequence of states, whenever it is interrupted, evaluated or shown.

A run's folder holds ``checkpoints/`` (``models.train.state``), ``steps.csv``, ``evaluations.csv``
and ``training.json``; ``docs/models/training.md`` has their columns. SIGINT and SIGTERM end a run
after the step (or the evaluation's batch) that is being done, with a checkpoint.

Leaves out: making batches ahead of time, and more than one process.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from models.batch import Batch
from models.data.collate import Samples
from models.data.sampler import Sampler
from models.device import deterministic
from models.errors import ModelError
from models.longer.flops import mfu
from models.train.config import TrainConfig, build, count
from models.train.evaluate import Evaluation, evaluate
from models.train.interrupt import Interrupted, Interruption
from models.train.log import Cell, Log
from models.train.record import write_record
from models.train.state import checkpoints, load, save
from models.train.step import State, train_step

STEP_COLUMNS = (
    *("step", "samples", "visible", "lr_scale", "loss", "flops"),
    *("seconds", "data_seconds", "samples_per_s", "mfu"),
)
EVALUATION_COLUMNS = ("step", "visible", "samples", "auc", "auc_deviation", "logloss")
_FINGERPRINTED = 16

Maker = Callable[[TrainConfig, int], nn.Module]
Counter = Callable[[nn.Module, Sequence[int]], int]


class TrainingData(Samples, Protocol):
    """Samples that say how many they are."""

    @property
    def num_samples(self) -> int:
        """Samples are numbered from 0 to one less than this."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a step was like: the row of ``steps.csv`` with the last ``evaluation``, if any."""

    step: int
    steps: int
    visible: int | None
    loss: float
    samples_per_s: float
    mfu: float | None
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run that came to its end: the state, the folder, and the evaluation after the last step."""

    state: State
    out: Path
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What is done beside the steps; none of it changes a number of the run.

    ``evaluate_every``, ``save_every``: in steps; 0: only at the end. ``eval_samples``: those after
    the training samples; 0: no evaluation. ``keep``: checkpoints that stay. ``peak_flops_per_s``:
    what the device could do, for MFU; None leaves it empty. ``on_step`` is called after each step.
    ``publish`` is called with the state after every ``publish_every`` steps (0: never on the way)
    and at the end; what it raises ends the run, which can resume.
    """

    evaluate_every: int = 0
    eval_samples: int = 4096
    eval_batch: int = 1024
    save_every: int = 0
    keep: int = 2
    peak_flops_per_s: float | None = None
    on_step: Callable[[Progress], None] | None = None
    publish: Callable[[State], object] | None = None
    publish_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            *(("evaluate_every", 0), ("eval_samples", 0), ("eval_batch", 1)),
            *(("save_every", 0), ("keep", 1), ("publish_every", 0)),
        ):
            if getattr(self, name) < least:
                raise ModelError(
                    "bad setting",
                    where=name,
                    value=getattr(self, name),
                    expected=f"{least} or more",
                )
        peak = self.peak_flops_per_s
        if peak is not None and not 0 < peak < math.inf:
            raise ModelError(
                "bad setting", where="peak_flops_per_s", value=peak, expected="more than 0"
            )


def train(
    config: TrainConfig,
    data: TrainingData,
    *,
    steps: int,
    seed: int,
    out: str | Path,
    resume: bool = False,
    make: Maker = build,
    flops: Counter = count,
    habits: Habits | None = None,
    device: torch.device | str = "cpu",
) -> Trained:
    """Train until ``steps`` steps are done, and return the state.

    ``out``: the run's folder; without ``resume`` it must not hold a run, with it the run goes on
    from its last checkpoint. ``make`` makes the network from (config, seed); ``flops`` counts the
    operations of training on histories of some lengths, for MFU. Torch's deterministic
    algorithms are switched on meanwhile.

    Raises ModelError for data that has too few samples, a folder that holds a run or has none, a
    checkpoint of another run, and what a step may raise. Raises KeyboardInterrupt after a signal,
    when the state is saved.
    """
    habits = Habits() if habits is None else habits
    out = Path(out)
    if steps < 1:
        raise ModelError("no step to do", where="steps", value=steps, expected="1 or more")
    needed = config.train_samples + habits.eval_samples
    if data.num_samples < needed:
        raise ModelError(
            "too few samples",
            where="data",
            value=data.num_samples,
            expected=f"{needed}: those trained on and those held out",
        )
    _check_folder(out, resume)
    with deterministic(torch.device(device)):
        state = config.state(make(config, seed).to(device), seed, device=device)
        run = _Run(config, data, state, steps, out, make, flops, habits, torch.device(device))
        run.begin(resume)
        with Interruption() as signals:
            return run.go(signals)


class _Run:
    """The loop of ``train`` and what it needs."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        state: State,
        steps: int,
        out: Path,
        make: Maker,
        flops: Counter,
        habits: Habits,
        device: torch.device,
    ) -> None:
        self.config, self.data, self.state, self.steps = config, data, state, steps
        self.out, self.flops, self.habits, self.device = out, flops, habits, device
        self.sampler = Sampler(
            num_samples=config.train_samples, global_batch=config.global_batch, seed=state.seed
        )
        self.identity: dict[str, Any] = {
            "config": config.to_json(),
            "data": fingerprint(data),
            "make": f"{make.__module__}.{getattr(make, '__qualname__', repr(make))}",
            "seed": state.seed,
        }
        self.evaluation: Evaluation | None = None

    def begin(self, resume: bool) -> None:
        """Take up the state, and open the tables at its step."""
        after = None
        if resume:
            load(self.state, self.out / "checkpoints", self.identity)
            after = self.state.step
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"cannot be made: {error.strerror}", where=self.out) from error
        write_record(
            self.out / "training.json",
            self.identity,
            data=self.data,
            curriculum=self.config.curriculum,
            device=self.device,
            peak_flops_per_s=self.habits.peak_flops_per_s,
        )
        self.step_log = Log(self.out / "steps.csv", STEP_COLUMNS, after=after)
        self.evaluation_log = Log(self.out / "evaluations.csv", EVALUATION_COLUMNS, after=after)

    def go(self, signals: Interruption) -> Trained:
        """Do the steps that are left."""
        try:
            if not self.state.step:
                self.save()  # now, so that a folder that cannot be written to is known at once
            self.evaluate(signals)  # what an interruption left out
            while self.state.step < self.steps:
                signals.check()
                self.do_step()
                if self.due(self.habits.save_every):
                    self.save()
                self.evaluate(signals)
                if self.state.step < self.steps and self.due(self.habits.publish_every):
                    self.publish()
            self.save()
            self.publish()
        except Interrupted:
            self.save()
            raise KeyboardInterrupt(
                f"{self.out} holds the run after step {self.state.step}, from which it can resume"
            ) from None
        except ModelError:
            self.step_log.flush()  # up to the step that was refused
            raise
        return Trained(state=self.state, out=self.out, evaluation=self.evaluation)

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is due."""
        step = self.state.step
        return step == self.steps or (every > 0 and step > 0 and step % every == 0)

    def do_step(self) -> None:
        """Do one step and add its row."""
        number, config = self.state.step, self.config
        visible = config.curriculum.visible(number)
        began = time.perf_counter()
        batches = [
            self.data.batch(self.sampler.at(number, rank, config.ranks), visible=visible)
            for rank in range(config.ranks)
        ]
        made = time.perf_counter()
        loss = train_step(self.state, [batch.to(self.device) for batch in batches])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        row = self._row(batches, number, visible, loss) | {
            "seconds": seconds,
            "data_seconds": made - began,
            "samples_per_s": config.global_batch / seconds,
        }
        if self.habits.peak_flops_per_s is not None:
            row["mfu"] = mfu(
                int(row["flops"] or 0),
                seconds=seconds,
                peak_flops_per_s=self.habits.peak_flops_per_s,
            )
        self.step_log.add(row)
        if self.habits.on_step is not None:
            self.habits.on_step(
                Progress(
                    step=self.state.step,
                    steps=self.steps,
                    visible=visible,
                    loss=loss,
                    samples_per_s=config.global_batch / seconds,
                    mfu=row.get("mfu"),
                    evaluation=self.evaluation,
                )
            )

    def _row(
        self, batches: Sequence[Batch], number: int, visible: int | None, loss: float
    ) -> dict[str, Cell]:
        """The columns of a step that are the same on every run."""
        lengths = [n for batch in batches for n in batch.lengths.tolist()]
        return {
            "step": self.state.step,
            "samples": len(lengths),
            "visible": visible,
            "lr_scale": self.config.dense.scale(number),
            "loss": loss,
            "flops": self.flops(self.state.network, lengths),
        }

    def evaluate(self, signals: Interruption) -> None:
        """Evaluate if it is due and has not been done, with what the last step could see."""
        step, habits = self.state.step, self.habits
        if not habits.eval_samples or not step or not self.due(habits.evaluate_every):
            return
        if self.evaluation_log.last_step == step and step < self.steps:
            return
        visible = self.config.curriculum.visible(step - 1)
        first = self.config.train_samples
        self.evaluation = evaluate(
            self.state.network,
            self.state.tables,
            self.data,
            np.arange(first, first + habits.eval_samples),
            batch=habits.eval_batch,
            visible=visible,
            device=self.device,
            between=signals.check,
        )
        if self.evaluation_log.last_step != step:
            values = {f.name: getattr(self.evaluation, f.name) for f in fields(Evaluation)}
            self.evaluation_log.add({"step": step, "visible": visible} | values)

    def publish(self) -> None:
        """Hand the state to whoever serves it; if that fails, the run can go on from here."""
        if self.habits.publish is None:
            return
        try:
            self.habits.publish(self.state)
        except ModelError:
            self.save()
            raise

    def save(self) -> None:
        """Write the rows, then the checkpoint they belong to."""
        self.step_log.flush()
        self.evaluation_log.flush()
        save(self.state, self.out / "checkpoints", self.identity, keep=self.habits.keep)


def fingerprint(data: TrainingData) -> str:
    """Return a digest of how many samples there are and what the first ones hold.

    It tells other data, or another seed of a generator, from those a run began with; it does not
    notice a change in later samples.
    """
    batch = data.batch(np.arange(min(_FINGERPRINTED, data.num_samples)))
    digest = hashlib.sha256(str(data.num_samples).encode())
    for column in fields(Batch):
        digest.update(getattr(batch, column.name).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_folder(out: Path, resume: bool) -> None:
    if resume:
        if not checkpoints(out / "checkpoints"):
            raise ModelError("holds no checkpoint", where=out, expected="the folder of a run")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(
            "is there already", where=out, expected="a new or empty folder, or resuming"
        )
