"""Every test here runs in torch's strict deterministic mode: what is not deterministic raises."""

from __future__ import annotations

import os
from collections.abc import Iterator

# cuBLAS reads it when it is first used, so it is set before any test is.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)
