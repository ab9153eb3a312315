"""What a job asks for and what it is: the values every room speaks of.

A :class:`Request` is what has to be found on the cluster. Equal requests are one object
(``Workload`` interns them), so "the same shape" is an identity test. A :class:`Job` is one row of
the canonical job table (``traces/schema.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WHOLE_GPU_MILLI = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The resources of one job, all of its workers together.

    ``num_gpus`` GPUs, of each of which ``gpu_milli`` thousandths are taken (less than 1000 only
    for one-GPU jobs). ``gpu_types`` are the allowed types, ``()`` means any; one job runs on one
    type. ``cpu_milli`` and ``memory_mib`` are totals, spread over the nodes in proportion to the
    GPUs taken there. ``single_node`` forbids spanning nodes. ``num_gpus`` 0 is a CPU job.
    """

    num_gpus: int
    gpu_milli: int = WHOLE_GPU_MILLI
    gpu_types: tuple[str, ...] = ()
    cpu_milli: int = 0
    memory_mib: int = 0
    single_node: bool = False

    def __str__(self) -> str:
        share = "" if self.gpu_milli == WHOLE_GPU_MILLI else f" x {self.gpu_milli}/1000"
        types = "/".join(self.gpu_types) or "GPU"
        return f"{self.num_gpus}{share} {types}"

    @property
    def gpus(self) -> float:
        """GPUs in use while it runs, shares counted as fractions."""
        return self.num_gpus * self.gpu_milli / WHOLE_GPU_MILLI


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """How an elastic job may be run, and what its rate depends on (EasyScale, SC'23, section 3).

    ``num_workers`` logical workers for life (the paper's maxP), on ``max(min_gpus, 1)`` to
    ``max_gpus`` GPUs while it runs; ``min_gpus`` (the paper's minP) are guaranteed, 0: none.
    A job that ``mixes_types`` (determinism level D2) may use every type that its profile knows,
    several at once; another runs on one type at a time, of those its request allows.
    ``model`` and ``batch_size`` (samples per logical worker and step) name its row of a profile;
    ``total_steps`` global steps are its work. Rate 1 is ``num_workers`` GPUs of ``preferred_type``
    with one logical worker each.
    """

    num_workers: int
    max_gpus: int
    min_gpus: int = 0
    mixes_types: bool = False
    model: str | None = None
    batch_size: int | None = None
    total_steps: float | None = None
    preferred_type: str | None = None

    @property
    def least_gpus(self) -> int:
        """The fewest GPUs it can run on."""
        return max(self.min_gpus, 1)


class Job(NamedTuple):
    """One job of a workload (a named tuple: a run makes one per row of its trace).

    ``rank`` is its place in the total order by (``submit_s``, ``job_id`` in natural order): the
    last tie-break of every decision. ``duration_s`` is the work: seconds of running on the
    requested GPUs at rate 1. It is the world's truth; a policy reads ``JobState.estimate_s``
    instead. ``user_estimate_s`` is what the user said beforehand, or None. ``elastic`` is None for
    a rigid job: it runs on all of ``request`` or not at all. An elastic job's request is the gang
    that a policy for rigid jobs runs it as.
    """

    rank: int
    job_id: str
    submit_s: float
    duration_s: float
    request: Request
    user_estimate_s: float | None = None
    user: str | None = None
    vc: str | None = None
    kind: str = "training"
    priority: str | None = None
    elastic: Elastic | None = None
