"""FGD: put each task where fragmentation grows least.

"Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent"
(Weng et al., ATC'23, section 4): of all nodes and GPUs that can take the task, the one with the
largest drop of ``F_u`` (``policies/placement/fragmentation.py``). The task classes are the most
frequent requests of the workload, as in the paper; the run hands them over before it begins
(``prepare``), since a placement sees the free devices only.

The published code rounds: it scores ``int(100 sigmoid(drop / 1000))``, so that most candidates
tie, and ties pack the cluster in the order of its nodes. The paper has no rounding
(``score="exact"``), but the published fill of openb is reached with it only
(``benchmarks/openb_fill.py``), so it is the default. Either way equal scores go to the lower node,
then the lower GPU.
A gang that may span nodes and fits on none takes the fewest nodes (the paper has no such tasks).
All allowed GPU types are compared at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from policies.contract import PlacementPolicy
from policies.free import WHOLE, FreeGpus, flat
from policies.placement.consolidated import fewest_nodes
from policies.placement.fragmentation import Measure, State, TaskClass, state_of, typical
from policies.placement.room import (
    cpu_hosts,
    fill,
    nodes_of,
    on_one_node,
    room,
    share_gpus,
    share_on,
)
from traces import Allocation, ClusterSpec, Request, UsageError


@dataclass(frozen=True, kw_only=True)
class Fgd(PlacementPolicy):
    """Largest drop of fragmentation first.

    ``cover``: the most frequent requests that make up this share of the jobs are the task
    classes (the paper's evaluation has 0.95; the library's default is 0.6). ``score``: the drop
    itself ("exact"), or rounded as in the published code ("published"). Unprepared it knows no
    classes, and is first fit.
    """

    name: ClassVar[str] = "fgd"
    by_count: ClassVar[bool] = True

    cover: float = 0.95
    score: Literal["exact", "published"] = "published"

    def __post_init__(self) -> None:
        if not 0.0 < self.cover <= 1.0:
            raise UsageError(f"fgd: cover is {self.cover}; expected a share above 0, at most 1")

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            f"The task classes are the most frequent requests that make up {self.cover:.0%} of the"
            " whole workload, known beforehand.",
            ("The exact drop" if self.score == "exact" else "int(100 sigmoid(drop in GPUs))")
            + " decides; ties go to the lower node, then to the lower GPU.",
            "A gang that fits on no single node takes the fewest nodes, if it may span.",
        )

    def prepare(self, demand: Mapping[Request, int]) -> PlacementPolicy:
        """Learn the task classes."""
        return PreparedFgd(cover=self.cover, score=self.score, classes=typical(demand, self.cover))

    @property
    def task_classes(self) -> tuple[TaskClass, ...]:
        """The classes it measures fragmentation with."""
        return ()

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Take the node and GPU with the largest drop."""
        best = self._descents(free.spec).best(request, free)
        if best is not None:
            node, gpu = best
            if request.num_gpus == 0:
                return Allocation(((node, 0),))
            if request.gpu_milli != WHOLE:
                return share_on(request, node, gpu)
            return fill(request, free, [(node, request.num_gpus)])
        if on_one_node(request):
            return None
        for pool in free.candidates(request):
            if pool.free >= request.num_gpus:
                placed = fewest_nodes(request, free, pool.at_least(1))
                if placed is not None:
                    return placed
        return None

    def _descents(self, spec: ClusterSpec) -> Descents:
        """What was computed for this inventory so far: a memory of results, not of events."""
        known = self.__dict__.get("_memory")
        if not isinstance(known, Descents) or known.spec is not spec:
            known = Descents(self.task_classes, spec, rounded=self.score == "published")
            self.__dict__["_memory"] = known
        return known


