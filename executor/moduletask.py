"""Any ``nn.Module`` with a torch optimizer, as a task: what DistributedDataParallel would train.

The loss of a rank is the mean over its own batch; the gradient of a step is the mean over ranks:
their sum times 1 / num_workers. DistributedDataParallel (torch, ``reducer.cpp``) multiplies each
gradient by 1 / world size and sums then; with powers of two the bits are the same.

Buffers that a forward pass changes depend on the rank: each rank sees its own batches. Running
statistics of batch and instance normalisation are known, and kept per rank (torch's
DistributedDataParallel with ``broadcast_buffers=False`` does the same; its default copies those of
rank 0 over all others). Any other buffer that changes, tensor attribute that is replaced or number
that is counted in a module is refused by name in the first micro-step, unless it is a buffer that
is declared in ``rank_buffers``.

Leaves out: parameters without a gradient on a rank count as zero there; learning-rate schedulers
with a state (a schedule is a function of the step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from executor.context import GENERATORS
from executor.errors import ExecutorError
from executor.task import Source, check_shapes
from models.sparse.tableset import TableSet
from models.train.step import Gradients

Loss = Callable[[nn.Module, Any], Tensor]


class ModuleTask:
    """A module, its optimizer, its data and its loss; an ``executor.task.Task``.

    ``schedule``: what the learning rates are multiplied by at step 0, 1, ...; ``rank_buffers``:
    names of buffers that a forward pass changes, beside running statistics. Raises ExecutorError
    for a module with SyncBatchNorm, or an optimizer of other parameters.
    """

    def __init__(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        source: Source,
        loss: Loss,
        num_workers: int,
        seed: int,
        device: torch.device | str = "cpu",
        schedule: Callable[[int], float] | None = None,
        generators: tuple[str, ...] = GENERATORS,
        rank_buffers: tuple[str, ...] = (),
    ) -> None:
        if num_workers < 1:
            raise ExecutorError("no logical worker", value=num_workers, expected="1 or more")
        self.module = module
        self.optimizer = optimizer
        self.source = source
        self.loss = loss
        self.num_workers = num_workers
        self.seed = seed
        self.device = torch.device(device)
        self.schedule = schedule
        self.generators = generators
        self.step = 0
        self.scale = 1.0 / num_workers
        self.tables: TableSet | None = None
        self._named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._of_rank = _rank_dependent(module, rank_buffers)
        self._base_lr = [group["lr"] for group in optimizer.param_groups]
        self._checked = False
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if odd := [n for n, p in self._named.items() if id(p) not in held]:
            raise ExecutorError("the optimizer does not hold a parameter", where=odd[0])

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that are trained."""
        return tuple(self._named.values())

    def buffers(self) -> Mapping[str, Tensor]:
        """Return the live buffers that depend on the rank."""
        return self._of_rank

    def ids(self, batch: Any) -> Mapping[str, Tensor]:
        """Return nothing: there are no tables."""
        return {}

    def micro_step(self, rank: int, batch: Any) -> Gradients:
        """Return the gradients of the mean loss of one batch.

        Raises ExecutorError for state that a rank changes and the engine would not keep.
        """
        if not self.module.training:  # asked of the whole, and said to every part of it
            self.module.train()
        before = None if self._checked else _marks(self.module)
        try:
            loss = self.loss(self.module, batch)
            torch.autograd.backward(loss)
            dense = tuple(
                torch.zeros_like(p) if p.grad is None else p.grad for p in self._named.values()
            )
        finally:
            for parameter in self._named.values():
                parameter.grad = None
        if before is not None:
            _refuse_changes(before, _marks(self.module), set(self._of_rank))
            self._checked = True
        # On a GPU nobody waits for the loss here: the next micro-batch is launched meanwhile.
        return Gradients(loss=loss.detach().double(), dense=dense, sparse={})

    def apply(self, total: Gradients) -> None:
        """Update the parameters. Raises ExecutorError for a gradient that is not finite."""
        if not total.finite:
            self._check_finite(total.dense)
        for parameter, gradient in zip(self._named.values(), total.dense, strict=True):
            parameter.grad = gradient
        if self.schedule is not None:
            scale = self.schedule(self.step)
            for group, lr in zip(self.optimizer.param_groups, self._base_lr, strict=True):
                group["lr"] = lr * scale
        self.optimizer.step()
        for parameter in self._named.values():
            parameter.grad = None
        self.step += 1

    def _check_finite(self, gradients: Sequence[Tensor]) -> None:
        # A norm is NaN or infinite if a number is; it may be so too if all are finite and large.
        norms = torch._foreach_norm(list(gradients))
        if not norms or bool(torch.isfinite(torch.stack(norms)).all()):
            return
        for name, gradient in zip(self._named, gradients, strict=True):
            if not bool(torch.isfinite(gradient).all()):
                raise ExecutorError(
                    "gradient is not finite",
                    where=f"step {self.step}, {name}",
                    expected="finite numbers; nothing was changed",
                )

    def state(self) -> dict[str, Tensor]:
        """Return parameters, shared buffers and the optimizer's state, by name."""
        found = {
            f"network/{name}": value
            for name, value in self.module.state_dict(keep_vars=False).items()
            if name not in self._of_rank
        }
        for name, parameter in self._named.items():
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if value is None:
                    continue
                if not isinstance(value, Tensor):
                    raise ExecutorError(
                        "the optimizer keeps what is not a tensor",
                        where=f"{name}, {key}",
                        value=value,
                        expected="one of torch's optimizers that keep tensors",
                    )
                found[f"optimizer/{name}/{key}"] = value
        return found

    @torch.no_grad()
    def restore(self, step: int, arrays: Mapping[str, Tensor]) -> None:
        """Become a saved state. Raises ExecutorError, unchanged, if it is of another module."""
        network = {
            f"network/{name}": value
            for name, value in self.module.state_dict().items()
            if name not in self._of_rank
        }
        check_shapes(network, {n: a for n, a in arrays.items() if n.startswith("network/")})
        moments: dict[str, dict[str, Tensor]] = {}
        for name, value in arrays.items():
            if name.startswith("optimizer/"):
                owner, _, key = name.removeprefix("optimizer/").rpartition("/")
                if owner not in self._named:
                    raise ExecutorError("the state of another task", value=name)
                moments.setdefault(owner, {})[key] = value
        for name, live in network.items():
            live.copy_(arrays[name])
        self.optimizer.state.clear()
        for name, state in moments.items():
            parameter = self._named[name]
            self.optimizer.state[parameter] = {
                # A count of steps is a scalar that torch keeps on the CPU.
                key: value if value.dim() == 0 else value.to(parameter.device)
                for key, value in state.items()
            }
        self.step = step


