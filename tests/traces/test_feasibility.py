"""Which jobs fit no node: each rule by hand, and all rules against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.cluster import ClusterSpec, Node
from traces.feasibility import infeasible, misfit
from traces.job import Request
from traces.workload import Workload

_SPEC = ClusterSpec(
    (
        Node(name="a0", gpu_type="A", num_gpus=4, cpu_milli=32_000, memory_mib=64 * 1024),
        Node(name="a1", gpu_type="A", num_gpus=2, cpu_milli=64_000, memory_mib=256 * 1024),
        Node(name="b0", gpu_type="B", num_gpus=8),
        Node(name="c0", gpu_type="cpu", num_gpus=0, cpu_milli=96_000, memory_mib=512 * 1024),
    )
)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (Request(num_gpus=6, gpu_types=("A",)), None, None),
        (Request(num_gpus=8, single_node=True), None, None),
        (Request(num_gpus=7, gpu_types=("A",)), "too_many_gpus", "needs 7 A; there are 6"),
        # One job runs on one type: 14 GPUs in all don't help.
        (Request(num_gpus=9), "too_many_gpus", "needs 9 A; there are 6"),
        (
            Request(num_gpus=1, gpu_types=("AA",)),
            "unknown_type",
            "needs AA; the inventory has none (did you mean 'A'?)",
        ),
        (
            Request(num_gpus=5, gpu_types=("A",), single_node=True),
            "single_node",
            "needs 5 GPUs on one node; the largest A node has 4",
        ),
        # a0 gives 32 CPUs / 16 = 2 GPUs, a1 its 2.
        (Request(num_gpus=4, gpu_types=("A",), cpu_milli=64_000), None, None),
        (
            Request(num_gpus=5, gpu_types=("A",), cpu_milli=80_000),
            "cpu",
            "needs 16 CPUs beside each of 5 GPUs; A nodes have that beside 4",
        ),
        # a0 gives 64 GiB / 32 = 2 GPUs, a1 its 2.
        (Request(num_gpus=4, gpu_types=("A",), memory_mib=128 * 1024), None, None),
        (
            Request(num_gpus=6, gpu_types=("A",), memory_mib=192 * 1024),
            "memory",
            "needs 32 GiB beside each of 6 GPUs; A nodes have that beside 4",
        ),
        (
            Request(num_gpus=1, gpu_types=("A",), cpu_milli=65_000),
            "cpu",
            "needs 65 CPUs on one node; the largest has 64",
        ),
        (
            Request(num_gpus=1, gpu_types=("A",), cpu_milli=40_000, memory_mib=300 * 1024),
            "memory",
            "needs 300 GiB on one node; the largest with its CPUs has 256",
        ),
        # A node without stated CPUs and memory has no such limit.
        (Request(num_gpus=8, cpu_milli=10**9, memory_mib=10**9), None, None),
        (Request(num_gpus=0, gpu_types=("cpu",), cpu_milli=96_000), None, None),
        (
            Request(num_gpus=0, gpu_types=("cpu",), cpu_milli=97_000),
            "cpu",
            "needs 97 CPUs on one node; the largest has 96",
        ),
        (Request(num_gpus=0, cpu_milli=97_000), None, None),
        (
            Request(num_gpus=1, gpu_types=("cpu",)),
            "unknown_type",
            "needs cpu; the inventory has none (known: A, B)",
        ),
    ],
)
def test_rules(request_: Request, code: str | None, text: str | None) -> None:
    found = misfit(request_, _SPEC)
    assert (found and found.code, found and str(found)) == (code, text)


def test_an_empty_inventory_holds_nothing() -> None:
    found = misfit(Request(num_gpus=1), ClusterSpec(()))
    assert str(found) == "needs a GPU; the inventory has none"


def test_jobs_share_the_verdict_of_their_request() -> None:
    workload = Workload.from_jobs(
        [{"submit_s": float(i), "duration_s": 1.0, "num_gpus": n} for i, n in enumerate([1, 9, 9])]
    )
    verdict = infeasible(workload, _SPEC)
    assert verdict.mask.tolist() == [False, True, True]
    assert len(verdict) == 2
    assert verdict.reason(0) is None
    assert verdict.reason(1) is verdict.reason(2) is not None


def test_no_jobs() -> None:
    empty = Workload.from_jobs([{"submit_s": 0.0, "duration_s": 1.0, "num_gpus": 1}]).head(0)
    assert infeasible(empty, _SPEC).mask.tolist() == []


_NODES = st.lists(
    st.tuples(
        st.sampled_from("AB"),
        st.integers(0, 4),
        st.none() | st.integers(0, 12),
        st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=3,
)
_REQUESTS = st.builds(
    Request,
    num_gpus=st.integers(0, 6),
    gpu_types=st.sampled_from([(), ("A",), ("B",), ("A", "B"), ("Z",)]),
    cpu_milli=st.integers(0, 24),
    memory_mib=st.integers(0, 24),
    single_node=st.booleans(),
)


def _can_be_placed(request: Request, nodes: tuple[Node, ...]) -> bool:
    """Try every split of the GPUs over the nodes."""
    for taken in itertools.product(*(range(n.num_gpus + 1) for n in nodes)):
        if sum(taken) != request.num_gpus:
            continue
        used = [(node, gpus) for node, gpus in zip(nodes, taken, strict=True) if gpus]
        if not request.num_gpus:
            return any(_holds(request, node, 1, 1) for node in nodes)
        one_type = len({node.gpu_type for node, _ in used}) == 1
        allowed = all(not request.gpu_types or n.gpu_type in request.gpu_types for n, _ in used)
        together = len(used) == 1 or not request.single_node
        fits = all(_holds(request, node, gpus, request.num_gpus) for node, gpus in used)
        if one_type and allowed and together and fits:
            return True
    return False


def _holds(request: Request, node: Node, part: int, whole: int) -> bool:
    if not request.num_gpus and request.gpu_types and node.gpu_type not in request.gpu_types:
        return False
    cpu = node.cpu_milli is None or request.cpu_milli * part <= node.cpu_milli * whole
    memory = node.memory_mib is None or request.memory_mib * part <= node.memory_mib * whole
    return cpu and memory


@given(_NODES, _REQUESTS)
def test_verdict_agrees_with_trying_everything(
    nodes: list[tuple[str, int, int | None, int | None]], request: Request
) -> None:
    spec = ClusterSpec(
        tuple(
            Node(name=str(i), gpu_type=t, num_gpus=n, cpu_milli=cpu, memory_mib=memory)
            for i, (t, n, cpu, memory) in enumerate(nodes)
        )
    )
    assert (misfit(request, spec) is None) == _can_be_placed(request, spec.nodes)


def test_a_million_jobs_cost_what_their_requests_cost() -> None:
    rng = np.random.default_rng(0)
    jobs = {
        "submit_s": np.arange(200_000.0),
        "duration_s": np.ones(200_000),
        "num_gpus": rng.choice([1, 2, 4, 8, 16], size=200_000),
    }
    import pandas as pd

    workload = Workload(pd.DataFrame(jobs))
    assert len(workload.requests) == 5
    verdict = infeasible(workload, _SPEC)
    assert len(verdict) == int((jobs["num_gpus"] == 16).sum())
    assert len(verdict.by_request) == 5
