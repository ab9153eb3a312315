"""Fragmentation: how much idle GPU a typical job cannot use, per node and per cluster.

The measure of "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation
Gradient Descent" (Weng et al., ATC'23, sections 3 and 4). Tasks fall into classes ``m`` of
popularity ``p_m``. Of node ``u``, ``F_u(m)`` is

- all idle GPU, if ``u`` cannot run a task of ``m`` (CPU, memory, GPU type, too few GPUs with
  enough left), or if ``m`` needs no GPU;
- otherwise what is idle on the GPUs that have less left than ``m`` needs of each;

and ``F_u = sum of p_m F_u(m)``: the idle GPU of ``u`` that a task drawn at random cannot use.

Ours: a gang that may span nodes counts as a task of one node if the type has a node of its size,
and otherwise as a task of a whole node with its part of the CPUs and memory (the paper has no
gangs across nodes). Popularities are those of the covered classes, made to sum to 1, as in the
published code. Sums are kept in integers (jobs times thousandths of a GPU), so that equal
fragmentation is equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import ne
from typing import Any

from policies.free import WHOLE, FreeGpus, flat
from traces import ClusterSpec, Node, Request, UsageError

# Distinct node states are few while a cluster is busy with few kinds of jobs; this bounds them.
CACHE_SIZE = 500_000
State = tuple[int, tuple[int, ...], int | None, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskClass:
    """A kind of task and how many jobs are of it: popularity is that over the classes' sum."""

    request: Request
    jobs: int


def typical(demand: Mapping[Request, int], cover: float = 0.95) -> tuple[TaskClass, ...]:
    """Return the most frequent requests that make up ``cover`` of all jobs, most frequent first.

    ``demand`` counts jobs per request. Raises :class:`UsageError` unless 0 < cover <= 1.
    """
    if not 0.0 < cover <= 1.0:
        raise UsageError(f"cover is {cover}; expected a share of the jobs above 0, at most 1")
    ranked = sorted(demand.items(), key=lambda item: (-item[1], _request_key(item[0])))
    wanted = cover * sum(demand.values())
    chosen: list[tuple[Request, int]] = []
    covered = 0
    for request, count in ranked:
        if covered >= wanted:
            break
        chosen.append((request, count))
        covered += count
    return tuple(TaskClass(request=r, jobs=c) for r, c in chosen if c)


def _request_key(request: Request) -> tuple[int, int, tuple[str, ...], int, int, bool]:
    return (
        request.num_gpus,
        request.gpu_milli,
        request.gpu_types,
        request.cpu_milli,
        request.memory_mib,
        request.single_node,
    )


@dataclass(frozen=True, slots=True)
class _Need:
    """Classes that need the same of the GPUs of one kind of node.

    ``whole`` GPUs, or (``whole`` 0) ``milli`` of one. ``rows``: (jobs, CPU/1000, MiB).
    """

    whole: int
    milli: int
    jobs: int
    rows: tuple[tuple[int, int, int], ...]


