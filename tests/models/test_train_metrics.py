"""AUC and log loss: against a count of pairs, with ties, whatever the order or the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelError
from models.train.metrics import Scores, auc, auc_deviation, logloss

# Few values, so that ties are common; NaN is refused elsewhere, infinities are ordered like others.
scored = st.lists(
    st.tuples(st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 0.5, 3.0, math.inf]), st.booleans()),
    max_size=40,
)


def pairs(rows: list[tuple[float, bool]]) -> float:
    """AUC by its definition."""
    above = [s for s, label in rows if label]
    below = [s for s, label in rows if not label]
    wins = sum((a > b) + (a == b) / 2 for a in above for b in below)
    return wins / (len(above) * len(below)) if above and below else math.nan


@given(scored)
def test_auc_is_the_count_of_pairs(rows: list[tuple[float, bool]]) -> None:
    scores, labels = [s for s, _ in rows], [label for _, label in rows]
    assert auc(scores, labels) == pytest.approx(pairs(rows), abs=0, rel=1e-15, nan_ok=True)


@given(scored, st.integers(0, 40))
def test_batches_and_order_change_no_bit(rows: list[tuple[float, bool]], cut: int) -> None:
    rows = [(s, label) for s, label in rows if math.isfinite(s)]
    whole, split = Scores(), Scores()
    for into, parts in ((whole, [rows]), (split, [rows[cut:][::-1], rows[:cut]])):
        for part in parts:
            into.add(torch.tensor([s for s, _ in part]), torch.tensor([float(y) for _, y in part]))
    assert len(whole) == len(split) == len(rows)
    for name in ("auc", "logloss"):
        a, b = getattr(whole, name)(), getattr(split, name)()
        assert a == b or (math.isnan(a) and math.isnan(b))


def test_all_tied_is_a_half_and_one_class_is_nan() -> None:
    assert auc([1.0] * 5, [0, 1, 1, 0, 1]) == 0.5
    assert math.isnan(auc([1.0, 2.0], [1, 1]))
    assert math.isnan(auc([], []))
    assert math.isnan(auc_deviation([1.0, 2.0, 3.0], [1, 0, 0]))
    assert math.isnan(logloss([], []))


def test_the_deviation_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=60), 1)
    labels = rng.random(60) < 0.4
    x, y = scores[labels], scores[~labels]
    kernel = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    expected = kernel.mean(1).var(ddof=1) / len(x) + kernel.mean(0).var(ddof=1) / len(y)
    assert auc_deviation(scores, labels) == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_the_deviation_is_the_spread_of_auc() -> None:
    rng = np.random.default_rng(4)
    found, said = [], []
    for _ in range(300):
        labels = np.arange(80) % 2
        scores = rng.normal(size=80) + labels
        found.append(auc(scores, labels))
        said.append(auc_deviation(scores, labels))
    assert np.std(found) == pytest.approx(np.mean(said), rel=0.15)


def test_log_loss_is_finite_for_any_logit() -> None:
    assert logloss([0.0], [1]) == pytest.approx(math.log(2))
    assert logloss([1000.0, -1000.0], [0, 1]) == 1000.0
    assert logloss([1000.0, -1000.0], [1, 0]) == 0.0


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([0.0, math.nan], [0, 1], "score of sample 1: is NaN"),
        ([0.0, 1.0], [0, 2], "sample 1: is no label"),
        ([0.0, 1.0], [0], "do not belong together"),
    ],
)
def test_bad_columns_are_refused(scores: list[float], labels: list[int], said: str) -> None:
    for metric in (auc, auc_deviation, logloss):
        with pytest.raises(ModelError, match=said):
            metric(scores, labels)
