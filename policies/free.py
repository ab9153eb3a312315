"""Which GPUs are free: an index that answers placement queries without scanning nodes.

Per GPU type, the nodes with exactly ``k`` wholly free GPUs are one bit set (``levels[k]``, bit =
node index), so "the fullest node with room for 4" is a handful of integer operations whatever the
size of the cluster. ``fork()`` gives a scratch copy that costs what it changes: policies try
starts and stops on forks, never on the live index.

GPUs shared by fractional jobs leave the whole-GPU masks and live in ``shared`` with the thousandths
still free. CPUs and memory are tracked only on nodes that state them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from traces import Allocation, ClusterSpec, Request

WHOLE = 1000
FEW_NODES = 256  # up to so many it is cheaper to copy their masks than to read through to them


class Overlay(dict[int, Any]):
    """Reads fall through to ``base``; writes stay here."""

    __slots__ = ("base",)

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def __missing__(self, key: int) -> Any:
        return self.base[key]


def flat(values: Any) -> list[Any]:
    """Return a per-node list of a live index or of a fork (the list itself if it is live)."""
    if not isinstance(values, Overlay):
        listed: list[Any] = values
        return listed
    copied = list(flat(values.base))
    for node, value in values.items():
        copied[node] = value
    return copied


class Pool:
    """Free GPUs of one type. ``levels[k]``: bit set of nodes with exactly k wholly free.

    ``width`` is the size of its largest node, ``uniform`` says that all are of that size, and
    ``sharing`` is the bit set of nodes with a GPU that fractional jobs share.
    """

    __slots__ = (
        "capacity",
        "free",
        "gpu_type",
        "index",
        "levels",
        "nodes",
        "share_milli",
        "sharing",
        "uniform",
        "width",
    )

    def __init__(self, index: int, gpu_type: str, width: int) -> None:
        self.index = index
        self.gpu_type = gpu_type
        self.width = width
        self.levels = [0] * (width + 1)
        self.uniform = True
        self.nodes = 0  # bit set of all nodes of the pool
        self.sharing = 0
        self.free = 0  # wholly free GPUs
        self.share_milli = 0  # free thousandths on GPUs that are shared already
        self.capacity = 0  # GPUs in service

    def copy(self) -> Pool:
        """Return an independent copy."""
        other = Pool.__new__(Pool)
        other.index = self.index
        other.gpu_type = self.gpu_type
        other.width = self.width
        other.uniform = self.uniform
        other.sharing = self.sharing
        other.levels = self.levels.copy()
        other.nodes = self.nodes
        other.free = self.free
        other.share_milli = self.share_milli
        other.capacity = self.capacity
        return other

    def at_least(self, count: int) -> int:
        """Bit set of the nodes with at least ``count`` wholly free GPUs."""
        if count == 1:
            return self.nodes & ~self.levels[0]
        bits = 0
        for level in self.levels[count:]:
            bits |= level
        return bits


class FreeGpus:
    """The free devices of a cluster, live or forked.

    ``mask[node]`` is the mask of wholly free GPUs; ``shared[node]`` maps GPU index to the free
    thousandths (0 to 999) of GPUs that hold fractional jobs; ``cpu_milli[node]`` and
    ``memory_mib[node]`` are what is left, or None where the inventory states no limit. ``down`` is
    the bit set of machines that are out of service altogether, CPUs and all.
    """

    __slots__ = (
        "_own",
        "_shares_own",
        "bits",
        "cpu_milli",
        "down",
        "limited",
        "mask",
        "memory_mib",
        "pool_of",
        "pools",
        "shared",
        "spec",
    )

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.bits = [1 << i for i in range(len(spec.nodes))]
        types = list(spec.gpu_types)
        widths = {t: max(n.num_gpus for n in spec.nodes if n.gpu_type == t) for t in types}
        self.pools = [Pool(i, t, widths[t]) for i, t in enumerate(types)]
        by_type = {t: i for i, t in enumerate(types)}
        # Nodes without GPUs belong to no pool: -1.
        self.pool_of = [by_type[n.gpu_type] if n.num_gpus else -1 for n in spec.nodes]
        self.mask: Any = [0] * len(spec.nodes)
        self.shared: Any = [{}] * len(spec.nodes)
        self.cpu_milli: Any = [n.cpu_milli for n in spec.nodes]
        self.memory_mib: Any = [n.memory_mib for n in spec.nodes]
        self.limited = any(n.cpu_milli is not None or n.memory_mib is not None for n in spec.nodes)
        self.down = 0
        self._own: set[int] | None = None  # pools copied by this fork; None: the live index
        self._shares_own = False
        for node, machine in enumerate(spec.nodes):
            if machine.num_gpus:
                pool = self.pools[self.pool_of[node]]
                pool.nodes |= self.bits[node]
                pool.levels[0] |= self.bits[node]
                pool.capacity += machine.num_gpus
                pool.uniform = pool.uniform and machine.num_gpus == pool.width
                self._put(((node, (1 << machine.num_gpus) - 1),))

    def fork(self) -> FreeGpus:
        """Return a scratch index that starts equal to this one."""
        other = FreeGpus.__new__(FreeGpus)
        other.spec = self.spec
        other.bits = self.bits
        other.pools = self.pools.copy()
        other.pool_of = self.pool_of
        small = len(self.bits) <= FEW_NODES
        other.mask = self.mask.copy() if small else Overlay(self.mask)
        other.shared = self.shared  # overlaid before the first write
        other.limited = self.limited
        other.cpu_milli = Overlay(self.cpu_milli) if self.limited else self.cpu_milli
        other.memory_mib = Overlay(self.memory_mib) if self.limited else self.memory_mib
        other.down = self.down
        other._own = set()
        other._shares_own = False
        return other

    def showing(self, counts: Sequence[int]) -> FreeGpus:
        """Return a fork that counts at most so many free GPUs by pool; its masks tell the truth."""
        other = self.fork()
        other.pools = [pool.copy() for pool in self.pools]
        for pool, count in zip(other.pools, counts, strict=True):
            pool.free = min(pool.free, count)
        other._own = set(range(len(other.pools)))
        return other

    def twin(self) -> FreeGpus:
        """Return a copy of a fork that is as near to the live index as the fork itself.

        ``fork()`` of a fork reads through it; a long chain of those would be slow.
        """
        assert self._own is not None, "the live index has forks, not twins"
        other = self.fork()
        for name in ("mask", "shared", "cpu_milli", "memory_mib"):
            mine = getattr(self, name)
            if isinstance(mine, Overlay):
                copied = Overlay(mine.base)
                copied.update(mine)
                setattr(other, name, copied)
        other._shares_own = self._shares_own
        return other

    def written(self) -> Iterable[int]:
        """The nodes whose wholly free GPUs this fork may have changed, and perhaps others."""
        return self.mask if isinstance(self.mask, Overlay) else range(len(self.mask))

    def candidates(self, request: Request) -> Iterator[Pool]:
        """Yield the pools the request may run in: in its own order, else the inventory's."""
        if request.gpu_types:
            for gpu_type in request.gpu_types:
                for pool in self.pools:
                    if pool.gpu_type == gpu_type:
                        yield pool
        else:
            yield from self.pools

    def take(self, allocation: Allocation, request: Request) -> None:
        """Occupy an allocation; the devices must be free (see :meth:`missing`)."""
        shares, milli = allocation
        if milli == WHOLE:
            self._remove(shares)
        else:
            for node, mask in shares:
                self._share(node, mask.bit_length() - 1, -milli)
        if self.limited:
            self._charge(allocation, request, -1)

    def give(self, allocation: Allocation, request: Request) -> None:
        """Give an allocation back."""
        shares, milli = allocation
        if milli == WHOLE:
            self._put(shares)
        else:
            for node, mask in shares:
                self._share(node, mask.bit_length() - 1, milli)
        if self.limited:
            self._charge(allocation, request, 1)

    def missing(self, allocation: Allocation, request: Request) -> str | None:
        """Say why an allocation cannot be taken now, or return None if it can."""
        nodes = self.spec.nodes
        for node, mask in allocation.shares:
            if not 0 <= node < len(nodes) or self.down >> node & 1:
                return f"there is no node with index {node} in service"
            if allocation.gpu_milli == WHOLE:
                held = mask & ~self.mask[node]
                if held:
                    gpu = (held & -held).bit_length() - 1
                    return f"GPU {gpu} of node {nodes[node].name} is not free"
            else:
                gpu = mask.bit_length() - 1
                if self.milli(node, gpu) < allocation.gpu_milli:
                    return (
                        f"GPU {gpu} of node {nodes[node].name} has {self.milli(node, gpu)}/1000"
                        f" free, {allocation.gpu_milli} are needed"
                    )
        if self.limited:
            for node, cpu, memory in _host_shares(allocation, request):
                cpu_free, memory_free = self.cpu_milli[node], self.memory_mib[node]
                if cpu_free is not None and cpu_free < cpu:
                    return f"node {nodes[node].name} has {cpu_free} CPU/1000 free, {cpu} are needed"
                if memory_free is not None and memory_free < memory:
                    return (
                        f"node {nodes[node].name} has {memory_free} MiB free, {memory} are needed"
                    )
        return None

    def milli(self, node: int, gpu: int) -> int:
        """Thousandths of a GPU that are free."""
        if self.mask[node] >> gpu & 1:
            return WHOLE
        free: int = self.shared[node].get(gpu, 0)
        return free

    def hosts(self, node: int, cpu_milli: int, memory_mib: int) -> bool:
        """Whether a node is up and has that much CPU and memory left (or states no limit)."""
        if self.down >> node & 1:
            return False
        cpu, memory = self.cpu_milli[node], self.memory_mib[node]
        return (cpu is None or cpu >= cpu_milli) and (memory is None or memory >= memory_mib)

    def withdraw(self, node: int, mask: int, *, host: bool = False) -> None:
        """Take free GPUs out of service; with ``host`` the machine is gone for CPU jobs too."""
        if host:
            self.down |= self.bits[node]
        if mask:
            self._writable(node).capacity -= mask.bit_count()
            self._remove(((node, mask),))

    def restore(self, node: int, mask: int, *, host: bool = False) -> None:
        """Bring withdrawn GPUs back into service, and the machine where it was gone."""
        if host:
            self.down &= ~self.bits[node]
        if mask:
            self._writable(node).capacity += mask.bit_count()
            self._put(((node, mask),))

    def _writable(self, node: int) -> Pool:
        index = self.pool_of[node]
        if self._own is not None and index not in self._own:
            self.pools[index] = self.pools[index].copy()
            self._own.add(index)
        return self.pools[index]

    def _remove(self, shares: tuple[tuple[int, int], ...]) -> None:
        """Take whole GPUs; a CPU job's share (mask 0) takes none."""
        own, masks, bits = self._own, self.mask, self.bits
        for node, mask in shares:
            if not mask:
                continue
            index = self.pool_of[node]
            pool = self.pools[index] if own is None or index in own else self._writable(node)
            have = masks[node]
            masks[node] = left = have & ~mask
            before, after = have.bit_count(), left.bit_count()
            levels, bit = pool.levels, bits[node]
            levels[before] ^= bit
            levels[after] |= bit
            pool.free -= before - after

    def _put(self, shares: tuple[tuple[int, int], ...]) -> None:
        """Give whole GPUs back."""
        own, masks, bits = self._own, self.mask, self.bits
        for node, mask in shares:
            if not mask:
                continue
            index = self.pool_of[node]
            pool = self.pools[index] if own is None or index in own else self._writable(node)
            have = masks[node]
            masks[node] = whole = have | mask
            before, after = have.bit_count(), whole.bit_count()
            levels, bit = pool.levels, bits[node]
            levels[before] ^= bit
            levels[after] |= bit
            pool.free += after - before

    def _share(self, node: int, gpu: int, milli: int) -> None:
        """Change the free thousandths of one GPU by ``milli``; it may leave or rejoin the whole."""
        if self._own is not None and not self._shares_own:
            self.shared = Overlay(self.shared)
            self._shares_own = True
        shares = dict(self.shared[node])
        before = self.milli(node, gpu)
        after = before + milli
        pool = self._writable(node)
        if before == WHOLE:
            self._remove(((node, 1 << gpu),))
        else:
            pool.share_milli -= before
        if after == WHOLE:
            shares.pop(gpu)
            self._put(((node, 1 << gpu),))
        else:
            pool.share_milli += after
            shares[gpu] = after
        self.shared[node] = shares
        if shares:
            pool.sharing |= self.bits[node]
        else:
            pool.sharing &= ~self.bits[node]

    def _charge(self, allocation: Allocation, request: Request, sign: int) -> None:
        for node, cpu, memory in _host_shares(allocation, request):
            if self.cpu_milli[node] is not None:
                self.cpu_milli[node] += sign * cpu
            if self.memory_mib[node] is not None:
                self.memory_mib[node] += sign * memory


def _host_shares(allocation: Allocation, request: Request) -> Iterator[tuple[int, int, int]]:
    """Yield (node, CPU/1000, MiB): the request's totals in proportion to the GPUs taken there."""
    if len(allocation.shares) == 1:
        yield allocation.shares[0][0], request.cpu_milli, request.memory_mib
        return
    total = allocation.num_gpus
    for node, mask in allocation.shares:
        count = mask.bit_count()
        yield node, -(-request.cpu_milli * count // total), -(-request.memory_mib * count // total)
