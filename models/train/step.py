"""One synchronous step: forward, loss, backward, and the update of dense and sparse parameters.

The batch of a step is given as micro-batches, one for each *logical rank* 0..V-1. V belongs to the
run, not to the machine: who computes which rank, and how many at once, must not change a bit. So a
step has three parts, which one process runs one after another and several may share out::

    part = micro_step(state, batch, rank, samples)      # one rank's gradients; state is only read
    total = reduced(parts)                              # over ranks, along one fixed binary tree
    loss = apply_step(state, total)                     # dense AdamW and row-wise sparse update

Dense gradients are summed along the tree of ``models.sparse.gradients``: level by level the nodes
2 j and 2 j + 1 become node j, an absent one adds nothing. A rank's gradient is that of (sum of its
losses) / (samples of the whole step), so the sum over ranks is the gradient of the mean loss.

A step is a pure function of (batches, state): dropout is drawn from (seed, step, rank), and nothing
else is random. If anything is not finite the step is refused, and the state is what it was. The
paper gives no optimizer; AdamW for the dense side is our choice.

Leaves out: who sends partial sums to whom (the executor's), and clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.batch import Batch
from models.data.philox import Stream, words
from models.errors import ModelError
from models.sparse.gradients import SparseGradient, joined
from models.sparse.tableset import TableSet


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseOptimizer:
    """AdamW (Loshchilov and Hutter, ICLR 2019) and the schedule of both learning rates.

    ``weight_decay`` is for parameters of two dimensions or more. The rates rise linearly over
    ``warmup_steps`` and, unless ``decay_steps`` is None, fall along a cosine to ``final_scale`` of
    their value at that step and stay there; the tables' rate follows the same scale. Raises
    ModelError for values out of range.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_scale: float = 0.0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("lr", 0 < self.lr < math.inf, "more than 0"),
            ("beta1", 0 <= self.beta1 < 1, "0 <= beta1 < 1"),
            ("beta2", 0 <= self.beta2 < 1, "0 <= beta2 < 1"),
            ("eps", 0 < self.eps < math.inf, "more than 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            (
                "decay_steps",
                self.decay_steps is None or self.decay_steps > self.warmup_steps,
                "more than warmup_steps, or None",
            ),
            ("final_scale", 0 <= self.final_scale <= 1, "0 to 1"),
        ):
            if not ok:
                raise ModelError(
                    "bad setting", where=name, value=getattr(self, name), expected=expected
                )

    def scale(self, step: int) -> float:
        """Return by what the learning rates are multiplied at step 0, 1, ..."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay_steps is None:
            return 1.0
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.final_scale + (1 - self.final_scale) * cosine

    def build(self, network: nn.Module) -> torch.optim.AdamW:
        """Return the optimizer of a network's parameters."""
        parameters = list(network.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
        )


