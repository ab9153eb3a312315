"""Topology-aware placement and the tree it reads, against networkx on the graph itself."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.free import FreeGpus
from policies.placement.tree import Tree
from policies.registry import make_placement
from traces import Allocation, ClusterSpec, Request
from traces.cluster import Links, gpus_of

links = st.builds(
    lambda device, node, rack: Links(
        device_gb_per_s=device, node_gb_per_s=node, rack_gb_per_s=rack
    ),
    st.sampled_from([4.0, 10.0, 150.0]),
    st.sampled_from([4.0, 12.5]),
    st.sampled_from([2.0, 6.0, 100.0]),
)


def vertices(spec: ClusterSpec, allocation: Allocation) -> list[str]:
    return [f"{spec.nodes[n].name}/{g}" for n, mask in allocation.shares for g in gpus_of(mask)]


def slowest(spec: ClusterSpec, devices: list[str]) -> float:
    """The least bandwidth on any path between two devices, in the graph."""
    graph = spec.graph()
    return min(
        (
            graph.edges[edge]["gb_per_s"]
            for a, b in combinations(devices, 2)
            for edge in nx.utils.pairwise(nx.shortest_path(graph, a, b))
        ),
        default=float("inf"),
    )


def least_cut(spec: ClusterSpec, devices: list[str]) -> float:
    """Minimum cut between the devices and all others, in the graph."""
    graph = spec.graph()
    rest = [v for v in graph if graph.nodes[v]["level"] == "device" and v not in devices]
    for end, group in (("source", devices), ("sink", rest)):
        for vertex in group:
            graph.add_edge(end, vertex, gb_per_s=float("inf"))
    if not rest:
        return 0.0
    value: float = nx.minimum_cut_value(graph, "source", "sink", capacity="gb_per_s")
    return value


@given(
    link=links,
    text=st.sampled_from(["2x2:a", "4x2:a:2", "3x1:a:2,2x3:b:1", "6x2:a:3"]),
    data=st.data(),
)
@settings(max_examples=60)
def test_ring_and_cut_are_those_of_the_graph(link: Links, text: str, data: st.DataObject) -> None:
    spec = ClusterSpec(ClusterSpec.parse(text).nodes, link)
    shares = []
    for node, machine in enumerate(spec.nodes):
        mask = data.draw(st.integers(0, (1 << machine.num_gpus) - 1))
        if mask:
            shares.append((node, mask))
    if not shares:
        return
    tree = Tree(spec)
    devices = vertices(spec, Allocation(tuple(shares)))
    assert tree.ring_gb_per_s(shares) == slowest(spec, devices)
    assert tree.cut_gb_per_s(shares) == pytest.approx(least_cut(spec, devices))


@given(
    link=links.filter(lambda k: k.device_gb_per_s >= k.node_gb_per_s),
    taken=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    gang=st.integers(1, 6),
)
@settings(max_examples=60)
def test_no_set_has_a_faster_ring(link: Links, taken: list[int], gang: int) -> None:
    spec = ClusterSpec(ClusterSpec.parse("6x2:a:2").nodes, link)
    free = FreeGpus(spec)
    for node, count in enumerate(taken):
        if count:
            free.take(Allocation(((node, (1 << count) - 1),)), Request(num_gpus=count))
    placed = make_placement("topology").place(Request(num_gpus=gang), free)
    idle = [(n, g) for n in range(6) for g in gpus_of(free.mask[n])]
    if placed is None:
        assert len(idle) < gang
        return
    tree = Tree(spec)
    best = 0.0
    for chosen in combinations(idle, gang):
        masks: dict[int, int] = {}
        for node, gpu in chosen:
            masks[node] = masks.get(node, 0) | 1 << gpu
        best = max(best, tree.ring_gb_per_s(sorted(masks.items())))
    assert tree.ring_gb_per_s(placed.shares) == best


# Two racks of three nodes of 4, free GPUs per node:
#
#   rack 0:  2  3  4        rack 1:  4  2  0
#
# A gang of 2: nodes 0 and 4 are tightest; rack 1 has less left, so node 4, and rack 0 stays whole.
# A gang of 6: no node holds it; both racks do (9 and 6): the tighter, rack 1.
# A gang of 7: only rack 0 does: 4 of node 2 and the 3 of node 1.
# A gang of 12: across: all of rack 0 (9) and 3 of rack 1, from the one node that has them.
@pytest.mark.parametrize(
    ("gang", "expected"),
    [
        (2, {4: 2}),
        (4, {3: 4}),
        (6, {3: 4, 4: 2}),
        (7, {1: 3, 2: 4}),
        (12, {0: 2, 1: 3, 2: 4, 3: 3}),
        (15, {0: 2, 1: 3, 2: 4, 3: 4, 4: 2}),
        (16, None),
    ],
)
def test_racks(gang: int, expected: dict[int, int] | None) -> None:
    free = FreeGpus(ClusterSpec.parse("6x4:a:3"))
    for node, count in enumerate((2, 1, 0, 0, 2, 4)):
        if count:
            free.take(Allocation(((node, (1 << count) - 1),)), Request(num_gpus=count))
    placed = make_placement("topology").place(Request(num_gpus=gang), free)
    found = None if placed is None else {n: m.bit_count() for n, m in placed.shares}
    assert found == expected


def test_a_node_that_is_filled_is_cut_off_at_its_uplink() -> None:
    # Nodes of 8 and 2 in two racks, two GPUs free in each. Taken whole, the small node is cut off
    # at its 12.5 GB/s; two of the eight could only be cut off at their own 10 + 10.
    spec = ClusterSpec(
        ClusterSpec.parse("1x8:a,1x2:a").nodes, Links(device_gb_per_s=10.0, node_gb_per_s=12.5)
    )
    free = FreeGpus(spec)
    free.take(Allocation(((0, 0b111111),)), Request(num_gpus=6))
    placed = make_placement("topology").place(Request(num_gpus=2), free)
    assert placed == Allocation(((1, 0b11),))
    assert Tree(spec).cut_gb_per_s(placed.shares) == 12.5
    assert Tree(spec).cut_gb_per_s(((0, 0b11000000),)) == 20.0
