"""The modelled world: virtual time, cluster, rates, costs, failures.

:func:`simulate` replays a workload on a cluster under a policy and leaves a run directory.
"""

from typing import TYPE_CHECKING

from traces.lazy import lazy_exports

if TYPE_CHECKING:
    from simulator.cluster import Checkpoints, SimulatedCluster
    from simulator.run import Result, simulate
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "Checkpoints": "simulator.cluster",
            "Result": "simulator.run",
            "SimulatedCluster": "simulator.cluster",
            "simulate": "simulator.run",
        },
    )

__all__ = ["Checkpoints", "Result", "SimulatedCluster", "simulate"]
