"""What is wanted of a job: where it shall run, how far, and whether it shall save or leave.

Commands change it at once and whenever they come; ``executor.job`` sees to it that what is becomes
what is wanted, at a step boundary.
"""

from __future__ import annotations

from collections.abc import Collection

from executor.errors import ExecutorError
from executor.jobspec import JobSpec
from executor.pool import Place
from traces.workermap import WorkerMap


class Wanted:
    """What is wanted of one job.

    ``map``: None: nothing yet, or all its devices are lost. ``pause_at``: a step. ``save``: a
    checkpoint. ``stop``: to leave all devices, True with a checkpoint; None: to stay.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self.map: WorkerMap | None = None
        self.pause_at = spec.steps
        self.save = False
        self.stop: bool | None = None

    def rescale(self, worker_map: WorkerMap, lanes: Collection[Place]) -> None:
        """Another worker map. Raises ExecutorError if it lacks ranks, or is not on ``lanes``."""
        if worker_map.num_workers != self._spec.num_workers:
            raise ExecutorError(
                "the worker map does not cover all ranks",
                where=f"job {self._spec.job_id!r}",
                value=str(worker_map),
                expected=f"{self._spec.num_workers} logical workers",
            )
        unknown = [gpu for gpu in worker_map.gpus if gpu not in lanes]
        if unknown:
            raise ExecutorError(
                "no such lane",
                where=f"job {self._spec.job_id!r}",
                value="{}/{}".format(*unknown[0]),
                expected=", ".join(f"{n}/{g}" for n, g in sorted(lanes)),
            )
        self.map = worker_map

    def lose(self, gpu: Place) -> None:
        """A lane is gone: the other devices share all ranks out evenly, one rank each at least."""
        if self.map is None or gpu not in self.map.gpus:
            return
        devices = [g for g in self.map.gpus if g != gpu][: self._spec.num_workers]
        if not devices:
            self.map = None
            return
        each, more = divmod(self._spec.num_workers, len(devices))
        self.map = WorkerMap.of(devices, [each + (i < more) for i in range(len(devices))])
