"""What tests of the executor run under."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from executor.agent import Agent
from executor.pool import WorkerPool
from tests.executorcases import LANES


@pytest.fixture(scope="module", autouse=True)
def strict() -> Iterator[None]:
    """One thread and torch's deterministic algorithms, as in a worker process."""
    threads = torch.get_num_threads()
    before = torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def threads() -> Iterator[WorkerPool]:
    """Workers that are threads of this process, shared by the tests of a file."""
    with WorkerPool(threads=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def processes() -> Iterator[WorkerPool]:
    """Worker processes, shared by the tests of a file."""
    with WorkerPool() as pool:
        yield pool


@pytest.fixture
def agent(threads: WorkerPool) -> Iterator[Agent]:
    """An agent of four CPU lanes whose workers are threads."""
    with Agent(LANES, pool=threads) as agent:
        yield agent
