"""The cluster a workload runs on: nodes, GPU types, racks, links.

``ClusterSpec.parse("64x8:v100")`` is 64 nodes of 8 V100. Groups are separated by commas, and a
third field puts that many nodes on one rack switch: ``"32x8:v100:16,16x4:t4"``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from traces.errors import UsageError

if TYPE_CHECKING:
    import networkx as nx

_GROUP = re.compile(r"^(?P<nodes>\d+)x(?P<gpus>\d+)(?::(?P<type>[\w.+-]+))?(?::(?P<rack>\d+))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine. ``cpu_milli`` and ``memory_mib`` None mean: not a limit."""

    name: str
    gpu_type: str
    num_gpus: int
    gpu_memory_mib: int | None = None
    cpu_milli: int | None = None
    memory_mib: int | None = None
    rack: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Bandwidth (GB/s) and latency (us) of each level of the tree; defaults are of one NVLink
    host, 100 Gb/s to the rack switch and the same to the spine, 2:1 over-subscribed.
    """

    device_gb_per_s: float = 150.0
    device_latency_us: float = 2.0
    node_gb_per_s: float = 12.5
    node_latency_us: float = 5.0
    rack_gb_per_s: float = 100.0
    rack_latency_us: float = 10.0


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """An inventory: nodes in a fixed order, and the links between them."""

    nodes: tuple[Node, ...]
    links: Links = field(default_factory=Links)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise UsageError(f"inventory: two nodes are named {node.name!r}; names are unique")
            if node.num_gpus < 0:
                raise UsageError(f"inventory: node {node.name!r} has {node.num_gpus} GPUs")
            seen.add(node.name)

    @classmethod
    def parse(cls, text: str) -> ClusterSpec:
        """Build a cluster from ``NODESxGPUS[:TYPE[:NODES_PER_RACK]]``, groups joined by commas.

        Raises :class:`UsageError` when the text is not of that form.
        """
        nodes: list[Node] = []
        racks = 0
        for group in text.split(","):
            match = _GROUP.match(group.strip())
            if match is None or int(match["nodes"]) == 0 or int(match["gpus"]) == 0:
                raise UsageError(
                    f"cluster {text!r}: {group.strip()!r} is not NODESxGPUS[:TYPE[:NODES_PER_RACK]]"
                    " with counts of at least 1, for example 64x8:v100 or 32x8:v100:16,16x4:t4"
                )
            if int(match["gpus"]) > 1024 or int(match["nodes"]) > 1_000_000:
                raise UsageError(f"cluster {text!r}: at most 1000000 nodes of at most 1024 GPUs")
            gpu_type = match["type"] or "gpu"
            per_rack = int(match["rack"]) if match["rack"] else int(match["nodes"])
            if per_rack == 0:
                raise UsageError(f"cluster {text!r}: a rack holds at least one node")
            count = int(match["nodes"])
            for i in range(count):
                nodes.append(
                    Node(
                        name=f"{gpu_type}-{len(nodes):04d}",
                        gpu_type=gpu_type,
                        num_gpus=int(match["gpus"]),
                        rack=f"rack-{racks + i // per_rack:03d}",
                    )
                )
            racks += -(-count // per_rack)
        return cls(tuple(nodes))

    @property
    def num_gpus(self) -> int:
        """All GPUs."""
        return sum(n.num_gpus for n in self.nodes)

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """GPU types in order of first appearance."""
        return tuple(dict.fromkeys(n.gpu_type for n in self.nodes if n.num_gpus))

    def gpus_by_type(self) -> dict[str, int]:
        """GPUs per type."""
        counts = dict.fromkeys(self.gpu_types, 0)
        for node in self.nodes:
            if node.num_gpus:
                counts[node.gpu_type] += node.num_gpus
        return counts

    def describe(self) -> str:
        """Return a one-line summary, such as ``64 nodes, 512 v100``."""
        types = ", ".join(f"{n} {t}" for t, n in self.gpus_by_type().items())
        return f"{len(self.nodes)} nodes, {types}"

    def digest(self) -> str:
        """SHA-256 of the inventory's content."""
        return hashlib.sha256(repr((self.nodes, self.links)).encode()).hexdigest()

    def graph(self) -> nx.Graph[str]:
        """The topology: spine - rack - node - device, with ``gb_per_s`` and ``latency_us`` edges.

        Device vertices are ``"<node>/<gpu>"``; a vertex has ``level`` (spine, rack, node, device).
        """
        import networkx as nx  # noqa: PLC0415  (0.1 s; the front door must answer at once)

        graph: nx.Graph[str] = nx.Graph()
        links = self.links
        graph.add_node("spine", level="spine")
        for node in self.nodes:
            rack = f"rack:{node.rack or 'rack-000'}"
            if rack not in graph:
                graph.add_node(rack, level="rack")
                graph.add_edge(
                    "spine", rack, gb_per_s=links.rack_gb_per_s, latency_us=links.rack_latency_us
                )
            graph.add_node(node.name, level="node", gpu_type=node.gpu_type)
            graph.add_edge(
                rack, node.name, gb_per_s=links.node_gb_per_s, latency_us=links.node_latency_us
            )
            for gpu in range(node.num_gpus):
                device = f"{node.name}/{gpu}"
                graph.add_node(device, level="device", gpu_type=node.gpu_type)
                graph.add_edge(
                    node.name,
                    device,
                    gb_per_s=links.device_gb_per_s,
                    latency_us=links.device_latency_us,
                )
        return graph


def mask_of(gpus: Sequence[int]) -> int:
    """Pack GPU indices of one node into a bit mask."""
    mask = 0
    for gpu in gpus:
        mask |= 1 << gpu
    return mask


def gpus_of(mask: int) -> tuple[int, ...]:
    """Unpack a bit mask into ascending GPU indices."""
    gpus = []
    while mask:
        low = mask & -mask
        gpus.append(low.bit_length() - 1)
        mask ^= low
    return tuple(gpus)


class Allocation(NamedTuple):
    """The concrete devices of one job: ``shares`` is ``((node index, GPU mask), ...)``.

    Nodes ascend; the node index is the position in ``ClusterSpec.nodes``; bit ``i`` of the mask is
    GPU ``i`` of the node. ``gpu_milli`` is the share taken of each GPU. A CPU job has one share
    with mask 0.
    """

    shares: tuple[tuple[int, int], ...]
    gpu_milli: int = 1000

    @property
    def num_gpus(self) -> int:
        """Devices in it."""
        if len(self.shares) == 1:
            return self.shares[0][1].bit_count()
        return sum(mask.bit_count() for _, mask in self.shares)

    @property
    def num_nodes(self) -> int:
        """Nodes it touches."""
        return len(self.shares)

    def by_type(self, spec: ClusterSpec) -> Mapping[str, int]:
        """GPUs per type."""
        counts: dict[str, int] = {}
        for node, mask in self.shares:
            gpu_type = spec.nodes[node].gpu_type
            counts[gpu_type] = counts.get(gpu_type, 0) + mask.bit_count()
        return counts
