"""Everything recorded: job traces and inventories, synthetic workloads, run logs.

In: :func:`load` and :func:`load_cluster`, one canonical form for every public format. Out:
:class:`RunWriter` and :class:`RunLog`, the directory that every run leaves.

Exports are lazy (:mod:`traces.lazy`): name each twice, for the type checker and for the table, and
let none have the name of a module beside it.
"""

from typing import TYPE_CHECKING

from traces.errors import DataError, TandemError, UsageError
from traces.lazy import lazy_exports

if TYPE_CHECKING:
    from traces.cluster import Allocation, ClusterSpec, Links, Node
    from traces.job import Elastic, Job, Request
    from traces.loading import load, load_cluster
    from traces.profile import Profile
    from traces.profile_sources import load_profile
    from traces.runlog import RunLog
    from traces.runwriter import RunWriter
    from traces.scale import offered_load, scale_to_load
    from traces.synthetic import generate
    from traces.workermap import WorkerMap
    from traces.workload import Repair, Source, Workload
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "Allocation": "traces.cluster",
            "ClusterSpec": "traces.cluster",
            "Elastic": "traces.job",
            "Job": "traces.job",
            "Links": "traces.cluster",
            "Node": "traces.cluster",
            "offered_load": "traces.scale",
            "generate": "traces.synthetic",
            "load": "traces.loading",
            "load_cluster": "traces.loading",
            "load_profile": "traces.profile_sources",
            "Profile": "traces.profile",
            "Repair": "traces.workload",
            "Request": "traces.job",
            "RunLog": "traces.runlog",
            "RunWriter": "traces.runwriter",
            "scale_to_load": "traces.scale",
            "Source": "traces.workload",
            "WorkerMap": "traces.workermap",
            "Workload": "traces.workload",
        },
    )

__all__ = [
    "Allocation",
    "ClusterSpec",
    "DataError",
    "Elastic",
    "Job",
    "Links",
    "Node",
    "Profile",
    "Repair",
    "Request",
    "RunLog",
    "RunWriter",
    "Source",
    "TandemError",
    "UsageError",
    "WorkerMap",
    "Workload",
    "generate",
    "load",
    "load_cluster",
    "load_profile",
    "offered_load",
    "scale_to_load",
]
