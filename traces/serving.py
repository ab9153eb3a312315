"""Serving demand: how many GPUs each service needs, at every instant of a trace.

Built from a workload whose rows are service instances (the DLRM trace, ``kind`` serving): an
instance asks for its GPUs from its start to its end, and the demand of a service is the sum over
its instances, constant between events. Instances that are older than the trace count from its
beginning, those that outlive it to its end. Left out: load within an instance (requests per
second), which the trace does not have, and instances without a GPU, whose demand is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from traces.errors import DataError
from traces.job import WHOLE_GPU_MILLI
from traces.steps import Steps
from traces.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingDemand:
    """GPUs in demand from second 0 to ``end_s``: in total, and by service (``by_app``).

    The step functions count milli-GPUs; the methods here answer in GPUs.
    """

    end_s: float
    total: Steps
    by_app: Mapping[str, Steps]

    @classmethod
    def of(
        cls,
        workload: Workload,
        *,
        end_s: float | None = None,
        since: Literal["start", "submit"] = "start",
    ) -> ServingDemand:
        """Add up the instances of ``workload``; ``end_s`` defaults to its last recorded instant.

        ``since="submit"`` counts instances that still wait for their node, too. Raises
        :class:`DataError` if no row is of kind serving, or one belongs to no service.
        """
        table = workload.table[workload.table["kind"] == "serving"]
        where = workload.source.path or None
        if table.empty:
            raise DataError(
                "no serving instances", file=where, column="kind", expected="rows of kind serving"
            )
        if table["vc"].isna().any():
            raise DataError(
                f"instance {table['job_id'][table['vc'].isna()].iloc[0]} belongs to no service",
                file=where,
                column="vc",
                expected="the name of its service",
            )
        submit = table["submit_s"].to_numpy()
        start = table["start_s"].fillna(table["submit_s"]).to_numpy()
        duration = table["duration_s"].to_numpy()
        recorded = np.concatenate([submit, start, start + duration])
        last = float(np.nanmax(recorded)) if end_s is None else end_s
        begin = start if since == "start" else submit
        end = np.where(np.isnan(duration), last, np.minimum(start + duration, last))
        height = (table["num_gpus"] * table["gpu_milli"]).to_numpy(dtype=np.int64)
        app_of, apps = pd.factorize(table["vc"].to_numpy(), sort=True)
        by_app = {
            str(app): Steps.of_intervals(begin[mine], end[mine], height[mine])
            for i, app in enumerate(apps)
            for mine in (app_of == i,)
        }
        return cls(end_s=last, total=Steps.of_intervals(begin, end, height), by_app=by_app)

    def _steps(self, app: str | None) -> Steps:
        return self.total if app is None else self.by_app[app]

    def at(self, time_s: float, app: str | None = None) -> float:
        """Return the GPUs in demand at an instant, of one service or of all."""
        return self._steps(app).at(time_s) / WHOLE_GPU_MILLI

    def peak(self, app: str | None = None) -> float:
        """Return the most GPUs in demand at once."""
        return self._steps(app).peak / WHOLE_GPU_MILLI

    def mean(self, app: str | None = None) -> float:
        """Return the time average of GPUs in demand from second 0 to ``end_s``."""
        return self._steps(app).mean(0.0, self.end_s) / WHOLE_GPU_MILLI

    def to_table(self) -> pd.DataFrame:
        """Return one row per change: ``app`` (null: all together), ``time_s``, ``gpus`` from then.

        Rows are in order of service, the total first, then of time.
        """
        parts = [(None, self.total), *self.by_app.items()]
        return pd.DataFrame(
            {
                "app": pd.Series(
                    [app for app, steps in parts for _ in range(len(steps))], dtype="string"
                ),
                "time_s": np.concatenate([steps.times_s for _, steps in parts]),
                "gpus": np.concatenate([steps.values for _, steps in parts]) / WHOLE_GPU_MILLI,
            }
        )
