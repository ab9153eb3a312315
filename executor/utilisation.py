"""How busy each lane is, measured: processor time of workers on CPU lanes, NVML on GPUs.

Every second or so, for each lane: the processor time that the processes of its workers have used
since the last reading, over the time that has passed and the lane's threads. On a CUDA device it is
what NVML reports for the device (extra ``gpu``), or unknown where NVML is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psutil

from executor.agent import Agent
from executor.devices import DeviceLane
from executor.pool import Place

EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One lane at one time: ``busy`` from 0 to 1 (None: unknown), ``memory_mib`` of its workers."""

    time_s: float
    place: Place
    busy: float | None
    memory_mib: float


class Utilisation:
    """Takes readings of an agent's lanes. ``every_s``: seconds between them.

    ``others``: processes on lanes that are no job's. ``before``: readings of an earlier execution.
    """

    def __init__(
        self,
        agent: Agent,
        lanes: Mapping[Place, DeviceLane],
        every_s: float = EVERY_S,
        before: Iterable[Reading] = (),
    ) -> None:
        self.others: Callable[[], Iterable[tuple[Place, int]]] = tuple
        self.readings = list(before)
        self._agent, self._lanes, self._every_s = agent, lanes, every_s
        self._last_s: float | None = None
        self._used: dict[int, float] = {}
        self._nvml = (
            _nvml() if any(lane.cuda_index is not None for lane in lanes.values()) else None
        )

    def look(self, time_s: float) -> None:
        """Take a reading if it is time for one."""
        if self._last_s is not None and time_s - self._last_s < self._every_s:
            return
        passed_s = None if self._last_s is None else time_s - self._last_s
        self._last_s = time_s
        spent: dict[Place, float] = dict.fromkeys(self._lanes, 0.0)
        held: dict[Place, float] = dict.fromkeys(self._lanes, 0.0)
        now: dict[int, float] = {}
        for place, pid in self._processes():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                held[place] += process.memory_info().rss / 2**20
            except psutil.Error:
                continue  # it has just ended
            now[pid] = times.user + times.system
            spent[place] += now[pid] - self._used.get(pid, now[pid])
        self._used = now
        if passed_s:
            for place, lane in self._lanes.items():
                busy = self._busy(lane, spent[place] / (passed_s * lane.threads))
                self.readings.append(
                    Reading(time_s=time_s, place=place, busy=busy, memory_mib=held[place])
                )

    def _processes(self) -> Iterable[tuple[Place, int]]:
        for job in self._agent.jobs.values():
            for place, handle in job.members.items():
                if handle.pid is not None:
                    yield place, handle.pid
        yield from self.others()

    def _busy(self, lane: DeviceLane, of_processor: float) -> float | None:
        if lane.cuda_index is None:
            return min(1.0, of_processor)
        if self._nvml is None:
            return None
        handle = self._nvml.nvmlDeviceGetHandleByIndex(lane.cuda_index)
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0


def _nvml() -> Any:
    try:
        nvml: Any = import_module("pynvml")  # of nvidia-ml-py, an extra
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
