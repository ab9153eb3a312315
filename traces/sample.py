"""A part of a workload: a few jobs, users, virtual clusters, or a window of time.

Each way keeps something and loses something, so each result carries a note with the jobs, the
GPU-seconds and the mean demand that are left. ``job`` thins arrivals (bursts and diurnal cycle
stay, load falls in proportion); ``user`` and ``vc`` keep whole submitters, so sessions stay and the
load falls unevenly; ``time-window`` and ``head`` keep the load and lose the calendar. Times, ids
and recorded starts are kept as they are. The same seed takes the same jobs, whatever the order of
the file's rows was.

Left out: stratified samples and resampling with replacement.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from traces.errors import DataError, UsageError, did_you_mean
from traces.scale import gpu_seconds, mean_demand_gpus, span_s
from traces.workload import Workload

WAYS = ("job", "user", "vc", "time-window", "head")


def sample(
    workload: Workload,
    *,
    by: str = "job",
    fraction: float | None = None,
    jobs: int | None = None,
    length_s: float | None = None,
    seed: int = 0,
) -> Workload:
    """Return part of ``workload``.

    Exactly one size is given: ``fraction`` (of the jobs; of the users or virtual clusters; of the
    span), ``jobs`` (exactly so many; for ``user`` and ``vc``: until there are so many), or
    ``length_s`` seconds (``time-window`` and ``head``). ``head`` is the beginning, ``time-window``
    starts at a random place. Jobs without a user (or virtual cluster) count as one. Raises
    :class:`UsageError` for sizes that cannot be meant, :class:`DataError` if no job has the column.
    """
    if by not in WAYS:
        raise UsageError(f"sample by {by!r} is unknown; {did_you_mean(by, WAYS)}")
    _check_size(workload, by, fraction, jobs, length_s)
    if seed < 0:
        raise UsageError(f"seed {seed}: a seed is 0 or more")
    rng = np.random.default_rng(seed)
    if by == "job":
        count = jobs if jobs is not None else round(float(fraction or 0) * len(workload))
        keep = np.sort(rng.permutation(len(workload))[:count])
    elif by in ("user", "vc"):
        keep = _submitters(workload, by, fraction, jobs, rng)
    else:
        keep = _window(workload, by == "head", fraction, jobs, length_s, rng)
    return _part(workload, keep, by, seed)


def _check_size(
    workload: Workload, by: str, fraction: float | None, jobs: int | None, length_s: float | None
) -> None:
    if sum(size is not None for size in (fraction, jobs, length_s)) != 1:
        raise UsageError("sample: give one size: a fraction, a number of jobs, or a length in s")
    if fraction is not None and not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction}: expected above 0, at most 1")
    if jobs is not None and not 1 <= jobs <= len(workload):
        raise UsageError(f"jobs {jobs}: expected 1 to {len(workload)}, what the trace has")
    if length_s is not None:
        if by not in ("time-window", "head"):
            raise UsageError(f"a length in s is for time-window and head, not for {by!r}")
        if not (math.isfinite(length_s) and length_s > 0):
            raise UsageError(f"length {length_s} s: expected above 0")


def _submitters(
    workload: Workload, by: str, fraction: float | None, jobs: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    column = workload.table[by]
    if column.isna().all():
        raise DataError(
            f"no job has a {by}", file=workload.source.path or None, column=by, expected="--by job"
        )
    names = column.fillna("").to_numpy(dtype=object)
    # Sorted by name: which jobs come first in the file must not decide who is drawn.
    order = rng.permutation(np.array(sorted(set(names.tolist())), dtype=object))
    if jobs is None:
        chosen = order[: max(1, round(float(fraction or 0) * len(order)))]
    else:
        sizes = {name: int(n) for name, n in column.fillna("").value_counts().items()}
        passed = np.cumsum([sizes[name] for name in order.tolist()])
        chosen = order[: int(np.searchsorted(passed, jobs)) + 1]
    return np.flatnonzero(np.isin(names.astype(str), chosen.astype(str)))


def _window(
    workload: Workload,
    head: bool,
    fraction: float | None,
    jobs: int | None,
    length_s: float | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    submit = workload.table["submit_s"].to_numpy(dtype=np.float64)
    if jobs is not None:
        start = 0 if head else int(rng.integers(len(submit) - jobs + 1))
        return np.arange(start, start + jobs)
    span = span_s(workload)
    length = length_s if length_s is not None else float(fraction or 0) * span
    first = float(submit[0]) if len(submit) else 0.0
    begin = first if head else first + rng.random() * max(span - length, 0.0)
    if length >= span:
        return np.arange(len(submit))
    keep = np.flatnonzero((submit >= begin) & (submit < begin + length))
    if not len(keep):
        raise DataError(
            f"no job is submitted in the {length:g} s from second {begin:g}",
            file=workload.source.path or None,
            expected="a longer window, or another seed",
        )
    return keep


def _part(workload: Workload, keep: NDArray[np.int64], by: str, seed: int) -> Workload:
    if not len(keep):
        raise UsageError("the sample has no job; take a larger fraction")
    seconds = gpu_seconds(workload)
    total = float(np.nansum(seconds))
    share = float(np.nansum(seconds[keep])) / total if total else float("nan")
    part = Workload(workload.table.iloc[keep].reset_index(drop=True), workload.source)
    note = (
        f"sample by {by}, seed {seed}: {len(part)} of {len(workload)} jobs, {share:.1%} of the"
        f" GPU-seconds; mean demand {mean_demand_gpus(part):.4g} GPUs over"
        f" {span_s(part):.6g} s (before: {mean_demand_gpus(workload):.4g})"
    )
    part.source = dataclasses.replace(
        workload.source,
        notes=(*workload.source.notes, note),
        options={**workload.source.options, "sample_by": by, "sample_seed": seed},
    )
    return part
