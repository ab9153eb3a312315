"""Which logical workers sit on which GPUs: a job's worker map.

A job has logical workers (EasyScaleThreads) with virtual ranks 0..n-1 for life. A worker map lists
its devices in rank order and says how many logical workers each holds; device ``i`` holds the
contiguous block of ranks that follows those of the devices before it (EasyScale, SC'23: one process
per GPU, each with a start rank). So a map is two tuples, and the simulator, the run log and the
executor mean the same by it.

Left out: several processes per GPU (EasyScale's multi-executor), and scattered blocks of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from traces.cluster import Allocation, ClusterSpec, gpus_of
from traces.errors import UsageError

GpuCounts = Mapping[str, int]
"""GPUs of each type, by count alone."""

_ITEM = re.compile(r"^(\d{1,9})/(\d{1,9}):(\d{1,9})$")


class Gpu(NamedTuple):
    """One device: index of its node in ``ClusterSpec.nodes``, GPU index there, and its type."""

    node: int
    gpu: int
    gpu_type: str


def devices_of(allocation: Allocation, spec: ClusterSpec) -> tuple[Gpu, ...]:
    """Return the devices of an allocation, nodes and GPUs ascending."""
    return tuple(
        Gpu(node, index, spec.nodes[node].gpu_type)
        for node, mask in allocation.shares
        for index in gpus_of(mask)
    )


class WorkerMap(NamedTuple):
    """Devices, (node index, GPU index) in rank order, and the logical workers on each (at least 1).

    The plain constructor does not look; :meth:`of` does. ``str`` is ``"0/0:4 0/1:4 3/2:2"``
    (node/GPU:workers), which :meth:`parse` reads back.
    """

    gpus: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, gpus: Iterable[tuple[int, int] | Gpu], counts: Iterable[int]) -> WorkerMap:
        """Return a map that holds together.

        Raises :class:`UsageError` for no device, unequal lengths, a device named twice, negative
        indices, or a device without a logical worker.
        """
        devices = tuple((int(g[0]), int(g[1])) for g in gpus)
        numbers = tuple(int(n) for n in counts)
        if not devices:
            raise UsageError("worker map: no device; a job runs on at least one")
        if len(devices) != len(numbers):
            raise UsageError(
                f"worker map: {len(devices)} devices but {len(numbers)} counts; one count a device"
            )
        seen: set[tuple[int, int]] = set()
        for (node, gpu), count in zip(devices, numbers, strict=True):
            if node < 0 or gpu < 0:
                raise UsageError(f"worker map: device {node}/{gpu}: indices count from 0")
            if (node, gpu) in seen:
                raise UsageError(f"worker map: device {node}/{gpu} comes twice")
            if count < 1:
                raise UsageError(
                    f"worker map: device {node}/{gpu} holds {count} logical workers; a device in"
                    " the map holds at least 1 (leave it out and give it back instead)"
                )
            seen.add((node, gpu))
        return cls(devices, numbers)

    @classmethod
    def parse(cls, text: str) -> WorkerMap:
        """Read what ``str`` wrote; raises :class:`UsageError` for anything else."""
        found = [_ITEM.match(item) for item in text.split()]
        if not found or None in found:
            raise UsageError(
                f"worker map {text!r}: expected NODE/GPU:WORKERS joined by spaces,"
                " for example 0/0:4 0/1:4"
            )
        rows = [tuple(map(int, match.groups())) for match in found if match is not None]
        return cls.of([(row[0], row[1]) for row in rows], [row[2] for row in rows])

    @property
    def num_workers(self) -> int:
        """Logical workers of the job, over all devices."""
        return sum(self.counts)

    @property
    def num_gpus(self) -> int:
        """Devices that hold at least one logical worker."""
        return len(self.gpus)

    def ranks(self, device: int) -> range:
        """Virtual ranks on the device at a position of ``gpus``."""
        first = sum(self.counts[:device])
        return range(first, first + self.counts[device])

    def blocks(self) -> Iterator[tuple[tuple[int, int], range]]:
        """Yield (device, its virtual ranks), in rank order."""
        first = 0
        for gpu, count in zip(self.gpus, self.counts, strict=True):
            yield gpu, range(first, first + count)
            first += count

    def device_of(self, rank: int) -> tuple[int, int]:
        """Return the device of a virtual rank; raises :class:`UsageError` if it has none."""
        for gpu, ranks in self.blocks():
            if rank in ranks:
                return gpu
        raise UsageError(f"worker map: no virtual rank {rank}; there are {self.num_workers}")

    def allocation(self) -> Allocation:
        """The same devices as an :class:`Allocation` of whole GPUs."""
        masks: dict[int, int] = {}
        for node, gpu in sorted(self.gpus):
            masks[node] = masks.get(node, 0) | 1 << gpu
        return Allocation(tuple(masks.items()))

    def layout(self, spec: ClusterSpec) -> tuple[tuple[str, int], ...]:
        """(GPU type, logical workers) of each device in rank order: what a rate depends on."""
        return tuple(
            (spec.nodes[node].gpu_type, count)
            for (node, _), count in zip(self.gpus, self.counts, strict=True)
        )

    def describe(self, spec: ClusterSpec) -> str:
        """Return the counts by GPU type, in rank order: ``v100:4+4 t4:2``."""
        return " ".join(
            f"{gpu_type}:{'+'.join(str(count) for _, count in devices)}"
            for gpu_type, devices in groupby(self.layout(spec), key=lambda device: device[0])
        )

    def __str__(self) -> str:
        return " ".join(
            f"{node}/{gpu}:{count}"
            for (node, gpu), count in zip(self.gpus, self.counts, strict=True)
        )
