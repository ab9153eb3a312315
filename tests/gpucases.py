"""What the tests in ``tests/gpu`` share: the device, samples, and a table on either side.

They import nothing of the other rooms, and of ``models`` only what needs torch and NumPy, so that
they run on a machine with little else. ``TANDEM_GPU_TESTS_ON=cpu`` rehearses them on a CPU.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.bench.workload import Drawn
from models.config import TINY, LongerConfig
from models.longer.execution import Execution
from models.longer.network import Longer
from models.sparse.evict import Eviction
from models.sparse.optimizer import RowAdam
from models.train.config import TrainConfig
from models.train.step import DenseOptimizer
from tests.longercases import Tables

DEVICE = torch.device(os.environ.get("TANDEM_GPU_TESTS_ON", "cuda"))
THERE = DEVICE.type == "cpu" or torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not THERE, reason="needs a CUDA device")]

MODEL = replace(TINY, d=8, max_length=40, queries=4, dropout=0.1)
CONFIG = TrainConfig(
    model=MODEL,
    global_batch=24,
    ranks=3,
    train_samples=96,
    dense=DenseOptimizer(lr=3e-3, weight_decay=0.01, warmup_steps=4, decay_steps=40),
    sparse=RowAdam(lr=3e-3),
    admit_after=2,
    eviction=Eviction(every_steps=4, idle_steps=3, keep_count=40),
)
DATA = Drawn(max_length=40, min_length=0, items=300, num_samples=160)


def tables_on_device(config: LongerConfig, dtype: torch.dtype = torch.float64) -> Tables:
    """The tables of ``tests.longercases``, on the device."""
    tables = Tables(config)
    tables.rows = {name: rows.to(DEVICE, dtype) for name, rows in tables.rows.items()}
    return tables


def network_on_device(
    config: LongerConfig, *, execution: Execution | None = None, seed: int = 0
) -> Longer:
    """LONGER, on the device."""
    return Longer(config, execution=execution, seed=seed).to(DEVICE)


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors hold the same bits, wherever they lie."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and _bytes(x) == _bytes(y)
        for x, y in zip(a, b, strict=True)
    )


def _bytes(x: Tensor) -> bytes:
    here = x.detach().cpu().contiguous()
    # NumPy has no bfloat16.
    return (here.view(torch.int16) if here.dtype == torch.bfloat16 else here).numpy().tobytes()
