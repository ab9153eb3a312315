"""The inventory's topology as a tree: ring bandwidth and cut capacity of a set of devices.

Read once from ``ClusterSpec.graph()`` (networkx; spine, rack, node, device, with ``gb_per_s`` on
every edge). On a tree both questions have closed forms, so no search in the graph is needed per
placement; the tests compare them with networkx' paths and minimum cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

from traces import ClusterSpec

Shares = Sequence[tuple[int, int]]


class Tree:
    """The tree of one inventory.

    ``racks``: bit set of the nodes of each rack, in order of first appearance. Bandwidths are in
    GB/s: ``device_gb_per_s`` inside a node (the least of all devices), ``up_gb_per_s[node]`` from
    a node to its rack, ``rack_gb_per_s[rack]`` from a rack to the spine.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        graph = spec.graph()
        level = {vertex: str(data["level"]) for vertex, data in graph.nodes(data=True)}
        index = {machine.name: i for i, machine in enumerate(spec.nodes)}
        self.sizes = [machine.num_gpus for machine in spec.nodes]
        self.racks: list[int] = []
        self.rack_of = [0] * len(spec.nodes)
        self.up_gb_per_s = [0.0] * len(spec.nodes)
        self.rack_gb_per_s: list[float] = []
        self.device_gb_per_s = min(
            (
                float(link["gb_per_s"])
                for a, b, link in graph.edges(data=True)
                if "device" in (level[a], level[b])
            ),
            default=0.0,
        )
        for rack in [vertex for vertex in graph if level[vertex] == "rack"]:
            members = 0
            up = 0.0
            for near, link in graph.adj[rack].items():
                if level[near] == "node":
                    node = index[near]
                    members |= 1 << node
                    self.rack_of[node] = len(self.racks)
                    self.up_gb_per_s[node] = float(link["gb_per_s"])
                else:
                    up = float(link["gb_per_s"])
            self.racks.append(members)
            self.rack_gb_per_s.append(up)
        # The least cut that takes a node, or a rack, out of the set's side when none of it is in.
        self._node_alone = [
            min(up, size * self.device_gb_per_s)
            for up, size in zip(self.up_gb_per_s, self.sizes, strict=True)
        ]
        self._nodes_alone = [0.0] * len(self.racks)
        for node, rack_index in enumerate(self.rack_of):
            self._nodes_alone[rack_index] += self._node_alone[node]
        self._rack_alone = [
            min(up, alone) for up, alone in zip(self.rack_gb_per_s, self._nodes_alone, strict=True)
        ]
        self._all_alone = sum(self._rack_alone)
        self._node_cuts: dict[tuple[int, int, int], float] = {}

    def ring_gb_per_s(self, shares: Shares) -> float:
        """Bandwidth of the slowest link a ring over these devices needs; infinite for one device.

        A ring can visit nodes and racks one after another, so it crosses each link in each
        direction at most once.
        """
        nodes = [node for node, _ in shares]
        if sum(mask.bit_count() for _, mask in shares) < 2:
            return float("inf")
        slowest = self.device_gb_per_s
        if len(nodes) > 1:
            slowest = min(slowest, *(self.up_gb_per_s[n] for n in nodes))
            racks = {self.rack_of[n] for n in nodes}
            if len(racks) > 1:
                slowest = min(slowest, *(self.rack_gb_per_s[r] for r in sorted(racks)))
        return slowest

    def cut_gb_per_s(self, shares: Shares) -> float:
        """Least bandwidth of links that separate these devices from all others.

        Worked up the tree: for each switch, the least cut below it if the switch itself counts as
        inside the set, and if it counts as outside.
        """
        held = {node: mask.bit_count() for node, mask in shares}
        by_rack: dict[int, list[int]] = {}
        for node in sorted(held):
            by_rack.setdefault(self.rack_of[node], []).append(node)
        spine_inside, spine_outside = self._all_alone, 0.0
        for rack, nodes in sorted(by_rack.items()):
            up = self.rack_gb_per_s[rack]
            inside, outside = self._nodes_alone[rack], 0.0
            for node in nodes:
                node_up = self.up_gb_per_s[node]
                node_inside = (self.sizes[node] - held[node]) * self.device_gb_per_s
                node_outside = held[node] * self.device_gb_per_s
                inside += min(node_inside, node_outside + node_up) - self._node_alone[node]
                outside += min(node_outside, node_inside + node_up)
            spine_inside += min(inside, outside + up) - self._rack_alone[rack]
            spine_outside += min(outside, inside + up)
        return round(min(spine_inside, spine_outside), 6)  # equal sets stay equal

    def node_cut(self, node: int, count: int) -> float:
        """:meth:`cut_gb_per_s` of ``count`` devices of one node; equal cases are computed once."""
        key = (self.sizes[node], count, self.rack_of[node])
        if key not in self._node_cuts:
            self._node_cuts[key] = self.cut_gb_per_s([(node, (1 << count) - 1)])
        return self._node_cuts[key]
