"""Serving on a CUDA device: published on one side, scored on the other, alone and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.serve.service import Service, Settings
from models.serve.versions import Versions
from tests.gpucases import DEVICE, GPU
from tests.servecases import OLDEST, Model, body, candidates, history, whose

pytestmark = GPU


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["64", "32"]
)
@pytest.mark.parametrize("settings", [Settings(max_wait_ms=0), Settings(max_wait_ms=100)])
def test_scores_are_the_whole_networks_on_a_cpu(
    settings: Settings, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model = Model(dtype=dtype)
    model.publish(tmp_path)
    sent = [body(n, events=n, candidates=1 + n % 5) for n in range(21)]
    with Service(Versions(tmp_path, device=DEVICE), settings) as service:
        assert service.versions.current.device.type == DEVICE.type
        futures = [
            service.score(whose(a), candidates(a), history(a), cold_start=True) for a in sent
        ]
        for asked, future in zip(sent, futures, strict=True):
            answer = future.result(60)
            assert np.abs(answer.logits - model.logits(asked)).max() < tolerance
            again = service.score(whose(asked), candidates(asked)).result(60)
            assert again.cached
            assert np.abs(again.logits - answer.logits).max() < tolerance
    assert np.abs(model.logits(sent[3]) - model.logits(sent[8])).max() > 100 * tolerance


def test_events_are_appended(tmp_path: Path) -> None:
    model = Model(OLDEST)
    model.publish(tmp_path)
    asked = body(2, events=12)
    with Service(Versions(tmp_path, device=DEVICE), Settings(max_wait_ms=0)) as service:
        service.encode(whose(asked), history(asked, slice(7))).result(60)
        service.append(whose(asked), history(asked, slice(7, 12))).result(60)
        answer = service.score(whose(asked), candidates(asked)).result(60)
        assert np.abs(answer.logits - model.logits(asked)).max() < 1e-11
