"""Everything recorded: job traces and inventories, synthetic workloads, run logs.

In: :func:`load` and :func:`load_cluster`, one canonical form for every public format. Out:
:class:`RunWriter` and :class:`RunLog`, the directory that every run leaves.
"""

from traces.cluster import Allocation, ClusterSpec, Links, Node
from traces.errors import DataError, TandemError, UsageError
from traces.job import Job, Request
from traces.runlog import RunLog, RunWriter
from traces.workload import Repair, Source, Workload

__all__ = [
    "Allocation",
    "ClusterSpec",
    "DataError",
    "Job",
    "Links",
    "Node",
    "Repair",
    "Request",
    "RunLog",
    "RunWriter",
    "Source",
    "TandemError",
    "UsageError",
    "Workload",
]