def _rank_dependent(module: nn.Module, declared: tuple[str, ...]) -> dict[str, Tensor]:
    """Live buffers that a forward pass changes: running statistics, and the declared ones."""
    buffers = dict(module.named_buffers())
    for name in declared:
        if name not in buffers:
            raise ExecutorError("no such buffer", where="rank_buffers", value=name)
    found = {name: buffers[name] for name in declared}
    for path, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise ExecutorError(
                "exchanges statistics inside a micro-batch",
                where=f"module {path!r} (SyncBatchNorm)",
                expected="BatchNorm, whose statistics are kept per rank",
            )
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            prefix = f"{path}." if path else ""
            for name, buffer in part.named_buffers(recurse=False):
                found[f"{prefix}{name}"] = buffer
    return dict(sorted(found.items()))


def _marks(module: nn.Module) -> dict[tuple[str, str], object]:
    """What tells whether a module's own state changed: versions of tensors, values of numbers."""
    marks: dict[tuple[str, str], object] = {}
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            marks[path, name] = (id(buffer), buffer._version)
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                marks[path, name] = (id(value), value._version)
            elif isinstance(value, bool | int | float | str):
                marks[path, name] = value
    return marks


def _refuse_changes(
    before: Mapping[tuple[str, str], object],
    after: Mapping[tuple[str, str], object],
    known: set[str],
) -> None:
    for path, name in sorted(before.keys() | after.keys()):
        full = f"{path}.{name}" if path else name
        if before.get((path, name)) != after.get((path, name)) and full not in known:
            raise ExecutorError(
                "a micro-batch changes state that depends on the rank and is not kept per rank",
                where=f"module {path!r}, {name}",
                expected="a buffer named in rank_buffers, or a module without such state",
            )
