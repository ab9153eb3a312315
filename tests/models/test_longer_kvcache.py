"""Scores against a cache are the whole network's; nothing in the cache has seen a candidate."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.batch import Batch
from models.config import LongerConfig, Sampling
from models.errors import ModelError
from models.longer import scoring
from models.longer.execution import PARTS, Execution
from models.longer.flops import cache_bytes
from models.longer.kvcache import Cache, append, encode
from models.longer.network import Longer
from models.longer.scoring import Candidates, score
from tests.longercases import (
    SAMPLINGS,
    SMALL,
    Tables,
    candidates,
    for_each,
    history,
    make_batch,
    with_columns,
)

OLDEST = replace(SMALL, alignment="oldest", positions="oldest", self_layers=2)


def encoded(network: Longer, batch: Batch, tables: Tables, sample: int = 0) -> Cache:
    return encode(network, batch.user[sample], history(batch, sample), tables)


def both_ways(config: LongerConfig, length: int, network: Longer) -> tuple[Tensor, Tensor]:
    """Scores of nine candidates against the cache, and by the whole network."""
    tables, batch = Tables(config), make_batch([length], config)
    others = make_batch([0] * 9, config, seed=7)
    cached = score(network, encoded(network, batch, tables), candidates(others), tables)
    with torch.no_grad():
        return cached, network(for_each(batch, 0, others), tables)


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_cached_scores_are_the_networks(how: Sampling, layers: int) -> None:
    config = replace(SMALL, sampling=how, self_layers=layers, num_cls=layers)
    network = Longer(config)
    for length in (0, 1, 3, 11, 20, 26):
        cached, whole = both_ways(config, length, network.float())
        assert torch.allclose(cached, whole, rtol=0, atol=2e-6)
        cached, whole = both_ways(config, length, network.double())
        assert torch.allclose(cached, whole, rtol=0, atol=1e-12)


def test_candidates_in_chunks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Longer(SMALL).double()
    monkeypatch.setattr(scoring, "CHUNK", 4)
    cached, whole = both_ways(SMALL, 14, network)
    assert torch.allclose(cached, whole, rtol=0, atol=1e-12)


def test_in_half_precision_scores_are_near() -> None:
    network = Longer(SMALL, execution=Execution(half=PARTS))
    cached, whole = both_ways(SMALL, 14, network)
    assert cached.dtype == torch.float32
    assert (cached - whole).abs().max() < 0.03


def rows_of_every_layer(network: Longer, batch: Batch, tables: Tables) -> list[Tensor]:
    """What each block gives, (samples, rows, D), for samples with histories of one length."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
        for block in (network.cross, *network.layers)
    ]
    with torch.no_grad():
        network(batch, tables)
    for hook in hooks:
        hook.remove()
    return [rows.view(len(batch), -1, rows.shape[1]) for rows in seen]


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("half", [frozenset(), PARTS])
def test_no_bit_of_a_cached_row_depends_on_the_candidate(how: Sampling, half: frozenset) -> None:  # type: ignore[type-arg]
    config = replace(SMALL, sampling=how, self_layers=2)
    network = Longer(config, execution=Execution(whole_last_layer=True, half=half))
    tables, batch, other = (
        Tables(config),
        make_batch([13] * 3, config),
        make_batch([0] * 3, config, 8),
    )
    perturbed = with_columns(
        batch,
        candidate_item=other.candidate_item,
        candidate_category=other.candidate_category,
        cross=other.cross,
    )
    bound = config.num_cross + 1
    before = rows_of_every_layer(network, batch, tables)
    after = rows_of_every_layer(network, perturbed, tables)
    assert len(before) == 3
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :-bound], b[:, :-bound])
        assert (a[:, -bound:] != b[:, -bound:]).any(dim=2).all()
    # The comparison can fail: the user is in the cache.
    else_ = rows_of_every_layer(network, with_columns(batch, user=other.user), tables)
    assert not torch.equal(before[0][:, :-bound], else_[0][:, :-bound])
    # Nor does a cross feature see the candidate, which stands last of all.
    only = with_columns(batch, candidate_item=other.candidate_item)
    for a, b in zip(before, rows_of_every_layer(network, only, tables), strict=True):
        assert torch.equal(a[:, :-1], b[:, :-1])


