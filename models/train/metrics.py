"""AUC and log loss of a set of scores, exact whatever the order in which they came.

AUC is the share of (positive, negative) pairs in which the positive has the higher score, a tie
counting one half (Hanley and McNeil, Radiology 1982): counted from ranks in whole numbers and
divided once. Its deviation is that of DeLong, DeLong and Clarke-Pearson (Biometrics 1988), from the
same ranks (Sun and Xu, IEEE Signal Processing Letters 2014). Log loss is taken from logits, so it
is finite for any finite logit, and summed with one rounding.

Exactness has a price: all scores are kept, twelve bytes a sample. Leaves out: AUC per user.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.errors import ModelError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the AUC of scores (n,) for labels (n,) of 0 and 1; NaN if one class is missing.

    Raises ModelError for scores that are NaN, other labels, or columns of different lengths.
    """
    score, label = _columns(scores, labels)
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return math.nan
    # Twice the ranks are whole numbers, so ties cost no rounding.
    doubled = int(_doubled_ranks(score)[label].sum()) - positives * (positives + 1)
    return doubled / (2 * positives * negatives)


def auc_deviation(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the standard deviation of ``auc`` over samples; NaN with less than two of a class.

    Raises ModelError as ``auc`` does.
    """
    score, label = _columns(scores, labels)
    positives = int(label.sum())
    negatives = len(label) - positives
    if positives < 2 or negatives < 2:
        return math.nan
    ranks = _doubled_ranks(score)
    # Of each sample: the share of the other class on its wrong or right side.
    above = (ranks[label] - _doubled_ranks(score[label])) / (2 * negatives)
    below = (ranks[~label] - _doubled_ranks(score[~label])) / (2 * positives)
    return math.sqrt(float(above.var(ddof=1)) / positives + float(below.var(ddof=1)) / negatives)


def logloss(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log P(label) in nats, from logits (n,); NaN for no samples.

    Raises ModelError as ``auc`` does.
    """
    logit, label = _columns(logits, labels)
    if not len(logit):
        return math.nan
    return math.fsum(np.logaddexp(0.0, np.where(label, -logit, logit))) / len(logit)


class Scores:
    """Logits and labels as they come, batch by batch; the metrics of all so far."""

    def __init__(self) -> None:
        self._logits: list[Floats] = []
        self._labels: list[NDArray[np.float32]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B,) and labels (B,)."""
        self._logits.append(logits.detach().to("cpu", torch.float64).numpy())
        self._labels.append(labels.detach().to("cpu", torch.float32).numpy())

    def __len__(self) -> int:
        return sum(map(len, self._logits))

    def auc(self) -> float:
        """Return the AUC; see the function of this name."""
        return auc(*self._together())

    def auc_deviation(self) -> float:
        """Return the AUC's deviation; see the function of this name."""
        return auc_deviation(*self._together())

    def logloss(self) -> float:
        """Return the log loss; see the function of this name."""
        return logloss(*self._together())

    def _together(self) -> tuple[Floats, Floats]:
        nothing = np.zeros(0)
        return np.concatenate([nothing, *self._logits]), np.concatenate([nothing, *self._labels])


def _columns(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    score = np.asarray(scores, dtype=np.float64)
    label = np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ModelError(
            "scores and labels do not belong together",
            value=(score.shape, label.shape),
            expected="two columns of one length",
        )
    if np.isnan(score).any():
        row = int(np.flatnonzero(np.isnan(score))[0])
        raise ModelError("is NaN", where=f"score of sample {row}", expected="a number")
    other = (label != 0) & (label != 1)
    if other.any():
        row = int(np.flatnonzero(other)[0])
        raise ModelError(
            "is no label", where=f"sample {row}", value=label[row].item(), expected="0 or 1"
        )
    return score, label.astype(np.bool_)


def _doubled_ranks(scores: Floats) -> NDArray[np.int64]:
    """Return twice the rank of each score, from 2; tied scores have the mean of their ranks."""
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled: NDArray[np.int64] = (2 * last - counts + 1)[group]
    return doubled
