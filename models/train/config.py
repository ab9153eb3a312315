"""What a training run's numbers depend on, beside its data: one value, saved in every checkpoint.

The network's shape is ``models.config.LongerConfig``; here are the batch, the logical ranks, both
optimizers, the tables' rules and the curriculum. How often something is evaluated, saved or shown
changes no number and is not in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from models.config import TINY, LongerConfig
from models.errors import ModelError
from models.longer.execution import Execution
from models.longer.network import Longer
from models.sparse.evict import Eviction
from models.sparse.optimizer import RowAdagrad, RowAdam
from models.sparse.table import EmbeddingTable
from models.sparse.tableset import TableSet
from models.train.curriculum import Curriculum
from models.train.step import DenseOptimizer, State

TABLES = ("item", "category", "user", "cross")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run. Samples 0..train_samples-1 of the data are trained on, the next ones are held out.

    ``global_batch``: samples of a step over all ranks. ``ranks``: logical ranks, that is
    micro-batches a step; part of the numbers, since sums are made per rank first. ``admit_after``
    and ``eviction`` are those of every table. Raises ModelError for sizes out of range.
    """

    model: LongerConfig = TINY
    execution: Execution = field(default_factory=Execution)
    global_batch: int = 256
    ranks: int = 1
    train_samples: int = 2**30
    dense: DenseOptimizer = field(default_factory=DenseOptimizer)
    sparse: RowAdagrad | RowAdam = field(default_factory=RowAdagrad)
    admit_after: int = 1
    eviction: Eviction | None = None
    curriculum: Curriculum = field(default_factory=Curriculum)

    def __post_init__(self) -> None:
        for name, most in (
            ("ranks", self.global_batch),
            ("global_batch", self.train_samples),
            ("train_samples", 2**60),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ModelError(
                    "bad size", where=name, value=getattr(self, name), expected=f"1 to {most}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values, equal for equal configurations only."""
        values = asdict(self)
        execution = values["execution"]
        values["execution"] = execution | {
            name: sorted(execution[name]) for name in ("half", "recompute")
        }
        values["sparse"] = {"kind": type(self.sparse).__name__} | values["sparse"]
        listed: dict[str, Any] = _lists_for_tuples(values)
        return listed

    def table_set(self, seed: int, *, device: torch.device | str = "cpu") -> TableSet:
        """Return the four tables, empty."""
        return TableSet(
            EmbeddingTable(
                name,
                getattr(self.model, f"{name}_dim"),
                seed,
                optimizer=self.sparse,
                admit_after=self.admit_after,
                eviction=self.eviction,
                device=device,
            )
            for name in TABLES
        )

    def state(self, network: nn.Module, seed: int, *, device: torch.device | str = "cpu") -> State:
        """Return the state before the first step. ``network`` lies on ``device`` already."""
        return State(
            network=network,
            tables=self.table_set(seed, device=device),
            schedule=self.dense,
            optimizer=self.dense.build(network),
            seed=seed,
        )


def longer(config: TrainConfig, seed: int) -> nn.Module:
    """Return the LONGER network of a run; a maker of networks for ``trainer.train``."""
    return Longer(config.model, execution=config.execution, seed=seed)


def _lists_for_tuples(value: Any) -> Any:
    """What JSON gives back for a value of ours."""
    if isinstance(value, dict):
        return {key: _lists_for_tuples(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_lists_for_tuples(part) for part in value]
    return value
