"""Offered load, and time stretched until a workload offers a stated one.

Offered load is the GPU-seconds the jobs ask for, shares counted as fractions, over what the
cluster has between the first and the last submission:
``sum(duration * GPUs) / (cluster GPUs * (last submit - first submit))``. At 1 the cluster can just
keep up in the long run; above 1 the queue grows as long as jobs come.

:func:`scale_to_load` multiplies every submission time by one factor and changes nothing else: run
times, sizes, the order of jobs and the shape of every burst stay (all gaps shrink alike, so the
coefficient of variation stays too), and the hours and days of the pattern shrink or stretch with
them. The stated load is then met exactly, not in expectation.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from traces.cluster import ClusterSpec
from traces.errors import DataError, UsageError
from traces.workload import Repair, Workload


def gpu_seconds(workload: Workload) -> NDArray[np.float64]:
    """GPU-seconds each job asks for, by rank; NaN where the run time is unknown."""
    table = workload.table
    seconds = table["duration_s"].to_numpy(dtype=np.float64, na_value=np.nan)
    gpus = table["num_gpus"].to_numpy(dtype=np.float64)
    milli = table["gpu_milli"].to_numpy(dtype=np.float64)
    return np.asarray(seconds * gpus * milli / 1000.0, dtype=np.float64)


def span_s(workload: Workload) -> float:
    """Seconds from the first to the last submission (0 for fewer than two jobs)."""
    if len(workload) < 2:
        return 0.0
    submit = workload.table["submit_s"].to_numpy(dtype=np.float64)
    return float(submit[-1] - submit[0])


def mean_demand_gpus(workload: Workload) -> float:
    """GPUs the jobs would hold on average over the span; jobs of unknown run time count as 0.

    NaN when all jobs come at one instant.
    """
    span = span_s(workload)
    return float(np.nansum(gpu_seconds(workload))) / span if span > 0 else float("nan")


def offered_load(workload: Workload, cluster: ClusterSpec) -> float:
    """Offered load as a fraction of the cluster's GPUs (NaN when all jobs come at one instant).

    Raises :class:`UsageError` for a cluster without GPUs.
    """
    if cluster.num_gpus == 0:
        raise UsageError("offered load: the cluster has no GPUs")
    return mean_demand_gpus(workload) / cluster.num_gpus


def scale_to_load(workload: Workload, load: float, cluster: ClusterSpec) -> Workload:
    """Return ``workload`` with its submission times multiplied until it offers ``load``.

    The first submission keeps its place. Recorded starts no longer mean anything and are emptied,
    which the repairs say. Raises :class:`UsageError` for a load that is not above 0,
    :class:`DataError` when the jobs come at one instant, ask for no GPU time, or have unknown run
    times.
    """
    if not (np.isfinite(load) and load > 0):
        raise UsageError(f"load {load}: expected a number above 0, such as 0.9")
    seconds = gpu_seconds(workload)
    unknown = int(np.isnan(seconds).sum())
    where = workload.source.path or None
    if unknown:
        raise DataError(
            f"{unknown} of {len(workload)} jobs have no run time, so the load cannot be set",
            file=where,
            column="duration_s",
        )
    before = offered_load(workload, cluster)
    if not np.isfinite(before):
        raise DataError("all jobs come at one instant, so time cannot be scaled", file=where)
    if before == 0:
        raise DataError("no job asks for GPU time, so the load cannot be set", file=where)
    factor = before / load
    table = workload.table.copy()
    submit = table["submit_s"].to_numpy(dtype=np.float64)
    table["submit_s"] = submit[0] + (submit - submit[0]) * factor
    repairs = workload.source.repairs
    started = int(table["start_s"].notna().sum())
    if started:
        table["start_s"] = np.nan
        repairs += (Repair(rule="recorded start emptied: time was scaled", rows=started),)
    note = (
        f"submission times multiplied by {factor:.6g} so that the jobs offer {load:g} of"
        f" {cluster.num_gpus} GPUs (before: {before:.6g})"
    )
    source = dataclasses.replace(
        workload.source,
        repairs=repairs,
        notes=(*workload.source.notes, note),
        options={**workload.source.options, "load": load, "load_gpus": cluster.num_gpus},
    )
    return Workload(table, source)
