"""What the engine trains, seen from the engine: the ``Task`` protocol, and how a task is named.

A task is one job's model, data and optimizer on one device. It has ``num_workers`` logical workers
for life. A step is: every rank's ``micro_step`` (state is only read), the sum of their gradients
over the tree of ``executor.tree``, ``apply``. Who does which rank is the engine's; the task must
not ask. Two tasks are ours, ``executor.moduletask`` (any ``nn.Module``) and
``executor.longertask`` (LONGER with its sparse tables).

Worker processes build their task themselves, from a ``TaskSpec``: the name of a factory and JSON
settings. So nothing of a task is pickled, and a checkpoint can say what it is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from executor.errors import ExecutorError
from models.sparse.tableset import TableSet
from models.train.step import Gradients


class Source(Protocol):
    """Where a logical worker's batches come from, as a pure function of its place.

    A place is JSON values: an index, an epoch, the state of a generator. Pure, so that a batch may
    be fetched ahead, by any thread, and again after a recovery.
    """

    def first(self, rank: int) -> Any:
        """Return the place of a rank before the first step."""
        ...

    def fetch(self, rank: int, place: Any) -> tuple[Any, Any]:
        """Return (batch, next place); must not draw from the process's generators."""
        ...


class Task(Protocol):
    """A job's model, data and optimizer on one device.

    ``step``: steps done. ``scale``: what each rank's dense gradient is multiplied by before it is
    summed. ``generators``: names of ``executor.context.GENERATORS`` that a micro-step draws from.
    """

    num_workers: int
    seed: int
    step: int
    scale: float
    generators: tuple[str, ...]
    source: Source
    device: torch.device

    @property
    def tables(self) -> TableSet | None:
        """The sparse tables, if there are any."""
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return the dense parameters, in the order of ``Gradients.dense``."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """Return the live buffers that depend on the rank, by name."""
        ...

    def ids(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the raw ids, by table, that a micro-step on this batch may look up."""
        ...

    def micro_step(self, rank: int, batch: Any) -> Gradients:
        """Return the gradients of one rank's micro-batch of this step; change no shared state."""
        ...

    def apply(self, total: Gradients) -> None:
        """Update the state with the sum over all ranks, and count the step.

        Raises a ValueError with the state as it was (a gradient that is not finite), or something
        else with the state in pieces.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all shared state by name, dense parts not copied.

        ``network/``: parameters and shared buffers; ``optimizer/``: its state by parameter;
        ``table/``: columns of the sparse tables in canonical order.
        """
        ...

    def restore(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Become the state of ``state()`` after ``step`` steps.

        The arrays are the task's from then on, which need not copy them: nobody else holds them.
        Raises a ValueError, with the state as it was, if it is the state of another task.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task by name: ``factory`` is ``"package.module:function"``, called with ``settings``.

    The function takes the settings as keywords (JSON values) and ``device``, and returns a task.
    The same spec makes the same task, bit for bit.
    """

    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, _, name = self.factory.partition(":")
        if not module or not name:
            raise ExecutorError(
                "not a factory", where="task", value=self.factory, expected="module:function"
            )
        try:
            json.dumps(dict(self.settings))
        except TypeError as error:
            raise ExecutorError(
                "settings are not JSON values", where=self.factory, value=str(error)
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return {"factory": self.factory, "settings": json.loads(json.dumps(dict(self.settings)))}

    def build(self, device: torch.device | str = "cpu") -> Task:
        """Build the task. Raises ExecutorError for a factory that is not there."""
        module, _, name = self.factory.partition(":")
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ExecutorError("no such factory", where=self.factory, value=str(error)) from error
        task: Task = factory(device=torch.device(device), **self.settings)
        return task


def check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ExecutorError unless the same names have the same shapes and dtypes."""
    if wanted.keys() != found.keys():
        odd = sorted(wanted.keys() ^ found.keys())[0]
        raise ExecutorError("the state of another task", value=odd)
    for name, value in wanted.items():
        if (found[name].shape, found[name].dtype) != (value.shape, value.dtype):
            raise ExecutorError(
                "a tensor of another shape",
                where=name,
                value=f"{found[name].dtype} {tuple(found[name].shape)}",
                expected=f"{value.dtype} {tuple(value.shape)}",
            )
