"""The mask is the paper's, the sampling is what it says, and rows stand where they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import Sampling
from models.longer.layout import plan
from models.longer.sampling import lower_right, sampled, spread, standing
from tests.longercases import SAMPLINGS, SMALL, printed_mask

CPU = torch.device("cpu")


@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 12))
def test_recent_queries_reversed_are_the_papers_printed_mask(s: int, m: int, k: int) -> None:
    # The paper: R = [G; H] newest first, O = [G; H_S], visible where j >= i. Reversing both sides
    # gives chronological order, where the mask must be the usual lower-right causal one.
    chosen = min(k, s)
    printed = printed_mask([*range(m), *range(m, m + chosen)], m + s)
    reversed_ = printed.flip(0).flip(1)
    causal = torch.ones(chosen + m, s + m, dtype=torch.bool).tril(s - chosen)
    assert torch.equal(reversed_, causal)
    stands = standing(s, m, k, "recent")
    assert np.array_equal(stands, lower_right(chosen + m, s + m))
    ours = torch.arange(s + m)[None, :] <= torch.from_numpy(stands)[:, None]
    assert torch.equal(ours, reversed_)


@pytest.mark.parametrize("how", ["uniform", "recent+uniform"])
@given(s=st.integers(1, 40), m=st.integers(1, 5), k=st.integers(1, 40))
def test_sampled_queries_keep_their_original_rows_of_the_mask(
    how: Sampling, s: int, m: int, k: int
) -> None:
    at = sampled(s, k, how)
    newest_first = [m + s - 1 - int(i) for i in at][::-1]
    printed = printed_mask([*range(m), *newest_first], m + s).flip(0).flip(1)
    stands = torch.from_numpy(standing(s, m, k, how))
    assert torch.equal(torch.arange(s + m)[None, :] <= stands[:, None], printed)


@pytest.mark.parametrize("how", SAMPLINGS)
@given(s=st.integers(0, 300), k=st.integers(1, 300))
def test_sampling_takes_as_many_as_there_are_in_order(how: Sampling, s: int, k: int) -> None:
    at = sampled(s, k, how)
    assert len(at) == min(s, k)
    assert np.array_equal(at, sampled(s, k, how))
    if how != "learnable":
        assert (np.diff(at) > 0).all()
        assert len(at) == 0 or (at[0] >= 0 and at[-1] == s - 1)
        if s <= k:
            assert np.array_equal(at, np.arange(s))


@given(st.integers(1, 500), st.data())
def test_spread_leaves_equal_gaps(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    gaps = np.diff(spread(total, count), prepend=-1)
    assert gaps.sum() == total
    assert gaps.max() - gaps.min() <= 1


def test_half_recent_half_spread() -> None:
    assert sampled(12, 6, "recent+uniform").tolist() == [2, 5, 8, 9, 10, 11]
    assert sampled(12, 5, "recent+uniform").tolist() == [4, 8, 9, 10, 11]
    assert sampled(5, 3, "recent").tolist() == [2, 3, 4]
    assert sampled(10, 3, "uniform").tolist() == [3, 6, 9]


def test_a_layout_by_hand() -> None:
    # merge 3; histories of 4, 0 and 2 events: 2, 0 and 1 merged tokens.
    config = replace(SMALL, queries=1, num_cross=0, num_cls=0)
    layout = plan(torch.tensor([0, 4, 4, 6]), config, device=CPU)
    assert layout.order.tolist() == [1, 2, 0]
    assert layout.places.tolist() == [2, 0, 1]
    # Full group first (events 1-3 of sample 0), then the pair, then the single oldest event.
    assert layout.events.tolist() == [1, 2, 3, 4, 5, 0]
    assert layout.position.tolist() == [2, 1, 0, 1, 0, 3]
    # Sample 2 has slots 0-2 (pair at the end), sample 0 has 3-5 (single at the end) and 6-8.
    assert layout.slot.tolist() == [6, 7, 8, 1, 2, 5]
    assert [(p.samples, p.keys) for p in layout.inner.parts] == [(1, 3), (1, 2), (1, 1)]
    # Rows 0-2 are tokens; 3, 4 | 5, 6 | 7, 8 the globals of the places.
    assert layout.keys.tolist() == [3, 4, 0, 5, 6, 1, 2, 7, 8]
    assert layout.chosen.tolist() == [0, 2]
    assert layout.queries.tolist() == [2, 3, 0, 4, 5, 1, 6, 7]
    assert layout.heads.tolist() == [0, 1, 3, 4, 6, 7]


def test_groups_from_the_oldest_event_stay_when_one_is_added() -> None:
    config = replace(SMALL, alignment="oldest", positions="oldest")
    four = plan(torch.tensor([0, 4]), config, device=CPU)
    five = plan(torch.tensor([0, 5]), config, device=CPU)
    assert five.slot[:4].tolist() == four.slot.tolist() == [0, 1, 2, 3]
    assert five.position.tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.sampled_from(SAMPLINGS))
def test_no_row_is_padded_and_none_is_lost(lengths: list[int], how: Sampling) -> None:
    config = replace(SMALL, sampling=how)
    layout = plan(torch.tensor([0, *lengths]).cumsum(0), config, device=CPU)
    kept = [min(n, config.max_length) for n in lengths]
    assert len(layout.events) == sum(kept)
    assert len(set(layout.slot.tolist())) == sum(kept)
    ends = np.cumsum(lengths)
    newest = [e - 1 - i for e, n in zip(ends, kept, strict=True) for i in range(n)]
    assert sorted(layout.events.tolist()) == sorted(newest)
    rows = layout.merged + len(lengths) * config.num_globals
    assert sorted(layout.keys.tolist()) == list(range(rows))
    assert sum(p.samples * p.keys for p in layout.inner.parts) == sum(kept)
    assert sum(p.samples * p.keys for p in layout.cross.parts) == rows
    chosen = sum(min(config.queries, -(-n // config.merge)) for n in kept)
    assert len(layout.chosen) == chosen
    assert sorted(layout.queries.tolist()) == list(
        range(chosen + len(lengths) * config.num_globals)
    )
