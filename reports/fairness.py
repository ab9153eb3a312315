"""Fairness of a run: finish-time fairness rho, and the Jain index.

rho follows Themis (Mahajan et al., NSDI 2020): the time a job took, over the time it would have
taken with its fair share. Themis takes 1/n of the cluster for each of n jobs as the fair share; a
trace of rigid jobs of unequal size has no such share to give, so here::

    rho = T_shared / T_ideal,   T_shared = JCT,   T_ideal = duration x max(1, contention)

where contention is the time average over the job's life, from submission to completion, of (GPUs
asked for by all active jobs) / (GPUs of the cluster's inventory). A job on an idle cluster has
contention below 1 and rho = 1 if it started at once; rho above 1 is worse than fair.

The Jain index (Jain, Chiu, Hawe 1984) of n values is (sum x)^2 / (n sum x^2), between 1/n and 1.

Leaves out: GPU types (a GPU counts as a GPU), and capacity that was lost for a while.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.series import Steps
from reports.tables import MILLI, Jobs

Floats = NDArray[np.float64]


def slowdowns(jobs: Jobs, bound_s: float = 0.0) -> Floats:
    """Slowdown of every job (NaN: not finished, or its duration is unknown or 0).

    With ``bound_s``, bounded slowdown: ``max(1, jct / max(duration, bound_s))``.
    """
    known = jobs.finished & ~np.isnan(jobs.duration_s)
    if bound_s:
        base = np.maximum(jobs.duration_s, bound_s)
        return np.where(known, np.maximum(jobs.jct_s / base, 1.0), np.nan)
    known &= jobs.duration_s > 0
    slow = np.full(len(jobs), np.nan)
    slow[known] = jobs.jct_s[known] / jobs.duration_s[known]
    return slow


def rhos(jobs: Jobs, demand_gpus: Steps, num_gpus: int) -> Floats:
    """Finish-time fairness rho of every job (NaN where it has none).

    ``demand_gpus`` are the GPUs asked for by active jobs over time (``Series.demand_gpus``).
    """
    rho = np.full(len(jobs), np.nan)
    of = jobs.finished & (jobs.duration_s > 0) & (jobs.jct_s > 0)
    if not of.any() or num_gpus == 0:
        return rho
    submit_s, finish_s = jobs.submit_s[of], jobs.finish_s[of]
    asked = demand_gpus.accumulated(finish_s) - demand_gpus.accumulated(submit_s)
    contention = asked / (num_gpus * jobs.jct_s[of])
    rho[of] = jobs.jct_s[of] / (jobs.duration_s[of] * np.maximum(1.0, contention))
    return rho


def jain(values: Floats) -> float | None:
    """Jain index of the values (NaN left out); None when there are none or all are 0."""
    x = values[~np.isnan(values)]
    squares = float(np.sum(x * x))
    if len(x) == 0 or squares == 0:
        return None
    return min(float(np.sum(x)) ** 2 / (len(x) * squares), 1.0)


def service_shares(jobs: Jobs, by: pd.Series) -> pd.Series:
    """Fraction of the GPU time each user or virtual cluster asked for that it held.

    ``by`` is ``jobs.user`` or ``jobs.vc``. GPU time asked for is GPUs x time in the system (from
    submission to completion or the end of the log). CPU jobs and jobs without a name count not.
    """
    asked = np.where(jobs.active, jobs.milli / MILLI * (jobs.end_s - jobs.submit_s), 0.0)
    frame = pd.DataFrame({"by": by, "asked": asked, "held": jobs.service_gpu_s})
    sums = frame[frame["asked"] > 0].groupby("by", observed=True)[["asked", "held"]].sum()
    return sums["held"] / sums["asked"]
