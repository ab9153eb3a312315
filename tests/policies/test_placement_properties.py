"""What must hold for every placement on any small cluster in any state."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.free import FreeGpus, flat
from policies.placement.room import lowest_bits, on_one_node
from policies.registry import make_placement
from traces import Allocation, ClusterSpec, Request
from traces.cluster import Node

# Placements that find devices whenever there are any, and one that may choose to wait.
WORK_CONSERVING = (
    "count",
    "consolidated:require=false",
    "spread",
    "spread:each_gpu=true",
    "best-fit",
    "topology",
    "fgd",
    "fgd:score=exact",
)
ALL = (*WORK_CONSERVING, "consolidated")

machines = st.builds(
    lambda gpus, kind, cpu, memory, rack: (gpus, kind, cpu, memory, rack),
    st.integers(0, 3),
    st.sampled_from(["a", "b"]),
    st.one_of(st.none(), st.integers(0, 8)),
    st.one_of(st.none(), st.integers(0, 8)),
    st.sampled_from(["r0", "r1"]),
)


@st.composite
def specs(draw: st.DrawFn) -> ClusterSpec:
    found = draw(st.lists(machines, min_size=1, max_size=4))
    return ClusterSpec(
        tuple(
            Node(
                name=f"n{i}",
                gpu_type=kind,
                num_gpus=gpus,
                cpu_milli=cpu,
                memory_mib=memory,
                rack=rack,
            )
            for i, (gpus, kind, cpu, memory, rack) in enumerate(found)
        )
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    num_gpus = draw(st.integers(0, 6))
    return Request(
        num_gpus=num_gpus,
        gpu_milli=draw(st.sampled_from([250, 500, 700, 1000])) if num_gpus == 1 else 1000,
        gpu_types=draw(st.sampled_from([(), (), ("a",), ("b", "a")])),
        cpu_milli=draw(st.integers(0, 6)),
        memory_mib=draw(st.integers(0, 6)),
        single_node=draw(st.booleans()),
    )


def possible(request: Request, free: FreeGpus) -> list[Allocation]:
    """Every way to place a request up to the choice of equal GPUs, by trying them all."""
    found = []
    count = len(free.spec.nodes)
    if request.num_gpus == 0 or request.gpu_milli < 1000:
        for node, machine in enumerate(free.spec.nodes):
            if request.gpu_types and machine.gpu_type not in request.gpu_types:
                continue
            masks = [1 << g for g in range(machine.num_gpus)] if request.num_gpus else [0]
            found += [Allocation(((node, mask),), request.gpu_milli) for mask in masks]
    else:
        for pool in free.candidates(request):
            have = [
                free.mask[n].bit_count() if free.pool_of[n] == pool.index else 0
                for n in range(count)
            ]
            for taken in product(*(range(h + 1) for h in have)):
                if sum(taken) != request.num_gpus:
                    continue
                if request.single_node and sum(1 for t in taken if t) > 1:
                    continue
                chosen = [(n, lowest_bits(free.mask[n], t)) for n, t in enumerate(taken) if t]
                found.append(Allocation(tuple(chosen)))
    return [a for a in found if free.missing(a, request) is None]


def state(free: FreeGpus) -> object:
    """All that an index says, for comparison."""
    return (
        list(flat(free.mask)),
        [dict(s) for s in flat(free.shared)],
        list(flat(free.cpu_milli)),
        list(flat(free.memory_mib)),
        [
            (list(p.levels), p.nodes, p.sharing, p.free, p.share_milli, p.capacity, p.width)
            for p in free.pools
        ],
        free.down,
    )


def check(request: Request, allocation: Allocation, free: FreeGpus) -> None:
    """An allocation is what was asked for, and is there."""
    assert free.missing(allocation, request) is None
    assert allocation.num_gpus == request.num_gpus
    assert allocation.gpu_milli == request.gpu_milli
    nodes = [node for node, _ in allocation.shares]
    assert nodes == sorted(set(nodes))
    if request.num_gpus:
        assert all(mask for _, mask in allocation.shares)
    if on_one_node(request):
        assert len(nodes) == 1
    types = {free.spec.nodes[n].gpu_type for n in nodes}
    assert len(types) == 1
    assert not request.gpu_types or types <= set(request.gpu_types)


@pytest.mark.parametrize("name", ALL)
@given(spec=specs(), wishes=st.lists(requests(), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60)
def test_any_sequence_of_starts_and_stops(
    name: str, spec: ClusterSpec, wishes: list[Request], data: st.DataObject
) -> None:
    free = FreeGpus(spec)
    demand = {request: 1 + i for i, request in enumerate(wishes)}
    placement = make_placement(name).prepare(demand)
    held: list[tuple[Request, Allocation]] = []
    for request in wishes:
        stops = data.draw(st.booleans())
        if held and stops:
            gone, where = held.pop(data.draw(st.integers(0, len(held) - 1)))
            free.give(where, gone)
        before = state(free)
        ways = possible(request, free)
        allocation = placement.place(request, free)
        assert state(free) == before  # asking changes nothing
        if allocation is None:
            assert not ways or name == "consolidated"
            continue
        assert ways
        check(request, allocation, free)
        assert placement.place(request, free.fork()) == allocation
        fork = free.fork()
        fork.take(allocation, request)
        assert state(free) == before
        free.take(allocation, request)
        assert state(fork) == state(free)
        fork.give(allocation, request)
        assert state(fork) == before
        held.append((request, allocation))
    for request, allocation in held:
        free.give(allocation, request)
    assert state(free) == state(FreeGpus(spec))


@given(spec=specs(), wishes=st.lists(requests(), min_size=1, max_size=6))
@settings(max_examples=100)
def test_exact_by_count_is_the_truth(spec: ClusterSpec, wishes: list[Request]) -> None:
    free = FreeGpus(spec)
    placements = [make_placement(name) for name in ALL]
    for request in wishes:
        enough = any(pool.free >= request.num_gpus for pool in free.candidates(request))
        for placement in placements:
            if placement.exact_by_count(request, free):
                assert (placement.place(request, free) is not None) == enough
        allocation = placements[0].place(request, free)
        if allocation is not None:
            free.take(allocation, request)


@given(spec=specs(), wishes=st.lists(requests(), min_size=1, max_size=6))
@settings(max_examples=100)
def test_consolidated_uses_the_fewest_nodes(spec: ClusterSpec, wishes: list[Request]) -> None:
    free = FreeGpus(spec)
    strict = make_placement("consolidated")
    wishful = make_placement("consolidated:require=false")
    for request in wishes:
        if request.gpu_milli < 1000 or request.num_gpus == 0:
            continue
        gang = Request(
            num_gpus=request.num_gpus,
            gpu_types=request.gpu_types[:1] or ("a",),
            cpu_milli=request.cpu_milli,
            memory_mib=request.memory_mib,
        )
        empty = possible(gang, FreeGpus(spec))
        placed = strict.place(gang, free)
        if placed is not None:
            assert placed.num_nodes == min(a.num_nodes for a in empty)
        found = wishful.place(gang, free)
        if found is not None:
            assert found.num_nodes == min(a.num_nodes for a in possible(gang, free))
            free.take(found, gang)
    # On the empty cluster it never refuses what can run at all.
    for request in wishes:
        assert (strict.place(request, FreeGpus(spec)) is None) == (
            not possible(request, FreeGpus(spec))
        )
