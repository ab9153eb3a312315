"""What a job is: its task, its logical workers and steps, and the habits beside them.

A value that is there before the job runs and does not change while it does. Its state is
``executor.job``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from executor.errors import ExecutorError
from executor.faults import Fault
from executor.levels import Agreement
from executor.messages import Habits
from executor.reduce import BUCKET_BYTES, check_kind
from executor.shards import Sharding
from executor.task import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job: what is trained, for how many steps, and the habits beside it.

    ``resume``: begin from the last checkpoint in the folder, if there is one. ``faults`` are
    injected. ``agreement``: on a determinism level, with what the job's lanes have in common.
    ``sharding``: of the sparse tables; None: every device holds all rows. It changes no bit, and
    a checkpoint does not know of it. ``reduction``: the order in which dense gradients are summed,
    ``tree``, or ``ring`` for the bits of DistributedDataParallel on gloo; None: that of the
    checkpoint which is resumed, for a new job ``tree``.
    Raises ExecutorError for numbers out of range.
    """

    job_id: str
    task: TaskSpec
    num_workers: int
    steps: int
    habits: Habits = field(default_factory=Habits)
    bucket_bytes: int = BUCKET_BYTES
    resume: bool = False
    faults: tuple[Fault, ...] = ()
    agreement: Agreement | None = None
    sharding: Sharding | None = None
    reduction: str | None = None

    def __post_init__(self) -> None:
        if self.reduction is not None:
            check_kind(self.reduction)
        for name in ("num_workers", "steps"):
            if getattr(self, name) < 1:
                raise ExecutorError(
                    "bad number", where=f"job {self.job_id!r}, {name}", value=getattr(self, name)
                )
