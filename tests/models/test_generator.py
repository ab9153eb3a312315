"""The generator against its own law: nobody beats the Bayes AUC, and the Bayes score reaches it."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtr
from scipy.stats import rankdata

from models.batch import Batch
from models.data.bayes import tau_for_auc
from models.data.generator import Generator, GeneratorConfig
from models.errors import ModelError

SMALL = GeneratorConfig(length=64, categories=8, silent=8, decay=0.5)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pairs": {"pairs": True},
    "rare": {"base_rate": 0.1},
    "jagged": {"min_length": 0, "length_tail": 0.3},
    "distracted": {"distraction": 0.6, "item_noise": 0.3},
    "all": {"min_length": 4, "base_rate": 0.3, "pairs": True, "distraction": 0.5, "silent": 5},
}


def auc_and_sigma(score: NDArray[np.float64], label: NDArray[np.float32]) -> tuple[float, float]:
    """AUC with ties as halves, and its standard error (DeLong's, from placement values)."""
    positive, negative = score[label > 0], score[label == 0]
    ranks = rankdata(np.concatenate([positive, negative]))
    inside = np.concatenate([rankdata(positive), rankdata(negative)])
    above = (ranks - inside)[: len(positive)] / len(negative)
    below = 1 - (ranks - inside)[len(positive) :] / len(positive)
    variance = above.var() / len(positive) + below.var() / len(negative)
    return float(above.mean()), float(np.sqrt(variance))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_bayes_score_reaches_the_bayes_auc(name: str) -> None:
    generator = Generator(replace(SMALL, **VARIANTS[name]), seed=11)
    index = np.arange(30_000)
    label = generator.batch(index).label.numpy()
    rate = generator.config.base_rate
    assert abs(label.mean() - rate) < 3 * math.sqrt(rate * (1 - rate) / len(index))
    for visible in (16, 40, 64):
        posterior = generator.posterior(index, visible=visible)
        auc, sigma = auc_and_sigma(posterior, label)
        assert abs(auc - generator.bayes_auc(visible)) < 3 * sigma
        # The posterior is calibrated, and as good as the law says.
        spread = math.sqrt(float((posterior * (1 - posterior)).sum()))
        assert abs(float((label - posterior).sum())) < 3 * spread
        loss = -np.where(label > 0, np.log(posterior), np.log1p(-posterior))
        error = 3 * loss.std() / math.sqrt(len(index))
        assert abs(loss.mean() - generator.law.logloss(visible)) < error


def test_the_closed_form_at_the_published_setting() -> None:
    """L=1024, C=16, a0=64, tau=1.5, constant weights: the table of the generator's page."""
    config = GeneratorConfig(length=1024, categories=16, silent=64, decay=0.0, tau=1.5)
    generator = Generator(config, seed=1)
    for visible, closed in ((64, 0.5), (128, 0.5971), (256, 0.6695), (512, 0.7633), (1024, 0.9004)):
        assert generator.bayes_auc(visible, exact=False) == pytest.approx(closed, abs=5e-5)
        assert generator.bayes_auc(visible) == pytest.approx(closed, abs=2e-3)
    index = np.arange(2_000)
    label = generator.batch(index).label.numpy()
    for visible in (256, 1024):
        auc, sigma = auc_and_sigma(generator.posterior(index, visible=visible), label)
        assert abs(auc - generator.bayes_auc(visible, exact=False)) < 3 * sigma + 2e-3


def test_the_exact_auc_by_counting_every_history() -> None:
    """Four events, three categories: all 6^4 ways to match and to sign, by hand."""
    config = GeneratorConfig(length=4, categories=3, silent=1, decay=1.0, tau=1.2, base_rate=0.4)
    law = Generator(config, seed=0).law
    ways = list(itertools.product([0, 1, -1], repeat=4))
    chance = [math.prod(2 / 3 if w == 0 else 1 / 6 for w in way) for way in ways]

    def tail(k: int) -> float:
        return float(ndtr(k * law.lattice.step - law.threshold))

    weights = law.lattice.weights.tolist()
    total = [sum(w * s for w, s in zip(weights, way, strict=True)) for way in ways]
    rate = sum(p * tail(k) for p, k in zip(chance, total, strict=True))
    assert rate == pytest.approx(0.4, abs=1e-6)
    for visible in range(5):
        seen: dict[int, list[float]] = {}
        for way, p, k in zip(ways, chance, total, strict=True):
            key = sum(w * s for w, s in zip(weights[:visible], way[:visible], strict=True))
            mass = seen.setdefault(key, [0.0, 0.0])
            mass[0] += p * tail(k)
            mass[1] += p * (1 - tail(k))
        auc = 0.0
        for (one, (positive, _)), (other, (_, negative)) in itertools.product(
            seen.items(), seen.items()
        ):
            auc += positive * negative * (1.0 if one > other else 0.5 if one == other else 0.0)
        assert law.auc(visible) == pytest.approx(auc / (rate * (1 - rate)), abs=1e-6)


@settings(max_examples=20)
@given(
    categories=st.integers(1, 40),
    silent=st.integers(0, 30),
    decay=st.sampled_from([0.0, 0.5, 1.5]),
    tau=st.sampled_from([0.3, 1.5, 4.0]),
    pairs=st.booleans(),
)
def test_the_bound_is_half_then_rises_to_the_end(
    categories: int, silent: int, decay: float, tau: float, pairs: bool
) -> None:
    config = GeneratorConfig(
        length=34, categories=categories, silent=silent, decay=decay, tau=tau, pairs=pairs
    )
    generator = Generator(config, seed=0)
    for visible in (0, silent):
        assert generator.bayes_auc(visible) == 0.5
        assert generator.bayes_auc(visible, exact=False) == 0.5
    aucs = [generator.bayes_auc(v) for v in range(silent + silent % 2, 35, 2)]
    assert all(low < high for low, high in itertools.pairwise(aucs))
    assert generator.bayes_auc(10**6) == aucs[-1]


def test_the_exponent_of_the_power_law() -> None:
    """For a0 = 0 and decay < 1 the AUC above one half grows like length^((1 - decay) / 2)."""
    visible = np.array([1024, 2048, 4096])
    for decay, exponent in ((0.0, 0.5), (0.5, 0.25)):
        config = GeneratorConfig(length=8192, categories=8, decay=decay, tau=0.5)
        generator = Generator(config, seed=0)
        excess = [generator.bayes_auc(int(v)) - 0.5 for v in visible]
        slope = np.polyfit(np.log(visible), np.log(excess), 1)[0]
        assert slope == pytest.approx(exponent, abs=0.01)


def test_tau_for_a_wanted_auc() -> None:
    for auc, tau in ((0.75, 0.644), (0.85, 1.097), (0.90, 1.495)):
        assert tau_for_auc(auc) == pytest.approx(tau, abs=5e-4)
        generator = Generator(replace(SMALL, tau=tau_for_auc(auc)), seed=0)
        assert generator.bayes_auc(64, exact=False) == pytest.approx(auc, abs=1e-9)


def table_features(batch: Batch, length: int) -> NDArray[np.float64]:
    """Per age: the sign if the category is the candidate's, else 0: (B, length)."""
    row = torch.repeat_interleave(torch.arange(len(batch)), batch.lengths).numpy()
    age = (batch.age_s / 60.0).long().numpy()
    match = batch.category.numpy() == batch.candidate_category.numpy()[row]
    table = np.zeros((len(batch), length))
    table[row, age - 1] = np.where(match, 2.0 * batch.action.numpy() - 1, 0.0)
    return table


def fitted(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a ridge-regularised logistic regression."""

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x @ w
        value = float(np.logaddexp(0, z).sum() - z @ y + 0.5 * w @ w)
        return value, x.T @ (expit(z) - y) + w

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)


def test_a_fitted_model_stays_below_the_bound_and_near_it() -> None:
    generator = Generator(SMALL, seed=5)
    for visible in (8, 24, 64):
        train = generator.batch(np.arange(8_000), visible=visible)
        held = generator.batch(np.arange(8_000, 28_000), visible=visible)
        weights = fitted(table_features(train, 64), train.label.double().numpy())
        score = table_features(held, 64) @ weights
        auc, sigma = auc_and_sigma(score, held.label.numpy())
        assert auc < generator.bayes_auc(visible) + 3 * sigma
        assert auc > generator.bayes_auc(visible) - 0.02 - 3 * sigma


def test_with_pairs_no_action_alone_tells_anything() -> None:
    generator = Generator(replace(SMALL, pairs=True), seed=5)
    train, held = generator.batch(np.arange(8_000)), generator.batch(np.arange(8_000, 28_000))
    weights = fitted(table_features(train, 64), train.label.double().numpy())
    auc, sigma = auc_and_sigma(table_features(held, 64) @ weights, held.label.numpy())
    assert abs(auc - 0.5) < 3 * sigma
    # The product of partners tells what the law says: this is where the signal is.
    products = table_features(held, 64)[:, 0::2] * table_features(held, 64)[:, 1::2]
    shape = generator.law.lattice.weights[1::2]
    auc, sigma = auc_and_sigma(products @ shape, held.label.numpy())
    assert abs(auc - generator.bayes_auc(64)) < 3 * sigma


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2**40 - 1), max_size=6), st.sampled_from(sorted(VARIANTS)))
def test_a_sample_is_a_function_of_seed_and_index(indices: list[int], name: str) -> None:
    config = replace(SMALL, **VARIANTS[name])
    generator = Generator(config, seed=2)
    together = generator.batch(indices)
    assert same(together, Generator(config, seed=2).batch(indices))
    for place, index in enumerate(indices):
        alone = generator.batch([index])
        first, last = together.offsets[place : place + 2].tolist()
        for column in ("item", "category", "action", "age_s"):
            assert torch.equal(getattr(alone, column), getattr(together, column)[first:last])
        for column in ("candidate_item", "candidate_category", "user", "label", "cross"):
            assert torch.equal(getattr(alone, column), getattr(together, column)[place : place + 1])


def test_a_cut_view_is_the_newest_end_of_the_whole() -> None:
    generator = Generator(replace(SMALL, min_length=0, length_tail=0.0), seed=4)
    whole, cut = generator.batch(range(200)), generator.batch(range(200), visible=10)
    assert torch.equal(cut.lengths, whole.lengths.clamp(max=10))
    assert torch.equal(cut.label, whole.label)
    for b in range(200):
        size = int(cut.lengths[b])
        first, last = int(whole.offsets[b + 1]) - size, int(whole.offsets[b + 1])
        mine = slice(int(cut.offsets[b]), int(cut.offsets[b + 1]))
        assert torch.equal(cut.item[mine], whole.item[first:last])
        assert torch.equal(cut.age_s[mine], torch.arange(size, 0, -1).double() * 60)
    assert len(generator.batch([])) == 0
    assert generator.batch([3], visible=0).lengths.tolist() == [0]


def test_the_posterior_knows_only_what_is_visible() -> None:
    """A history of exactly ``visible`` events looks like the newest part of a longer one."""
    config = GeneratorConfig(length=8, categories=2, min_length=3, length_tail=0.0, decay=0.0)
    generator = Generator(config, seed=8)
    index = np.arange(3_000)
    batch = generator.batch(index, visible=5)
    row = torch.repeat_interleave(torch.arange(len(batch)), batch.lengths)
    match = batch.category == batch.candidate_category[row]
    signs = torch.where(match, 2 * batch.action - 1, 0)
    total = torch.zeros(len(batch), dtype=torch.int64).index_add_(0, row, signs)
    posterior = generator.posterior(index, visible=5)
    levels: dict[tuple[bool, int], set[float]] = {}
    for size, k, p in zip(batch.lengths.tolist(), total.tolist(), posterior.tolist(), strict=True):
        levels.setdefault((size < 5, k), set()).add(p)
    assert all(len(values) == 1 for values in levels.values())
    # Fewer events at the same sum are surer of it: nothing is hidden.
    assert min(levels[True, 2]) > min(levels[False, 2]) > 0.5


def test_lengths_follow_their_law() -> None:
    config = replace(SMALL, min_length=2, length_tail=0.5)
    lengths = Generator(config, seed=1).batch(range(20_000)).lengths.numpy()
    counts = np.bincount(lengths, minlength=65)
    expected = config.length_mass * 20_000
    assert counts[:2].sum() == 0
    assert float(((counts - expected)[2:] ** 2 / expected[2:]).sum()) < 62 + 4 * math.sqrt(2 * 62)


def test_items_belong_to_their_category_and_follow_zipf() -> None:
    config = replace(SMALL, items_per_category=16, zipf=1.0)
    batch = Generator(config, seed=1).batch(range(2_000))
    assert torch.equal(batch.item >> 20, batch.category)
    share = np.bincount((batch.item & 0xFFFFF).numpy(), minlength=16) / len(batch.item)
    law = 1 / np.arange(1, 17)
    assert np.abs(share - law / law.sum()).max() < 0.005
    noisy = Generator(replace(config, item_noise=0.25), seed=1).batch(range(2_000))
    strange = (noisy.item >> 20 != noisy.category).double().mean().item()
    assert strange == pytest.approx(0.25 * 7 / 8, abs=0.01)
    assert torch.equal(noisy.category, batch.category)
    assert torch.equal(noisy.label, batch.label)


def test_distractors_look_like_evidence_and_are_none() -> None:
    plain = Generator(SMALL, seed=9)
    generator = Generator(replace(SMALL, distraction=0.8), seed=9)
    batch = generator.batch(range(5_000))
    row = torch.repeat_interleave(torch.arange(5_000), batch.lengths)
    match = (batch.category == batch.candidate_category[row]).double()
    recent = batch.age_s <= 8 * 60
    assert match[recent].mean().item() == pytest.approx(0.8**2 * 7 / 8 + 1 / 8, abs=0.02)
    assert match[~recent].mean().item() == pytest.approx(1 / 8, abs=0.01)
    assert generator.bayes_auc(64) == plain.bayes_auc(64)
    assert generator.bayes_auc(8) == 0.5


def test_ids_come_and_go() -> None:
    config = replace(SMALL, items_per_category=4, churn_every=1_000)
    generator = Generator(config, seed=3)
    live = [set(generator.batch(range(t, t + 50)).item.tolist()) for t in range(0, 4_000, 250)]
    still = [len(live[0] & later) for later in live]
    # The whole catalogue is seen at once; a quarter of it is replaced every 250 samples.
    assert still[:6] == [32, 24, 16, 8, 0, 0]
    stable = Generator(replace(config, churn_every=0), seed=3)
    assert torch.equal(
        generator.batch(range(900)).item & (2**40 - 1), stable.batch(range(900)).item
    )


def test_one_history_serves_several_candidates() -> None:
    config = replace(SMALL, candidates_per_user=4, min_length=1, churn_every=6)
    generator = Generator(config, seed=3)
    batch = generator.batch(range(40))
    whole = [batch.item[a:b].tolist() for a, b in itertools.pairwise(batch.offsets.tolist())]
    assert all(whole[i] == whole[i - i % 4] for i in range(40))
    assert all(int(batch.user[i]) == int(batch.user[i - i % 4]) for i in range(40))
    assert len({tuple(h) for h in whole}) == 10
    assert len(set(batch.candidate_item.tolist())) > 10


def test_cross_features_are_ids_of_what_they_cross() -> None:
    batch = Generator(replace(SMALL, num_users=20), seed=3).batch(range(4_000))
    assert int(batch.cross.min()) >= 0
    newest = batch.category[batch.offsets[1:] - 1]
    for column, other in ((0, batch.user), (1, newest)):
        pairs = set(zip(other.tolist(), batch.candidate_category.tolist(), strict=True))
        ids = batch.cross[:, column].tolist()
        together = set(zip(other.tolist(), batch.candidate_category.tolist(), ids, strict=True))
        assert len(pairs) == len(set(ids)) == len(together)
    assert Generator(replace(SMALL, num_cross=0), seed=3).batch([1]).cross.shape == (1, 0)
    # No event at all is not an event of category 0.
    empty = Generator(SMALL, seed=3).batch(range(200), visible=0).cross[:, 1]
    assert len(set(empty.tolist())) == 8
    assert not set(empty.tolist()) & set(batch.cross[:, 1].tolist())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"length": 0}, "length"),
        ({"categories": 0}, "categories"),
        ({"silent": 64}, "silent"),
        ({"silent": -1}, "silent"),
        ({"length": 1, "silent": 0, "pairs": True}, "silent"),
        ({"tau": 0.0}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"base_rate": 1.0}, "base_rate"),
        ({"min_length": 65}, "min_length"),
        ({"num_cross": 3}, "num_cross"),
        ({"distraction": 1.5}, "distraction"),
    ],
)
def test_settings_that_make_no_generator(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        replace(SMALL, **change)


def test_questions_without_an_answer() -> None:
    generator = Generator(SMALL, seed=0)
    for indices in ([-1], [2**40], [[1]], [0.5]):
        with pytest.raises(ModelError, match="indices"):
            generator.batch(indices)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="visible"):
        generator.batch([0], visible=-1)
    with pytest.raises(ModelError, match="balanced"):
        Generator(replace(SMALL, base_rate=0.3), seed=0).bayes_auc(9, exact=False)
    with pytest.raises(ModelError, match="one length"):
        Generator(replace(SMALL, min_length=3), seed=0).bayes_auc(9, exact=False)
    with pytest.raises(ModelError, match="auc"):
        tau_for_auc(1.0)
