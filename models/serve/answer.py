"""What a service answers: a history that is encoded, or scores, and by which version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A history is encoded: by which version, how long it is, what it takes, was it there already.

    ``events`` are all that the history now has.
    """

    version: int
    events: int
    held_bytes: int
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Logits (Q,) of the candidates, in their order; ``cached``: the history was encoded before."""

    version: int
    events: int
    logits: NDArray[np.floating[Any]]
    cached: bool

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Probabilities of a positive label (Q,)."""
        return np.exp(-np.logaddexp(0.0, -self.logits.astype(np.float64)))
