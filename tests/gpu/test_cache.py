"""Serving with a cache on a CUDA device: scores are the network's, rows have seen no candidate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import TINY, LongerConfig
from models.longer.execution import PARTS, Execution
from models.longer.kvcache import append, encode
from models.longer.network import Longer
from models.longer.scoring import score
from tests.gpucases import DEVICE, GPU, network_on_device, same_bits, tables_on_device
from tests.longercases import SAMPLINGS, candidates, for_each, history, make_batch

pytestmark = GPU


def both_ways(config: LongerConfig, length: int, network: Longer) -> tuple[Tensor, Tensor]:
    """Scores of nine candidates against the cache, and by the whole network."""
    tables = tables_on_device(config, network.dtype)
    batch = make_batch([length], config).to(DEVICE)
    others = make_batch([0] * 9, config, seed=7).to(DEVICE)
    cache = encode(network, batch.user[0], history(batch, 0), tables)
    cached = score(network, cache, candidates(others), tables)
    with torch.no_grad():
        return cached, network(for_each(batch, 0, others).to(DEVICE), tables)


@pytest.mark.parametrize("how", SAMPLINGS)
def test_cached_scores_are_the_networks(how: str) -> None:
    config = replace(TINY, sampling=how, self_layers=2)  # type: ignore[arg-type]
    network = network_on_device(config)
    for length in (0, 1, 11, 64, 80):
        cached, whole = both_ways(config, length, network.double())
        assert torch.allclose(cached, whole, rtol=0, atol=1e-12)
        cached, whole = both_ways(config, length, network.float())
        assert torch.allclose(cached, whole, rtol=0, atol=1e-5)
        network.execution = Execution(half=PARTS)
        cached, whole = both_ways(config, length, network)
        assert torch.allclose(cached, whole, rtol=0, atol=0.05)
        network.execution = Execution()


def test_scores_repeat_bit_for_bit() -> None:
    network = network_on_device(TINY)
    once, whole = both_ways(TINY, 40, network)
    again, _ = both_ways(TINY, 40, network)
    assert same_bits([once], [again])
    assert whole.std() > 1e-3


def rows_of_every_layer(network: Longer, seed: int) -> list[Tensor]:
    """What each block gives for the rows that are cached, with candidates of this seed."""
    config = network.config
    tables = tables_on_device(config, network.dtype)
    batch = make_batch([24] * 4, config)
    other = make_batch([0] * 4, config, seed=seed)
    batch = replace(
        batch,
        candidate_item=other.candidate_item,
        candidate_category=other.candidate_category,
        cross=other.cross,
    ).to(DEVICE)
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
        for block in (network.cross, *network.layers)
    ]
    network.execution = replace(network.execution, whole_last_layer=True)
    with torch.no_grad():
        network(batch, tables)
    for hook in hooks:
        hook.remove()
    cached = -(config.num_cross + 1)
    return [rows.view(4, -1, config.width)[:, :cached].contiguous() for rows in seen]


@pytest.mark.parametrize("half", [False, True])
def test_no_candidate_touches_a_cached_row(half: bool) -> None:
    execution = Execution(half=PARTS if half else frozenset())
    network = network_on_device(replace(TINY, self_layers=2), execution=execution)
    assert same_bits(rows_of_every_layer(network, 1), rows_of_every_layer(network, 2))


def test_a_cache_that_grows_is_that_of_the_longer_history() -> None:
    config = replace(TINY, alignment="oldest", positions="oldest")
    network, tables = network_on_device(config).double(), tables_on_device(config)
    batch = make_batch([50], config).to(DEVICE)
    events = history(batch, 0)
    events = replace(events, age_s=torch.cat([events.age_s[:33], torch.zeros(17).to(DEVICE)]))
    others = candidates(make_batch([0] * 5, config, seed=3).to(DEVICE))
    whole = score(network, encode(network, batch.user[0], events, tables), others, tables)
    cache = encode(network, batch.user[0], events[:33], tables)
    grown = score(network, append(network, cache, events[33:], tables), others, tables)
    assert torch.allclose(grown, whole, rtol=0, atol=1e-12)
