"""Row-wise optimizers: a few numbers of state beside each row.

``RowAdagrad`` keeps one scalar h per row::

    h += mean(g^2);  w -= lr g / (sqrt(h) + eps)

Adagrad (Duchi, Hazan and Singer, JMLR 2011) with the accumulator averaged over the row, as
production recommenders have it (TorchRec/FBGEMM ``EXACT_ROWWISE_ADAGRAD``). ``RowAdam`` keeps the
first moment m per component and one second moment v per row (FBGEMM ``PARTIAL_ROWWISE_ADAM``)::

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) mean(g^2)
    w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

where t counts the updates *of this row*, not the steps of the run, so that a row that turns up late
is corrected like any other; a step that does not touch a row changes nothing of it (no decay). With
dim = 1, and rows touched at every step, both are torch's dense Adagrad and Adam.

Only add, multiply, divide and square root are used, one operation at a time, and the mean is a
halving sum: all are rounded the same on every IEEE device, so there is nothing left to reorder.
b1^t and b2^t are kept as running products for that reason (a power function is not exact). The
square root is taken in float64 and rounded: torch's own in float32 is a vector library's on some
CPUs, and off by one unit for one value in 140 there (seen with MKL 2024.2, against CUDA and IEEE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.errors import ModelError


class RowOptimizer(Protocol):
    """What a table asks of its optimizer. Values are plain dataclasses, kept in saved states."""

    def state_width(self, dim: int) -> int:
        """Return the floats of state per row."""
        ...

    def start(self, rows: int, dim: int) -> Tensor:
        """Return the state (rows, state_width) float32 of rows never updated, on the CPU."""
        ...

    def step(self, weight: Tensor, state: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Return new (R, dim) weights and (R, state_width) state; changes none of its inputs."""
        ...

    @property
    def lr(self) -> float:
        """The learning rate."""
        ...


def root(h: Tensor) -> Tensor:
    """Return the square root of float32 values, correctly rounded.

    A float64 root that errs by one unit still rounds to the right float32: the root of a number of
    24 bits is never nearer than 2^-51, relatively, to the middle between two numbers of 24 bits.
    """
    return torch.sqrt(h.double()).float()


def mean_square(grad_RD: Tensor) -> Tensor:  # noqa: N803
    """Return the mean of squares of each row, (R, 1), by a halving sum in fixed order."""
    dim = grad_RD.shape[1]
    square = grad_RD * grad_RD
    while (width := square.shape[1]) > 1:
        half = (width + 1) // 2
        # In place: the middle column of an odd number stays as it is.
        square[:, : width - half] += square[:, half:]
        square = square[:, :half]
    # By a tensor: CUDA multiplies by the rounded inverse of a plain number, which is another mean.
    return square / torch.full_like(square[:1], dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAdagrad:
    """Row-wise Adagrad. ``start_h``: the accumulator of a new row."""

    lr: float = 0.05
    eps: float = 1e-8
    start_h: float = 0.0

    def __post_init__(self) -> None:
        _positive("RowAdagrad", lr=self.lr, eps=self.eps)
        if not 0 <= self.start_h < float("inf"):
            raise ModelError(
                "bad setting", where="RowAdagrad.start_h", value=self.start_h, expected="0 or more"
            )

    def state_width(self, dim: int) -> int:
        """Return 1: h."""
        return 1

    def start(self, rows: int, dim: int) -> Tensor:
        """Return (rows, 1) of ``start_h``."""
        return torch.full((rows, 1), self.start_h)

    def step(self, weight: Tensor, state: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Return the updated rows and state."""
        h = state + mean_square(grad)
        return weight - (grad * lr).div_(root(h) + self.eps), h


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAdam:
    """Row-wise Adam. State of a row: m (dim), v, b1^t, b2^t."""

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _positive("RowAdam", lr=self.lr, eps=self.eps)
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            if not 0 <= beta < 1:
                raise ModelError(
                    "bad setting", where=f"RowAdam.{name}", value=beta, expected="0 <= beta < 1"
                )

    def state_width(self, dim: int) -> int:
        """Return dim + 3."""
        return dim + 3

    def start(self, rows: int, dim: int) -> Tensor:
        """Return zeros for the moments and ones for the powers."""
        state = torch.zeros(rows, dim + 3)
        state[:, dim + 1 :] = 1.0
        return state

    def step(self, weight: Tensor, state: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Return the updated rows and state."""
        dim = grad.shape[1]
        m, v = state[:, :dim], state[:, dim : dim + 1]
        m = m * self.beta1 + grad * (1 - self.beta1)
        v = v * self.beta2 + mean_square(grad) * (1 - self.beta2)
        power1 = state[:, dim + 1 : dim + 2] * self.beta1
        power2 = state[:, dim + 2 :] * self.beta2
        scale = root(v / (1 - power2)) + self.eps
        weight = weight - (m / (1 - power1)).mul_(lr).div_(scale)
        return weight, torch.cat((m, v, power1, power2), dim=1)


def _positive(where: str, **settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ModelError(
                "bad setting", where=f"{where}.{name}", value=value, expected="more than 0"
            )