@dataclass(slots=True, kw_only=True)
class State:
    """All that a step reads and changes: ``step`` steps are done, the next has this number.

    ``schedule`` says how ``optimizer`` was built; ``seed`` is that of dropout.
    """

    network: nn.Module
    tables: TableSet
    schedule: DenseOptimizer
    optimizer: torch.optim.AdamW
    seed: int
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What one logical rank, or several together, contribute to a step.

    ``loss``: the sum of the samples' losses, float64, over the samples of the whole step; ``dense``
    as of ``network.parameters()``; ``sparse`` by table. ``finite``: all of ``dense`` has been seen
    to be finite, which need not be looked at again.
    """

    loss: Tensor
    dense: tuple[Tensor, ...]
    sparse: Mapping[str, SparseGradient]
    finite: bool = False


def micro_step(state: State, batch: Batch, rank: int, samples: int) -> Gradients:
    """Return the gradients of one rank's share of a step of ``samples`` samples in all.

    The state is only read. Parameters that no sample reached have a gradient of zero. Raises
    ModelError, with nothing changed, for a loss that is not finite, and as the network does.
    """
    if not 0 < len(batch) <= samples:
        raise ModelError(
            "no share of the step",
            where=f"step {state.step}, rank {rank}",
            value=f"{len(batch)} samples",
            expected=f"1 to {samples}",
        )
    state.network.train()
    state.tables.training = True
    state.tables.discard()
    try:
        with _dropout_drawn_for(state, rank, batch.label.device):
            logits = state.network(batch, state.tables)
        loss = _sum_of_losses(logits, batch.label) / samples
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                "the loss is not finite",
                where=f"step {state.step}, rank {rank}",
                value=float(loss.detach()),
                expected="a finite loss; nothing was changed (a lower learning rate may help)",
            )
        _clear(state.network)
        torch.autograd.backward(loss)
        dense = tuple(
            torch.zeros_like(p) if p.grad is None else p.grad for p in state.network.parameters()
        )
        sparse = state.tables.gradients(rank)
    finally:
        _clear(state.network)
        state.tables.discard()
    return Gradients(loss=loss.detach().double(), dense=dense, sparse=sparse)


def reduced(parts: Mapping[int, Gradients]) -> Gradients:
    """Sum the parts by rank along the binary tree over ranks; the parts are left as they were.

    The result does not depend on the order of the mapping. Raises ModelError if there are none.
    """
    if not parts:
        raise ModelError("a step without a micro-batch", expected="at least one")
    level = {rank: (part.loss, *part.dense) for rank, part in parts.items()}
    while len(level) > 1:
        above: dict[int, tuple[Tensor, ...]] = {}
        for number in sorted(level):
            left = above.get(number >> 1)
            here = level[number]
            above[number >> 1] = (
                here if left is None else tuple(a + b for a, b in zip(left, here, strict=True))
            )
        level = above
    ((loss, *dense),) = level.values()
    names = sorted({name for part in parts.values() for name in part.sparse})
    sparse = {
        name: joined([part.sparse[name] for part in parts.values() if name in part.sparse])
        for name in names
    }
    return Gradients(loss=loss, dense=tuple(dense), sparse=sparse)


def apply_step(state: State, total: Gradients) -> float:
    """Update dense and sparse parameters, count the step, and return its mean loss.

    Raises ModelError, with the state as it was, for a gradient that is not finite.
    """
    if not total.finite:
        _check_finite(state, total)
    scale = state.schedule.scale(state.step)
    # The tables refuse a bad step before they change anything; the dense side cannot fail then.
    state.tables.apply(state.step, total.sparse, lr_scale=scale)
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule.lr * scale
    for parameter, gradient in zip(state.network.parameters(), total.dense, strict=True):
        parameter.grad = gradient
    state.optimizer.step()
    _clear(state.network)
    state.step += 1
    return float(total.loss)


def train_step(state: State, batches: Sequence[Batch]) -> float:
    """Do one step with the micro-batches of ranks 0, 1, ..., and return its mean loss.

    Ranks whose micro-batch is empty contribute nothing. Raises ModelError, with the state as it
    was, if there is no sample at all, or if a loss or gradient is not finite; the text names the
    step.
    """
    samples = sum(map(len, batches))
    parts = {
        rank: micro_step(state, batch, rank, samples)
        for rank, batch in enumerate(batches)
        if len(batch)
    }
    if not parts:
        raise ModelError(
            "an empty batch", where=f"step {state.step}", expected="at least one sample"
        )
    return apply_step(state, reduced(parts))


def _sum_of_losses(logits: Tensor, label: Tensor) -> Tensor:
    """The sum of binary cross-entropies in float32 at least."""
    logits = logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits
    return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="sum")


@contextmanager
def _dropout_drawn_for(state: State, rank: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators from (seed, step, rank), and put them back afterwards."""
    high, low, _, _ = words(state.seed, Stream.DROPOUT, state.step, rank)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device.index]):
        torch.manual_seed(int(high) << 31 | int(low) >> 1)
        yield


def _clear(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = None


def _check_finite(state: State, total: Gradients) -> None:
    # Extremes are NaN where anything is, and are asked for all at once: one wait for a device.
    extremes = [end for g in total.dense if g.numel() for end in torch.aminmax(g)]
    if not extremes or bool(torch.isfinite(torch.stack(extremes)).all()):
        return
    for (name, _), gradient in zip(state.network.named_parameters(), total.dense, strict=True):
        # One pass, and no mask as large: the extremes of what holds a NaN are NaN.
        if gradient.numel() and not bool(
            torch.isfinite(torch.stack(torch.aminmax(gradient))).all()
        ):
            raise ModelError(
                "gradient is not finite",
                where=f"step {state.step}, {name}",
                expected="finite numbers; nothing was changed",
            )