class Measure:
    """``F_u`` for the nodes of one inventory; states are remembered.

    ``jobs``: how many jobs the classes stand for.
    """

    def __init__(self, classes: Sequence[TaskClass], spec: ClusterSpec) -> None:
        self.jobs = sum(task.jobs for task in classes)
        widths: dict[str, int] = {}
        for machine in spec.nodes:
            widths[machine.gpu_type] = max(widths.get(machine.gpu_type, 0), machine.num_gpus)
        kinds: dict[tuple[str, int], int] = {}
        self._rules: list[tuple[int, tuple[_Need, ...]]] = []
        self.kind_of: list[int] = []
        for machine in spec.nodes:
            key = (machine.gpu_type, machine.num_gpus)
            if key not in kinds:
                kinds[key] = len(kinds)
                self._rules.append(_rules(classes, machine, widths[machine.gpu_type]))
            self.kind_of.append(kinds[key])
        self._known: list[dict[State, int]] = [{} for _ in kinds]

    def milli(self, node: int, state: State) -> float:
        """Return ``F_u`` of a node in a state, in thousandths of a GPU."""
        return self.weighted(node, state) / self.jobs if self.jobs else 0.0

    def weighted(self, node: int, state: State) -> int:
        """Return ``F_u`` of a node in a state, in thousandths of a GPU times :attr:`jobs`.

        A state is (wholly free GPUs, thousandths free on each shared GPU in ascending order,
        CPU/1000 free, MiB free); the last two are None where the inventory states no limit.
        """
        kind = self.kind_of[node]
        known = self._known[kind]
        found = known.get(state)
        if found is None:
            if len(known) > CACHE_SIZE:
                known.clear()
            found = known[state] = self._compute(kind, state)
        return found

    def _compute(self, kind: int, state: State) -> int:
        whole, shares, cpu_free, memory_free = state
        sharing = sum(shares)
        idle = whole * WHOLE + sharing
        if not idle:
            return 0
        largest = shares[-1] if shares else 0
        never, needs = self._rules[kind]
        total = never * idle
        for need in needs:
            if need.whole:
                fits, short = whole >= need.whole, sharing
            else:
                fits = whole > 0 or largest >= need.milli
                short = sum(s for s in shares if s < need.milli)
            if not fits:
                total += need.jobs * idle
                continue
            runs = sum(
                jobs
                for jobs, cpu, memory in need.rows
                if (cpu_free is None or cpu_free >= cpu)
                and (memory_free is None or memory_free >= memory)
            )
            total += runs * short + (need.jobs - runs) * idle
        return total


def _rules(
    classes: Sequence[TaskClass], machine: Node, width: int
) -> tuple[int, tuple[_Need, ...]]:
    """Sort the classes for one kind of node: how many it can never run, and the rest."""
    never = 0
    rows: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for task in classes:
        request = task.request
        count = request.num_gpus
        if count > width and not request.single_node:
            count = machine.num_gpus
        allowed = not request.gpu_types or machine.gpu_type in request.gpu_types
        if not count or count > machine.num_gpus or not allowed:
            never += task.jobs
            continue
        cpu = -(-request.cpu_milli * count // request.num_gpus)
        memory = -(-request.memory_mib * count // request.num_gpus)
        need = (count, WHOLE) if request.gpu_milli == WHOLE else (0, request.gpu_milli)
        rows.setdefault(need, []).append((task.jobs, cpu, memory))
    needs = (
        _Need(whole, milli, sum(row[0] for row in same), tuple(same))
        for (whole, milli), same in sorted(rows.items())
    )
    return never, tuple(needs)


def state_of(free: FreeGpus, node: int) -> State:
    """Return the state of one node, as :meth:`Measure.milli` takes it."""
    return (
        free.mask[node].bit_count(),
        tuple(sorted(free.shared[node].values())),
        free.cpu_milli[node],
        free.memory_mib[node],
    )


class Fragmentation:
    """The measure of a whole cluster, in GPUs per pool: ``Fragmentation(classes)(view.free)``.

    Only nodes that changed since the last call are looked at again, so sampling a run of
    thousands of nodes costs little.
    """

    def __init__(self, classes: Sequence[TaskClass]) -> None:
        self.classes = tuple(classes)
        self._spec: ClusterSpec | None = None

    def __call__(self, free: FreeGpus) -> list[float]:
        """Return fragmented GPUs of each pool, in the order of ``free.pools``."""
        if self._spec is not free.spec:
            self._spec = free.spec
            self._measure = Measure(self.classes, free.spec)
            nodes = range(len(free.spec.nodes))
            self._of_pool = [[n for n in nodes if free.pool_of[n] == p.index] for p in free.pools]
            self._milli = [0.0] * len(nodes)
            self._seen: list[list[Any]] = [[None] * len(nodes) for _ in range(4)]
        limits = (free.cpu_milli, free.memory_mib) if free.limited else ()
        for column, values in enumerate((free.mask, free.shared, *limits)):
            seen, now = self._seen[column], flat(values)
            if now != seen:
                for node in compress(range(len(now)), map(ne, now, seen)):
                    if free.pool_of[node] >= 0:
                        self._milli[node] = self._measure.milli(node, state_of(free, node))
                self._seen[column] = now.copy()
        totals = []
        for nodes_of in self._of_pool:
            total = 0.0
            for node in nodes_of:
                total += self._milli[node]
            totals.append(total)
        return [milli / WHOLE for milli in totals]