def test_scoring_leaves_the_cache_as_it_was() -> None:
    network, tables, batch = Longer(SMALL), Tables(SMALL), make_batch([14], SMALL)
    cache = encoded(network, batch, tables)
    before = [t.clone() for pair in cache.layers for t in pair]
    chosen = candidates(make_batch([0] * 5, SMALL))
    first = score(network, cache, chosen, tables)
    assert torch.equal(first, score(network, cache, chosen, tables))
    assert all(torch.equal(a, b) for a, b in zip(before, sum(cache.layers, ()), strict=True))
    free = network.head.free * SMALL.width * 4
    assert cache.nbytes == cache_bytes(SMALL, 14, bytes_per_number=4) + free


def assert_same(a: Cache, b: Cache) -> None:
    assert a.events == b.events
    assert torch.equal(a.tail.item, b.tail.item)
    for x, y in zip((*sum(a.layers, ()), a.free), (*sum(b.layers, ()), b.free), strict=True):
        assert x.shape == y.shape
        assert torch.allclose(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cuts", [[0, 20], [5, 6, 20], [6, 9, 10, 11], [1, 2, 3, 4], [19, 20], [7]])
@pytest.mark.parametrize("queries", [1, 3, 50])
def test_appended_events_give_the_cache_of_the_longer_history(
    cuts: list[int], queries: int
) -> None:
    config = replace(OLDEST, queries=queries)
    network, tables = Longer(config).double(), Tables(config)
    batch = make_batch([20], config)
    events = history(batch, 0)
    cache = encode(network, batch.user[0], events[: cuts[0]], tables)
    for start, end in pairwise(cuts):
        cache = append(network, cache, events[start:end], tables)
        assert_same(cache, encode(network, batch.user[0], events[:end], tables))
    assert append(network, cache, events[:0], tables) is cache
    chosen = candidates(make_batch([0] * 4, config))
    fresh = encode(network, batch.user[0], events[: cuts[-1]], tables)
    assert torch.allclose(
        score(network, cache, chosen, tables),
        score(network, fresh, chosen, tables),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alignment": "newest"}, "alignment: cached tokens would change"),
        ({"positions": "newest"}, "positions: cached tokens would change"),
        ({"sampling": "uniform"}, "sampling: cached tokens would change"),
        ({"max_length": 14}, "max_length: the history outgrows"),
    ],
)
def test_what_cannot_be_appended_is_refused(change: dict[str, object], words: str) -> None:
    config = replace(OLDEST, **change)  # type: ignore[arg-type]
    network, tables, batch = Longer(config), Tables(config), make_batch([14], config)
    cache = encoded(network, batch, tables)
    with pytest.raises(ModelError, match=words):
        append(network, cache, history(batch, 0)[:1], tables)


def test_bad_requests_are_refused() -> None:
    network, tables, batch = Longer(SMALL), Tables(SMALL), make_batch([5], SMALL)
    cache, events = encoded(network, batch, tables), history(batch, 0)
    good = candidates(make_batch([0] * 2, SMALL))
    with pytest.raises(ModelError, match="candidate_category: has another shape"):
        score(network, cache, replace(good, category=good.category[:1]), tables)
    with pytest.raises(ModelError, match="cross: has another shape"):
        score(network, cache, replace(good, cross=good.cross[:, :1]), tables)
    with pytest.raises(ModelError, match=r"action\[0\]: is unknown"):
        encode(network, batch.user[0], replace(events, action=events.action + 9), tables)
    with pytest.raises(ModelError, match="user: has another shape"):
        encode(network, batch.user, events, tables)
    with pytest.raises(ModelError, match="of another configuration"):
        score(Longer(OLDEST), cache, good, tables)
    empty = Candidates(item=good.item[:0], category=good.category[:0], cross=good.cross[:0])
    assert score(network, cache, empty, tables).shape == (0,)
    dropping = Longer(replace(SMALL, dropout=0.5))
    with pytest.raises(ModelError, match="would drop out"):
        encode(dropping, batch.user[0], events, tables)
    assert encode(dropping.eval(), batch.user[0], events, tables).events == 5
