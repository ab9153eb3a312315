"""Whether sums are finite, looked at while they are in a core's cache.

Whoever adds up a piece of a gradient adds up the piece itself as well: that sum is finite only if
every number is. It may overflow although they all are, so what is found here is *seen to be finite*
or *not seen*, and the task looks at what was not seen with care (``Task.apply``).

Leaves out: GPUs, where one look at everything at the end is less than a kernel for every piece.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Look:
    """A look at the ``numbers`` sums of a bucket, piece by piece; each is to be shown once."""

    def __init__(self, numbers: int, device: torch.device) -> None:
        self._numbers = numbers
        self._on = device.type == "cpu"
        self._shown = 0
        self._sum = 0.0  # neither NaN nor an infinity goes away again

    def begin(self) -> None:
        """Forget what was shown."""
        self._shown, self._sum = 0, 0.0

    def at(self, piece: Tensor) -> None:
        """Look at some of the sums, as they are to stay."""
        if self._on:
            self._shown += piece.numel()
            self._sum += piece.sum().item()

    @property
    def finite(self) -> bool:
        """Whether all of them have been seen to be finite."""
        return self._on and self._shown == self._numbers and math.isfinite(self._sum)