@dataclass(frozen=True, kw_only=True)
class PreparedFgd(Fgd):
    """FGD that knows its task classes, most frequent first."""

    classes: tuple[TaskClass, ...] = ()

    @property
    def task_classes(self) -> tuple[TaskClass, ...]:
        """The classes it measures fragmentation with."""
        return self.classes

    def params(self) -> dict[str, Any]:
        """Parameters by name, the classes by their number."""
        return {"cover": self.cover, "score": self.score, "classes": len(self.classes)}


class Descents:
    """The drop of ``F_u`` on every node, per request; a node is redone when its state changed."""

    def __init__(self, classes: tuple[TaskClass, ...], spec: ClusterSpec, *, rounded: bool) -> None:
        self.spec = spec
        self._rounded = rounded
        self._measure = Measure(classes, spec)
        # Per request: each node's state when last looked at, its score (None: does not fit), GPU.
        self._known: dict[Request, tuple[list[Any], list[tuple[int, int] | None]]] = {}

    def best(self, request: Request, free: FreeGpus) -> tuple[int, int] | None:
        """Return the (node, GPU) with the largest drop; the GPU matters for shares only."""
        count = len(free.bits)
        seen, drops = self._known.setdefault(request, ([None] * count, [None] * count))
        masks, shared = flat(free.mask), flat(free.shared)
        cpus, memories = flat(free.cpu_milli), flat(free.memory_mib)
        best: tuple[int, int] | None = None
        largest = 0
        for node in self._nodes(request, free):
            now = (masks[node], shared[node], cpus[node], memories[node])
            if seen[node] != now:
                seen[node] = now
                drops[node] = self._drop(request, free, node)
            drop = drops[node]
            if drop is not None and (best is None or drop[0] > largest):
                largest = drop[0]
                best = (node, drop[1])
        return best

    @staticmethod
    def _nodes(request: Request, free: FreeGpus) -> Iterator[int]:
        if request.num_gpus == 0:
            return cpu_hosts(request, free)
        bits = 0
        for pool in free.candidates(request):
            if request.gpu_milli == WHOLE:
                bits |= pool.at_least(request.num_gpus)
            else:
                bits |= pool.sharing | (pool.nodes & ~pool.levels[0])
        return nodes_of(bits & ~free.down)

    def _drop(self, request: Request, free: FreeGpus, node: int) -> tuple[int, int] | None:
        before = state_of(free, node)
        whole, shares, cpu, memory = before
        if request.num_gpus and not holds(request, free, node):
            return None
        cpu_left = None if cpu is None else cpu - request.cpu_milli
        memory_left = None if memory is None else memory - request.memory_mib
        options: list[tuple[int, State]] = []
        if request.num_gpus == 0 or request.gpu_milli == WHOLE:
            options.append((0, (whole - request.num_gpus, shares, cpu_left, memory_left)))
        else:
            for milli, gpu in share_gpus(request, free, node):
                rest = list(shares)
                if milli != WHOLE:
                    rest.remove(milli)
                rest.append(milli - request.gpu_milli)
                left = whole - (milli == WHOLE)
                options.append((gpu, (left, tuple(sorted(rest)), cpu_left, memory_left)))
        now = self._measure.weighted(node, before)
        best: tuple[int, int] | None = None
        for gpu, after in options:
            score = self._score(now - self._measure.weighted(node, after))
            if best is None or score > best[0]:
                best = (score, gpu)
        return best

    def _score(self, drop: int) -> int:
        """The drop (jobs times thousandths of a GPU), or what the published code makes of it."""
        if not self._rounded or not self._measure.jobs:
            return drop
        gpus = drop / self._measure.jobs / WHOLE
        return int(100 / (1 + math.exp(-gpus)))


def holds(request: Request, free: FreeGpus, node: int) -> bool:
    """Whether the node's host and wholly free GPUs can take all of the request."""
    if request.gpu_milli != WHOLE:
        return free.hosts(node, request.cpu_milli, request.memory_mib)
    return room(request, free, node) >= request.num_gpus
