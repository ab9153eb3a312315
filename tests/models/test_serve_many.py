"""Several users at once: caches and scores are those of one user at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import PAPER, LongerConfig, Sampling
from models.errors import ModelError
from models.longer import kvcache, scoring
from models.longer.flops import candidate_flops, sample_flops
from models.longer.kvcache import Cache, encode, encode_many
from models.longer.network import Longer
from models.longer.scoring import Candidates, score, score_many
from models.serve.flops import encode_flops, score_flops, speedup
from tests.longercases import SAMPLINGS, SMALL, Tables, candidates, history, make_batch

LENGTHS = [7, 0, 20, 3, 20, 1, 26, 6]


def tensors(cache: Cache) -> list[Tensor]:
    tail = [cache.tail.item, cache.tail.category, cache.tail.action, cache.tail.age_s]
    return [cache.user, cache.free, cache.sampled, *sum(cache.layers, ()), *tail]


def worst(a: Cache, b: Cache) -> float:
    """The largest difference between two caches."""
    assert a.events == b.events
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel())


def case(config: LongerConfig) -> tuple[Longer, Tables, Tensor, list[kvcache.Events]]:
    batch = make_batch(LENGTHS, config)
    histories = [history(batch, number) for number in range(len(LENGTHS))]
    return Longer(config).double(), Tables(config), batch.user, histories


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("layers", [0, 2])
def test_histories_encoded_at_once_are_those_encoded_alone(how: Sampling, layers: int) -> None:
    config = replace(SMALL, sampling=how, self_layers=layers)
    network, tables, users, histories = case(config)
    at_once = encode_many(network, users, histories, tables)
    alone = [encode(network, u, h, tables) for u, h in zip(users, histories, strict=True)]
    assert max(worst(a, b) for a, b in zip(at_once, alone, strict=True)) < 1e-12
    # The comparison can fail: users 2 and 4 have histories of one length.
    assert worst(at_once[2], alone[4]) > 0.1


def test_what_is_kept_of_one_user_holds_nothing_of_another() -> None:
    network, tables, users, histories = case(SMALL)
    for cache in encode_many(network, users, histories, tables):
        for tensor in tensors(cache)[1:]:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert cache.held_nbytes == sum(t.numel() * t.element_size() for t in tensors(cache))


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("num_cross", [0, 2])
def test_candidates_of_all_at_once_are_those_alone(
    chunk: int, num_cross: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, num_cross=num_cross)
    network, tables, users, histories = case(config)
    caches = encode_many(network, users, histories, tables)
    counts = [5, 1, 0, 9, 2, 0, 3, 4]
    asked = [candidates(make_batch([0] * n, config, seed=n)) for n in counts]
    alone = [score(network, c, a, tables) for c, a in zip(caches, asked, strict=True)]
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    at_once = score_many(network, list(zip(caches, asked, strict=True)), tables)
    assert [len(part) for part in at_once] == counts
    for one, many in zip(alone, at_once, strict=True):
        assert torch.allclose(one, many, rtol=0, atol=1e-12)


def test_nobody_and_nothing() -> None:
    network, tables, users, histories = case(SMALL)
    assert encode_many(network, users[:0], [], tables) == []
    assert score_many(network, [], tables) == []
    (cache,) = encode_many(network, users[:1], histories[:1], tables)
    none = candidates(make_batch([], SMALL))
    assert [part.shape for part in score_many(network, [(cache, none)] * 2, tables)] == [(0,), (0,)]
    with pytest.raises(ModelError, match="user: has another shape"):
        encode_many(network, users, histories[:2], tables)
    flat = Candidates(item=none.item.view(0, 1), category=none.category, cross=none.cross)
    with pytest.raises(ModelError, match="candidate_item: has another shape"):
        score_many(network, [(cache, flat)], tables)


@pytest.mark.parametrize("length", [0, 5, 20])
@pytest.mark.parametrize(
    "change", [{}, {"self_layers": 0}, {"self_layers": 2, "num_cross": 1, "num_cls": 2}]
)
def test_operations_are_those_that_torch_counts(length: int, change: dict[str, Any]) -> None:
    config = replace(SMALL, **change)
    network, tables = Longer(config), Tables(config)
    batch = make_batch([length], config)
    asked = candidates(make_batch([0] * 7, config))
    # torch counts no fused attention on a CPU, so it is taken apart into products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cache = encode(network, batch.user[0], history(batch, 0), tables)
    assert encode_flops(config, length) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        score(network, cache, asked, tables)
    assert 7 * score_flops(config, length) == counter.get_total_flops()


def test_what_the_cache_saves() -> None:
    one_row = replace(PAPER, num_cross=0, num_cls=2)  # four globals, three of them kept
    whole = sample_flops(one_row, 2000).layers
    assert whole / candidate_flops(one_row, 2000) == pytest.approx(115, abs=0.5)
    # One candidate costs the same with the cache as without; many approach the ratio of what one
    # candidate takes.
    ratios = [speedup(PAPER, 2000, n) for n in (1, 10, 100, 1000, 10**9)]
    assert 0.95 < ratios[0] < 1.05
    assert ratios == sorted(ratios)
    whole = sample_flops(PAPER, 2000, whole_last_layer=False).forward
    assert ratios[-1] == pytest.approx(whole / score_flops(PAPER, 2000), rel=1e-3)
