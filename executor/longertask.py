"""LONGER and the baselines with their sparse tables, as a task: ``models.train`` step by step.

A rank's micro-batch, its dropout and its loss are functions of (seed, step, rank), as
``models.train.step`` has them, so a logical worker's context is its number and its place, and a run
of the engine has the bits of ``models.train.trainer.train`` with as many ranks.

Leaves out: evaluation and logs, which are the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from executor.task import check_shapes
from models.batch import Batch
from models.data.collate import Samples
from models.data.sampler import Sampler
from models.sparse.table import TableState
from models.sparse.tableset import TableSet
from models.train.config import TrainConfig, build
from models.train.state import dense_state
from models.train.step import Gradients, apply_step, micro_step

_COLUMNS = ("ids", "count", "last_step", "admitted", "records")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class StepSource:
    """Batches by (step, rank); a rank's place is the number of the step."""

    def __init__(self, config: TrainConfig, data: Samples, seed: int) -> None:
        self._config = config
        self._data = data
        self._sampler = Sampler(
            num_samples=config.train_samples, global_batch=config.global_batch, seed=seed
        )

    def first(self, rank: int) -> int:
        """Return step 0."""
        return 0

    def fetch(self, rank: int, place: Any) -> tuple[Batch, int]:
        """Return the micro-batch of a rank at a step, and the next step."""
        step = int(place)
        indices = self._sampler.at(step, rank, self._config.ranks)
        return self._data.batch(indices, visible=self._config.curriculum.visible(step)), step + 1


class LongerTask:
    """A run of ``models.train`` whose ranks are logical workers; an ``executor.task.Task``."""

    def __init__(
        self,
        config: TrainConfig,
        data: Samples,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        network: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        network = build(config, seed) if network is None else network
        self._state = config.state(network.to(self.device), seed, device=self.device)
        self.source = StepSource(config, data, seed)
        self.num_workers = config.ranks
        self.seed = seed
        self.scale = 1.0
        # micro_step seeds torch's generator itself and puts it back: it holds nothing of a rank.
        self.generators: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._state.step

    @step.setter
    def step(self, step: int) -> None:
        self._state.step = step

    @property
    def tables(self) -> TableSet | None:
        """The four tables."""
        return self._state.tables

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return the network's parameters."""
        return tuple(self._state.network.parameters())

    def buffers(self) -> Mapping[str, Tensor]:
        """Return nothing: LONGER has no state that depends on the rank."""
        return {}

    def ids(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the ids of events, candidates, users and cross features."""
        return {
            "item": torch.cat([batch.item, batch.candidate_item]),
            "category": torch.cat([batch.category, batch.candidate_category]),
            "user": batch.user,
            "cross": batch.cross.reshape(-1),
        }

    def micro_step(self, rank: int, batch: Any) -> Gradients:
        """Return the gradients of one rank's share. Raises ModelError for a loss not finite."""
        part = micro_step(self._state, batch.to(self.device), rank, self.config.global_batch)
        return Gradients(loss=part.loss.cpu(), dense=part.dense, sparse=part.sparse)

    def apply(self, total: Gradients) -> None:
        """Update network and tables. Raises ModelError, unchanged, if something is not finite."""
        apply_step(self._state, total)

    def state(self) -> dict[str, Tensor]:
        """Return network, optimizer and table columns by name."""
        found = dense_state(self._state)
        for name, table in sorted(self._state.tables.tables.items()):
            held = table.state()
            found |= {f"table/{name}/{column}": getattr(held, column) for column in _COLUMNS}
        return found

    @torch.no_grad()
    def restore(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Become a saved state. Raises ExecutorError or ModelError, unchanged, if it cannot be."""
        state = self._state
        named = dict(state.network.named_parameters())
        wanted = {f"network/{n}": v for n, v in state.network.state_dict().items()}
        if any(name.startswith("optimizer/") for name in arrays):
            for name, parameter in named.items():
                wanted |= {f"optimizer/{name}/{moment}": parameter for moment in _MOMENTS[1:]}
                wanted[f"optimizer/{name}/step"] = torch.zeros(())
        check_shapes(wanted, {n: a for n, a in arrays.items() if not n.startswith("table/")})
        tables = {
            name: TableState(**{c: arrays[f"table/{name}/{c}"] for c in _COLUMNS})
            for name in state.tables.tables
        }
        for name, held in tables.items():
            state.tables.tables[name].check(held)
        for name, held in tables.items():
            state.tables.tables[name].restore(held)
        state.tables.step = step - 1
        state.tables.discard()
        for name, live in state.network.state_dict().items():
            live.copy_(arrays[f"network/{name}"])
        state.optimizer.state.clear()
        for name, parameter in named.items():
            if f"optimizer/{name}/step" in arrays:
                state.optimizer.state[parameter] = {
                    moment: arrays[f"optimizer/{name}/{moment}"]
                    if moment == "step"
                    else arrays[f"optimizer/{name}/{moment}"].to(parameter.device)
                    for moment in _MOMENTS
                }
        state.step = step
