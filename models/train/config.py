"""What a training run's numbers depend on, beside its data: one value, saved in every checkpoint.

The network's shape is ``models.config.LongerConfig``; here are the batch, the logical ranks, both
optimizers, the tables' rules and the curriculum. How often something is evaluated, saved or shown
changes no number and is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from models.baselines import BASELINES, find_baseline
from models.baselines.contract import Baseline
from models.config import TINY, LongerConfig
from models.errors import ModelError
from models.longer.execution import Execution
from models.longer.flops import batch_flops
from models.longer.network import Longer
from models.sparse.evict import Eviction
from models.sparse.optimizer import RowAdagrad, RowAdam
from models.sparse.table import EmbeddingTable
from models.sparse.tableset import TableSet
from models.train.curriculum import Curriculum
from models.train.step import DenseOptimizer, State

NETWORKS = ("longer", *BASELINES)
TABLES = ("item", "category", "user", "cross")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run. Samples 0..train_samples-1 of the data are trained on, the next ones are held out.

    ``network``: ``longer`` or a name of ``models.baselines.BASELINES``, built from ``model``.
    ``global_batch``: samples of a step over all ranks. ``ranks``: logical ranks, that is
    micro-batches a step; part of the numbers, since sums are made per rank first. ``admit_after``,
    ``eviction`` and ``table_scale`` (of initial values) are those of every table. Raises
    ModelError for sizes out of range.
    """

    network: str = "longer"
    model: LongerConfig = TINY
    execution: Execution = field(default_factory=Execution)
    global_batch: int = 256
    ranks: int = 1
    train_samples: int = 2**30
    dense: DenseOptimizer = field(default_factory=DenseOptimizer)
    sparse: RowAdagrad | RowAdam = field(default_factory=RowAdagrad)
    table_scale: float = 1.0  # smaller rows find the match between candidate and history late
    admit_after: int = 1
    eviction: Eviction | None = None
    curriculum: Curriculum = field(default_factory=Curriculum)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ModelError(
                "no such network",
                where="network",
                value=self.network,
                expected="one of " + ", ".join(NETWORKS),
            )
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
                scale=self.table_scale,
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


def build(config: TrainConfig, seed: int) -> nn.Module:
    """Return the network of a run; a maker of networks for ``trainer.train``."""
    if config.network == "longer":
        return Longer(config.model, execution=config.execution, seed=seed)
    made: nn.Module = find_baseline(config.network)(
        config.model, execution=config.execution, seed=seed
    )
    return made


def count(network: nn.Module, lengths: Sequence[int]) -> int:
    """Return the operations of training on a batch of histories of these lengths, as executed.

    Forward and backward pass, without recomputation; of LONGER's last layer the rows that are
    computed. Raises ModelError for a network that is neither LONGER nor a baseline.
    """
    if isinstance(network, Longer):
        whole = network.execution.whole_last_layer
        return batch_flops(network.config, lengths, whole_last_layer=whole).training
    if isinstance(network, Baseline):
        return network.flops(lengths, executed=True).training
    raise ModelError(
        "its operations cannot be counted",
        where=type(network).__name__,
        expected="LONGER, a baseline, or a function that counts them",
    )


def _lists_for_tuples(value: Any) -> Any:
    """What JSON gives back for a value of ours."""
    if isinstance(value, dict):
        return {key: _lists_for_tuples(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_lists_for_tuples(part) for part in value]
    return value
