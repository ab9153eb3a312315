"""What is measured: one training step of a network on a batch whose contents do not matter.

Samples are drawn with a counter-based generator (``models.data.philox``), a pure function of (seed,
index): ids by a power law over a table's size, as items of histories are; actions, ages and labels
at random. Nothing can be learnt from them, and a step costs what it costs on real ones, but for how
often ids repeat. Only NumPy is needed, so this runs where the generator's SciPy is absent.

Leaves out: reading and collating real data; the batch is made before the clock starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Batch
from models.config import PAPER, LongerConfig
from models.data.collate import checked_indices, collate, ranges
from models.data.philox import Stream, below, check_seed, unit, words
from models.device import deterministic
from models.errors import ModelError
from models.longer.execution import Execution
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig, build, count
from models.train.state import dense_state
from models.train.step import State, train_step

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
_MOST = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Samples without meaning, numbered 0, 1, ...; ``models.train.trainer.TrainingData``.

    Histories have ``min_length`` to ``max_length`` events, any length as likely as another (None:
    all have ``max_length``). ``items``: different ids of items; categories are a hundredth of them.
    """

    max_length: int
    min_length: int | None = None
    items: int = 100_000
    num_actions: int = 8
    num_cross: int = 2
    seed: int = 0
    num_samples: int = _MOST

    def __post_init__(self) -> None:
        check_seed(self.seed)
        least = self.max_length if self.min_length is None else self.min_length
        if not 0 <= least <= self.max_length:
            raise ModelError(
                "no such length",
                where="min_length",
                value=least,
                expected=f"0 to {self.max_length}",
            )
        if self.items < 1:
            raise ModelError("no items", where="items", value=self.items, expected="1 or more")

    def lengths(self, indices: Sequence[int] | Ints) -> Ints:
        """Return the events of samples (B,)."""
        index = checked_indices(indices, self.num_samples)
        least = self.max_length if self.min_length is None else self.min_length
        word, *_ = words(self.seed, Stream.HISTORY, index)
        return least + below(word, self.max_length - least + 1)

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return the samples ``indices``, each with its newest ``visible`` events (None: all)."""
        index = checked_indices(indices, self.num_samples)
        lengths = self.lengths(index)
        shown = lengths if visible is None else np.minimum(lengths, visible)
        place = ranges(lengths - shown, shown)
        item_high, item_low, age, action = words(
            self.seed, Stream.EVENT, np.repeat(index, shown), place
        )
        high, low, user, label = words(self.seed, Stream.SAMPLE, index)
        item, candidate = self._item(item_high, item_low), self._item(high, low)
        categories = max(1, self.items // 100)
        return collate(
            lengths=shown,
            item=item,
            category=item % categories,
            action=below(action, self.num_actions),
            age_s=10 ** (8 * unit(age, age)),
            candidate_item=candidate,
            candidate_category=candidate % categories,
            user=below(user, 10_000),
            label=below(label, 2).astype(np.float32),
            num_cross=self.num_cross,
        )

    def _item(self, high: Words, low: Words) -> Ints:
        """Ids by a power law: the n-th most frequent is drawn in proportion to 1 / n, about."""
        rank = np.exp(unit(high, low) * math.log(self.items)).astype(np.int64) - 1
        return np.clip(rank, 0, self.items - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step of ``batch`` samples: network, how it is computed, how long histories are.

    ``min_length``: None, all histories have ``model.max_length`` events; else they have from so
    many to that many. ``strict``: under torch's deterministic algorithms, as a run trains.
    """

    network: str = "longer"
    model: LongerConfig = PAPER
    execution: Execution = field(default_factory=Execution)
    batch: int = 64
    min_length: int | None = None
    items: int = 100_000
    strict: bool = True
    seed: int = 0

    def config(self) -> TrainConfig:
        """Return the training configuration; ModelError for sizes out of range."""
        return TrainConfig(
            network=self.network,
            model=self.model,
            execution=self.execution,
            global_batch=self.batch,
            sparse=RowAdam(),
        )

    def data(self) -> Drawn:
        """Return the samples; ModelError for lengths out of range."""
        return Drawn(
            max_length=self.model.max_length,
            min_length=self.min_length,
            items=self.items,
            num_actions=self.model.num_actions,
            num_cross=self.model.num_cross,
            seed=self.seed,
        )


class Prepared:
    """A workload on a device: its state, its batch there, and ``step``, which does one step.

    ``flops``: model operations of a step, from true lengths; ``state_bytes``: what stays between
    steps, dense parameters with their moments and rows with theirs, after the first step.
    """

    def __init__(self, workload: Workload, device: torch.device | str = "cpu") -> None:
        self.workload = workload
        self.device = torch.device(device)
        config, data = workload.config(), workload.data()
        network = build(config, workload.seed).to(self.device)
        self.state: State = config.state(network, workload.seed, device=self.device)
        lengths = data.lengths(np.arange(workload.batch))
        self.events = int(lengths.sum())
        self.flops = count(network, lengths.tolist())
        self.batch = _first(data, workload.batch).to(self.device)

    def step(self) -> None:
        """Do one training step: look-ups, forward, backward, both updates."""
        with deterministic(self.device, strict=self.workload.strict):
            train_step(self.state, [self.batch])
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, moments and rows."""
        dense = sum(t.numel() * t.element_size() for t in dense_state(self.state).values())
        tables = self.state.tables.tables.values()
        return dense + sum(
            4 * t.num_rows * (t.dim + t.optimizer.state_width(t.dim)) for t in tables
        )


@lru_cache(maxsize=2)
def _first(data: Drawn, samples: int) -> Batch:
    """The first samples; workloads that are compared share them, and drawing takes a while."""
    return data.batch(np.arange(samples))
