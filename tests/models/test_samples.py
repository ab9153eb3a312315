"""Samples of a log against their definition, event by event in plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.events import EventStore, build_store
from models.data.sampler import Sampler
from models.data.samples import EventSamples
from models.data.taobao import load_taobao
from models.errors import ModelError

Row = tuple[int, int, int, int, int]  # user, item, category, action, time
rows_of_logs = st.lists(
    st.tuples(*(st.integers(0, n) for n in (3, 6, 2, 1, 8))), min_size=1, max_size=40
)


def store_of(rows: list[Row]) -> EventStore:
    user, item, category, action, time = (
        np.array(c, dtype=np.int64) for c in zip(*rows, strict=True)
    )
    return build_store(
        source="rows",
        actions=("view", "buy"),
        user=user,
        item=item,
        category=category,
        action=action,
        time_s=time.astype(np.float64),
        label=action == 1,
        window_s=None,
    )


def by_definition(rows: list[Row], most: int, least: int) -> list[tuple[Any, ...]]:
    """(user, item, category, label, history items, ages) of every candidate."""
    found = []
    for user, item, category, action, time in rows:
        before = [r for r in sorted(rows, key=lambda r: (r[4], r[1], r[3])) if r[0] == user]
        before = [r for r in before if r[4] < time]
        if len(before) >= least:
            kept = before[len(before) - most :] if most < len(before) else before
            ages = [float(time - r[4]) for r in kept]
            found.append((user, item, category, float(action == 1), [r[1] for r in kept], ages))
    return found


def as_rows(samples: EventSamples, visible: int | None = None) -> list[tuple[Any, ...]]:
    batch = samples.batch(range(samples.num_samples), visible=visible)
    found = []
    for b in range(len(batch)):
        here = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        found.append(
            (
                int(batch.user[b]),
                int(batch.candidate_item[b]),
                int(batch.candidate_category[b]),
                float(batch.label[b]),
                batch.item[here].tolist(),
                batch.age_s[here].tolist(),
            )
        )
    return found


@settings(max_examples=60)
@given(rows=rows_of_logs, most=st.integers(0, 6), least=st.integers(0, 3))
def test_samples_are_what_the_text_says(rows: list[Row], most: int, least: int) -> None:
    expected = by_definition(rows, most, least)
    store = store_of(rows)
    if not expected:
        with pytest.raises(ModelError, match="no event is a candidate"):
            EventSamples(store, max_history=most, min_history=least)
        return
    samples = EventSamples(store, max_history=most, min_history=least)
    assert sorted(as_rows(samples)) == sorted(expected)
    assert samples.num_samples + sum(n for _, n in samples.left_out) == len(rows)
    assert sorted(as_rows(samples, visible=2)) == sorted(by_definition(rows, min(most, 2), least))
    ages = samples.batch(range(samples.num_samples)).age_s
    assert bool((ages > 0).all())


@settings(max_examples=40)
@given(rows=rows_of_logs, cut=st.integers(1, 8))
def test_a_split_by_time_shares_histories_but_no_candidate(rows: list[Row], cut: int) -> None:
    store = store_of(rows)
    parts = []
    for bounds in ({"until_s": float(cut)}, {"since_s": float(cut)}):
        try:
            parts.append(EventSamples(store, max_history=9, min_history=0, **bounds))  # type: ignore[arg-type]
        except ModelError:
            continue
    together = sorted(row for part in parts for row in as_rows(part))
    assert together == sorted(as_rows(EventSamples(store, max_history=9, min_history=0)))
    times = [store.time_s[part.events] for part in parts]
    assert all((np.diff(t) >= 0).all() for t in times)


@settings(max_examples=40)
@given(rows=rows_of_logs, negatives=st.integers(1, 3), seed=st.integers(0, 9))
def test_negatives_are_other_items_of_the_log(rows: list[Row], negatives: int, seed: int) -> None:
    store = store_of(rows)

    def make() -> EventSamples:
        return EventSamples(
            store, max_history=5, min_history=0, rule="next", negatives=negatives, seed=seed
        )

    if len(np.unique(store.item)) < 2:
        with pytest.raises(ModelError, match="no negatives"):
            make()
        return
    samples = make()
    assert samples.num_samples == len(rows) * (1 + negatives)
    batch = samples.batch(range(samples.num_samples))
    label = batch.label.reshape(len(rows), 1 + negatives)
    assert bool((label[:, 0] == 1).all())
    assert not label[:, 1:].any()
    item = batch.candidate_item.reshape(len(rows), 1 + negatives)
    assert bool((item[:, 1:] != item[:, :1]).all())
    known = set(zip(store.item.tolist(), store.category.tolist(), strict=True))
    shown = zip(batch.candidate_item.tolist(), batch.candidate_category.tolist(), strict=True)
    assert set(shown) <= known
    alone = make().batch([samples.num_samples - 1])
    assert torch.equal(alone.candidate_item, batch.candidate_item[-1:])


def test_negatives_are_drawn_by_popularity() -> None:
    rows = [(0, item, 0, 0, 10 * item + n) for item in (1, 2, 3) for n in range(item)]
    samples = EventSamples(
        store_of(rows), max_history=1, min_history=0, rule="next", negatives=4000, seed=1
    )
    # Of the positive of item 3: items 1 and 2 as one to two.
    last = samples.batch(range(samples.num_samples - 4000, samples.num_samples))
    assert (last.candidate_item == 2).double().mean().item() == pytest.approx(2 / 3, abs=0.03)
    assert set(last.candidate_item.tolist()) == {1, 2}
    none = EventSamples(store_of(rows), max_history=1, min_history=0, rule="next", negatives=0)
    assert none.batch(range(none.num_samples)).label.tolist() == [1.0] * len(rows)


def test_the_published_excerpt_feeds_training(shared_data: Path) -> None:
    store = load_taobao(shared_data / "taobao" / "UserBehavior.csv.gz")
    until = 1_512_144_000.0  # 2017-12-02 00:00 in Beijing: seven days to train, two to test
    train = EventSamples(store, max_history=200, until_s=until)
    test = EventSamples(store, max_history=200, since_s=until)
    left = dict(train.left_out)
    assert train.num_samples + sum(left.values()) == len(store) == 4320
    assert left["outside the candidates' times"] == test.num_samples + dict(test.left_out).get(
        "fewer than 1 events before", 0
    )
    sampler = Sampler(num_samples=train.num_samples, global_batch=64, seed=1)
    whole = train.batch(sampler.at(5))
    halves = [train.batch(sampler.at(5, rank, 2)) for rank in range(2)]
    assert len(whole) == 64
    assert torch.equal(whole.item, torch.cat([half.item for half in halves]))
    assert torch.equal(whole.cross, torch.cat([half.cross for half in halves]))
    assert int(whole.lengths.max()) <= 200
    assert int(whole.lengths.min()) >= 1
    assert int(whole.action.max()) <= 3
    assert whole.offsets[-1] == len(whole.item) == len(whole.age_s)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_history": -1}, "max_history"),
        ({"min_history": -1}, "min_history"),
        ({"rule": "odd"}, "rule"),
        ({"rule": "next", "negatives": -1}, "negatives"),
        ({"num_cross": 5}, "num_cross"),
        ({"seed": -3}, "seed"),
        ({"since_s": 99.0}, "no event is a candidate"),
    ],
)
def test_samples_that_cannot_be_made(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        EventSamples(store_of([(0, 1, 0, 0, 1), (0, 2, 0, 0, 2)]), **{"max_history": 3} | options)


def test_questions_without_an_answer() -> None:
    samples = EventSamples(store_of([(0, 1, 0, 0, 1), (0, 2, 0, 0, 2)]), max_history=3)
    assert samples.num_samples == 1
    assert len(samples.batch([])) == 0
    with pytest.raises(ModelError, match="indices"):
        samples.batch([1])
    with pytest.raises(ModelError, match="visible"):
        samples.batch([0], visible=-1)
