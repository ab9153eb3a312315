"""What a network is worth on samples it is not trained on. Nothing of the training state changes.

Look-ups in evaluation insert and count no id, dropout is off, and modes are put back afterwards, so
a run that is evaluated more often has the same bits. Batches are those that are asked for, in
order; the metrics are exact (``models.train.metrics``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.data.collate import Samples
from models.errors import ModelError
from models.sparse.tableset import TableSet
from models.train.metrics import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``auc`` with its ``auc_deviation`` over samples, and ``logloss`` in nats, of ``samples``.

    AUC is NaN where one class is missing, its deviation where there are less than two of one.
    """

    samples: int
    auc: float
    auc_deviation: float
    logloss: float


def evaluate(
    network: nn.Module,
    tables: TableSet,
    data: Samples,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    batch: int = 1024,
    visible: int | None = None,
    device: torch.device | str = "cpu",
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Score the samples ``indices`` of ``data``, ``batch`` at a time, and return the metrics.

    ``visible``: the newest events that are seen, None: all. ``between`` is called before each batch
    and may raise to stop. Raises ModelError for no samples, for a logit that is NaN, and what the
    data and the network raise.
    """
    if not len(indices) or batch < 1:
        raise ModelError(
            "nothing to evaluate",
            where="evaluation",
            value=f"{len(indices)} samples in batches of {batch}",
            expected="at least one sample and batches of one or more",
        )
    scores = Scores()
    with evaluating(network, tables):
        for first in range(0, len(indices), batch):
            if between is not None:
                between()
            part = data.batch(indices[first : first + batch], visible=visible).to(device)
            scores.add(network(part, tables), part.label)
    return Evaluation(
        samples=len(scores),
        auc=scores.auc(),
        auc_deviation=scores.auc_deviation(),
        logloss=scores.logloss(),
    )


@contextmanager
def evaluating(network: nn.Module, tables: TableSet) -> Iterator[None]:
    """Switch off gradients, dropout and remembered look-ups; put all back at the end."""
    before = network.training, tables.training
    network.eval()
    tables.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(before[0])
        tables.training = before[1]
