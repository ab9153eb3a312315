"""Published versions and requests for tests of serving, and what the whole network says to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Batch
from models.config import TINY, LongerConfig
from models.longer.network import Longer
from models.serve.request import CandidateColumns, History, Whose
from models.serve.version import publish_state
from models.sparse.published import path_of
from models.sparse.table import EmbeddingTable
from models.sparse.tableset import TableSet

CONFIG = replace(TINY, d=4, merge=3, max_length=20, queries=4, head_hidden=(8,), num_actions=3)
OLDEST = replace(CONFIG, alignment="oldest", positions="oldest", self_layers=2)
KNOWN_IDS = 40  # those with a row of their own; higher ids have their initial value


class Model:
    """A network with tables of which some rows are trained, as a run has them after a step."""

    def __init__(
        self, config: LongerConfig = CONFIG, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        self.config = config
        self.network = Longer(config, seed=seed).to(dtype).eval()
        self.tables = TableSet(
            EmbeddingTable(name, getattr(config, f"{name}_dim"), seed, scale=1.0)
            for name in ("item", "category", "user", "cross")
        )
        for name in self.tables.tables:
            rows = self.tables(name, torch.arange(KNOWN_IDS))
            rows.backward(torch.ones_like(rows))  # type: ignore[no-untyped-call]
        self.tables.apply(0)

    def publish(self, folder: Path) -> int:
        return publish_state(folder, self.network, self.tables)

    @torch.no_grad()
    def logits(self, body: Mapping[str, Any]) -> NDArray[Any]:
        """What the whole network, without a cache, says to a score request with its history."""
        candidates, history = body["candidates"], body["history"]
        count, events = len(candidates["item"]), len(history["item"])

        def ids(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64)

        ages = body["request_time_s"] - torch.tensor(history["time_s"], dtype=torch.float64)
        batch = Batch(
            offsets=torch.arange(count + 1) * events,
            item=ids(history["item"]).repeat(count),
            category=ids(history["category"]).repeat(count),
            action=ids(history["action"]).repeat(count),
            age_s=ages.repeat(count),
            candidate_item=ids(candidates["item"]),
            candidate_category=ids(candidates["category"]),
            user=ids([body["user"]] * count),
            cross=ids(candidates["cross"]).view(count, self.config.num_cross),
            label=torch.zeros(count),
        )
        logits: NDArray[Any] = self.network(batch, self.tables).numpy()
        return logits


def body(
    seed: int = 0, *, events: int = 11, candidates: int = 5, config: LongerConfig = CONFIG
) -> dict[str, Any]:
    """A score request as JSON, with its history."""
    draw = np.random.default_rng(seed)

    def ids(*shape: int) -> Any:
        known = draw.integers(0, KNOWN_IDS, shape)
        return np.where(draw.random(shape) < 0.7, known, draw.integers(0, 2**63, shape)).tolist()

    times = np.sort(draw.uniform(1e9, 1.7e9, events)).round(2)
    return {
        "user": int(draw.integers(0, 2**63)),
        "request_time_s": 1.7e9,
        "history": {
            "item": ids(events),
            "category": ids(events),
            "action": draw.integers(0, config.num_actions, events).tolist(),
            "time_s": times.tolist(),
        },
        "candidates": {
            "item": ids(candidates),
            "category": ids(candidates),
            "cross": ids(candidates, config.num_cross),
        },
    }


def whose(asked: Mapping[str, Any]) -> Whose:
    return Whose(
        user=asked["user"], request_time_s=asked["request_time_s"], version=asked.get("version")
    )


def history(asked: Mapping[str, Any], rows: slice = slice(None)) -> History:
    return History(**{name: column[rows] for name, column in asked["history"].items()})


def candidates(asked: Mapping[str, Any]) -> CandidateColumns:
    return CandidateColumns(**asked["candidates"])


def damage(folder: Path, number: int, name: str = "dense.bin") -> None:
    path = path_of(folder, number) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so, within bounds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextmanager
def running(*threads: Thread) -> Iterator[None]:
    """Start threads, and wait for their end, within bounds."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
