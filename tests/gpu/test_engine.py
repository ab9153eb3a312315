"""The engine on one GPU: logical workers in turn, two workers that share it, gradients on the host.

Worker processes are threads here, so that CUDA is opened once; the process group, the streams and
the copies are those of processes. At the end real processes on halves of the GPU are killed, moved
and resumed. Two GPUs, and so NCCL between them, are in ``test_two_gpus``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from executor.agent import Agent
from executor.devices import DeviceLane, parse_lanes
from executor.machine import probe
from executor.pool import WorkerPool
from executor.verify import Battery, verify
from executor.workloads import workload
from tests.executorcases import Digests, digests_of, first_difference, job, on, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 6


@pytest.fixture(scope="module")
def agents() -> Iterator[WorkerPool]:
    with WorkerPool(threads=True) as pool:
        yield pool


@pytest.fixture
def agent(agents: WorkerPool) -> Iterator[Agent]:
    lanes = {(0, i): DeviceLane(name=f"gpu{i}", gpu_type="gpu", device="cuda:0") for i in range(3)}
    with Agent(lanes, pool=agents) as agent:
        yield agent


@pytest.fixture(scope="module")
def reference(agents: WorkerPool) -> Digests:
    lane = DeviceLane(name="gpu0", gpu_type="gpu", device="cuda:0")
    with Agent({(0, 0): lane}, pool=agents) as agent:
        return digests_of(trained(agent, job("mlp", 5, STEPS), [(STEPS, on(5))]))


@pytest.mark.parametrize("gradients", ["device", "host"])
def test_where_partial_sums_wait_changes_nothing(
    agent: Agent, reference: Digests, gradients: str
) -> None:
    spec = job("mlp", 5, STEPS, gradients=gradients)
    found = digests_of(trained(agent, spec, [(STEPS, on(5))]))
    assert first_difference(found, reference) is None


def test_workers_that_share_a_gpu_have_the_bits_of_one(agent: Agent, reference: Digests) -> None:
    schedule = [(2, on(2, 3)), (4, on(1, 3, 1, order=(2, 0, 1))), (STEPS, on(5, first=1))]
    found = digests_of(trained(agent, job("mlp", 5, STEPS), schedule))
    assert first_difference(found, reference) is None


def test_longer_on_workers_that_share_a_gpu_has_the_bits_of_one(agent: Agent) -> None:
    alone = digests_of(trained(agent, job("longer", 4, STEPS), [(STEPS, on(4))]))
    schedule = [(2, on(2, 2)), (4, on(1, 3, order=(2, 0))), (STEPS, on(4, first=1))]
    found = digests_of(trained(agent, job("longer", 4, STEPS), schedule))
    assert first_difference(found, alone) is None
    other = digests_of(trained(agent, job("longer", 4, STEPS, seed=4), [(STEPS, on(4))]))
    assert first_difference(other, alone) is not None


def test_a_job_resumes_on_the_gpu(agent: Agent, reference: Digests, tmp_path: Path) -> None:
    agent.start(job("mlp", 5, STEPS, folder=str(tmp_path)), on(2, 3), pause_at=3)
    agent.settle("job")
    agent.stop("job", checkpoint=True)
    agent.settle("job")
    spec = job("mlp", 5, STEPS, folder=str(tmp_path), resume=True)
    found = digests_of(trained(agent, spec, [(STEPS, on(4, 1))]))
    assert first_difference(found, {step: reference[step] for step in (4, 5, 6)}) is None


def test_memory_on_the_host_does_not_grow_with_logical_workers(agent: Agent) -> None:
    """As in EasyScale's Fig. 10: 1 to 16 logical workers on one GPU."""
    most = {}
    for workers in (1, 2, 16):
        spec = job("mlp", workers, 3, gradients="host", digest_every=0)
        settings = {"width": 1024, "layers": 4, "batch": 64}
        spec = replace(spec, task=workload("dense", workers, seed=1, **settings))
        torch.cuda.reset_peak_memory_stats()
        trained(agent, spec, [(3, on(workers))])
        most[workers] = torch.cuda.max_memory_allocated()
    assert most[16] <= most[1] * 1.05, most


@pytest.mark.parametrize("name", ["mlp", "longer"])
def test_processes_on_halves_of_the_gpu_keep_their_bits_through_kills(name: str) -> None:
    lanes = tuple(parse_lanes("cuda:0x2:sm=50%", probe()))
    battery = Battery(task=workload(name, 4), num_workers=4, lanes=lanes, steps=6, schedules=3)
    verdict = verify(battery)
    assert [outcome.difference for outcome in verdict.outcomes] == [None] * 3
    assert sum(outcome.compared for outcome in verdict.outcomes) > 100
