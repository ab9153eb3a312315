"""One run of a report, with everything that figures and tables derive from it, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.compare import read_all
from reports.fairness import rhos
from reports.metrics import Number, metrics_of
from reports.series import Series, series
from reports.tables import RunTables
from traces.runlog import RunLog


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One run of the report, with everything that is derived from it once."""

    tables: RunTables
    load: Series
    metrics: Mapping[str, Number]

    @property
    def label(self) -> str:
        """What the report calls it."""
        return self.tables.label

    @property
    def log(self) -> RunLog:
        """Its run directory."""
        return self.tables.log

    @cached_property
    def rho(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Finish-time fairness of every job."""
        return rhos(self.tables.jobs, self.load.demand_gpus, self.tables.num_gpus)


def subjects(runs: Sequence[RunLog]) -> list[Subject]:
    """Read the runs of a report."""
    found = []
    for tables in read_all(runs):
        load = series(tables)
        found.append(Subject(tables=tables, load=load, metrics=metrics_of(tables, load)))
    return found
