"""The engine on two GPUs, which exchange with NCCL among themselves. Nobody has run this yet.

What NCCL does otherwise than gloo is held to without GPUs in ``tests/executor/test_exchange.py``.
"""

from __future__ import annotations

import pytest
import torch

from executor.devices import parse_lanes
from executor.machine import probe
from executor.verify import Battery, verify
from executor.workloads import workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("name", ["mlp", "longer"])
def test_two_gpus_have_the_bits_of_one_through_kills(name: str) -> None:
    lanes = parse_lanes("cuda:0,cuda:1", probe())
    battery = Battery(task=workload(name, 4), num_workers=4, lanes=lanes, steps=8, schedules=6)
    verdict = verify(battery)
    assert [outcome.difference for outcome in verdict.outcomes] == [None] * 6
    assert sum(outcome.compared for outcome in verdict.outcomes) > 100
