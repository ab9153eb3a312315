"""Outages of a simulated cluster: which devices are in service, whatever took them away.

Outages overlap: a GPU may fail on a node that fails, or that a timetable takes away. A GPU is in
service while neither it nor its machine is down for any cause; the driver hears of a device only
when that changes. Changes are asked for one at a time, so endless sources cost what the run uses,
and after its end nothing is asked any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge

import numpy as np

from policies.clock import CAPACITY, Moment
from simulator.cluster import SimulatedCluster
from simulator.failures import Change, Source


class Outages:
    """Takes devices of ``cluster`` out of service and back, as the sources say.

    ``rng`` is this component's own stream; each source gets a child of it, so that adding one
    does not change the others. Create it after the driver and before the run::

        Outages(cluster, [Mtbf(node_mtbf_s=30 * 86_400)], np.random.default_rng(seed))

    Jobs on lost devices go back to their last checkpoint (``SimulatedCluster.stop``) and wait.
    ``cluster.returning`` is kept: devices out of service that will come back, by which the driver
    tells a queue that is stuck for good from one that waits for repairs.
    """

    def __init__(
        self, cluster: SimulatedCluster, sources: Sequence[Source], rng: np.random.Generator
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        spec, start_s = cluster.spec, cluster.clock.now
        streams = [
            source.changes(spec, stream, start_s)
            for source, stream in zip(sources, rng.spawn(len(sources)), strict=True)
        ]
        self._changes: Iterator[Change] = merge(*streams, key=lambda change: change.time_s)
        self._nodes: dict[int, _Machine] = {}
        self._schedule()

    def _schedule(self) -> None:
        change = next(self._changes, None)
        if change is not None:
            time_s = max(change.time_s, self._clock.now)
            self._clock.at(time_s, CAPACITY, self._happen, change)

    def _happen(self, moment: Moment) -> None:
        change: Change = moment.subject
        size = self._cluster.spec.nodes[change.node].num_gpus
        machine = self._nodes.setdefault(change.node, _Machine(size))
        before, was_up, returned = machine.serving(), not machine.down, machine.returning()
        machine.count(change)
        after, is_up = machine.serving(), not machine.down
        self._cluster.returning += machine.returning() - returned
        lost, back = before & ~after, after & ~before
        listener = self._cluster.listener
        if lost or (was_up and not is_up):
            listener.devices_lost(change.node, lost, change.detail, host=was_up and not is_up)
        if back or (is_up and not was_up):
            listener.devices_returned(change.node, back, change.detail, host=is_up and not was_up)
        self._schedule()


class _Machine:
    """How many outages a machine and each of its GPUs are under, and which will not end."""

    __slots__ = ("down", "gone", "gpus_down", "gpus_gone")

    def __init__(self, size: int) -> None:
        self.down = 0
        self.gone = False
        self.gpus_down = [0] * size
        self.gpus_gone = 0

    def count(self, change: Change) -> None:
        """Enter one more outage, or the end of one."""
        step = 1 if change.down else -1
        if not change.mask:
            self.down += step
            self.gone = self.gone or bool(change.forever)
            return
        for gpu in range(len(self.gpus_down)):
            if change.mask >> gpu & 1:
                self.gpus_down[gpu] += step
        self.gpus_gone |= change.forever

    def serving(self) -> int:
        """Mask of the GPUs in service."""
        if self.down:
            return 0
        return sum(1 << gpu for gpu, outages in enumerate(self.gpus_down) if not outages)

    def returning(self) -> int:
        """How many parts (GPUs, and the machine itself) are out of service but will be back."""
        if self.gone:
            return 0
        away = ~self.serving() & ~self.gpus_gone & ((1 << len(self.gpus_down)) - 1)
        return away.bit_count() + (1 if self.down else 0)
