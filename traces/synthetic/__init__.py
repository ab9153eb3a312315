"""Synthetic workloads: ``generate(kind, seed=..., days=... | jobs=...)``.

Kinds: ``philly`` and ``openb`` (fitted to the public traces), ``gavel`` (its authors' recipe on
Poisson arrivals) and ``poisson`` (any duration law and GPU counts, for queueing theory). One seed
gives the same bits every time; the first jobs of a longer trace are the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from traces.cluster import ClusterSpec
from traces.errors import UsageError, did_you_mean
from traces.scale import scale_to_load
from traces.synthetic import arrivals, sizes
from traces.synthetic.kinds import KINDS, Draft, Kind
from traces.synthetic.sizes import Ints
from traces.synthetic.streams import Streams
from traces.workload import Source, Workload

__all__ = ["KINDS", "Kind", "Streams", "generate"]

_MOST_JOBS = 100_000_000
_MOST_DAYS = 200_000


def generate(
    kind: str,
    *,
    seed: int,
    days: float | None = None,
    jobs: int | None = None,
    load: float | None = None,
    cluster: ClusterSpec | str | None = None,
    users: int = 0,
    vcs: int = 0,
    estimates: float = 0.0,
    **options: object,
) -> Workload:
    """Draw a workload of ``days`` days or of exactly ``jobs`` jobs (the first so many).

    ``load`` with ``cluster`` stretches time until the jobs offer that fraction of its GPUs
    (:func:`traces.scale.scale_to_load`; ``days`` counts the days before that). ``vcs`` above 0
    draws a virtual cluster out of so many, ``users`` a user out of so many in each virtual cluster,
    the k-th with weight 1/k, once per burst (``philly`` has its own virtual clusters unless ``vcs``
    is given). ``estimates`` above 0 is the sigma of the users'
    over-estimate: estimate = run time x exp(sigma |z|), z standard normal, so never too short and
    with median factor exp(0.67 sigma). ``options`` are the kind's own (``KINDS[kind].options``).

    Same arguments, same bits. Raises :class:`UsageError` for what cannot be meant.
    """
    if kind not in KINDS:
        raise UsageError(f"generator {kind!r} is unknown; {did_you_mean(kind, KINDS)}")
    chosen = _options(kind, options)
    _check_size(days, jobs)
    if (load is None) != (cluster is None):
        raise UsageError("load and cluster belong together: load=0.9, cluster='64x8:v100'")
    for name, count in (("users", users), ("vcs", vcs)):
        if not 0 <= count <= 1_000_000:
            raise UsageError(f"{name} {count}: expected 0 to 1000000")
    if not (math.isfinite(estimates) and 0 <= estimates <= 10):
        raise UsageError(f"estimates {estimates}: sigma of the over-estimate is 0 to 10")
    streams = Streams(seed)
    draft, keep = _draw(kind, streams, chosen, days=days, jobs=jobs)
    table = _table(streams, draft, keep, users=users, vcs=vcs, estimates=estimates)
    table.insert(0, "job_id", [f"{kind}-{i:07d}" for i in range(len(table))])
    length = {"days": days} if jobs is None else {"jobs": jobs}
    record: dict[str, object] = {"kind": kind, "seed": seed, **chosen, **length}
    record |= {"users": users, "vcs": vcs, "estimates": estimates}
    note = f"synthetic: {KINDS[kind].title}; second 0 is a Monday, 00:00"
    workload = Workload(table, Source(format=f"synthetic-{kind}", notes=(note,), options=record))
    if load is None or cluster is None:
        return workload
    spec = ClusterSpec.parse(cluster) if isinstance(cluster, str) else cluster
    return scale_to_load(workload, load, spec)


def _options(kind: str, given: Mapping[str, object]) -> dict[str, str]:
    known = KINDS[kind].options
    for name in given:
        if name not in known:
            if not known:
                raise UsageError(f"generator {kind!r} has no option {name!r}; it has none")
            raise UsageError(
                f"generator {kind!r} has no option {name!r}; {did_you_mean(name, known)}"
            )
    return {name: str(given.get(name, default)) for name, (default, _) in known.items()}


def _check_size(days: float | None, jobs: int | None) -> None:
    if (days is None) == (jobs is None):
        raise UsageError("say either days or jobs: how long the trace is, or how many jobs it has")
    if days is not None and not (math.isfinite(days) and 0 < days <= _MOST_DAYS):
        raise UsageError(f"days {days}: expected above 0, at most {_MOST_DAYS}")
    if jobs is not None and not 1 <= jobs <= _MOST_JOBS:
        raise UsageError(f"jobs {jobs}: expected 1 to {_MOST_JOBS}")


def _draw(
    kind: str, streams: Streams, options: Mapping[str, str], *, days: float | None, jobs: int | None
) -> tuple[Draft, Ints]:
    """Draw whole days, and the positions to keep in submission order.

    A job past the last whole day could be overtaken by one that was not drawn, so only what lies
    before it counts; that is why the length of the draw cannot show.
    """
    per_day = KINDS[kind].jobs_per_day(options)
    if days is not None and days * per_day > _MOST_JOBS:
        raise UsageError(f"{days:g} days of about {per_day:g} jobs: more than {_MOST_JOBS} jobs")
    whole = math.ceil(days if days is not None else 1.1 * (jobs or 0) / per_day + 1)
    while True:
        draft = KINDS[kind].draw(streams, whole, options)
        end_s = (days if days is not None else whole) * arrivals.DAY_S
        order = np.argsort(draft.submit_s, kind="stable")
        order = order[draft.submit_s[order] < end_s]
        if jobs is None:
            if len(order) == 0:
                raise UsageError(f"no job in {days} days with seed {streams.seed}; take more days")
            return draft, order
        if len(order) >= jobs:
            return draft, order[:jobs]
        whole = math.ceil(1.5 * whole) + 1
        if whole > _MOST_DAYS:
            raise UsageError(f"{jobs} jobs do not come within {_MOST_DAYS} days at this rate")


def _table(
    streams: Streams, draft: Draft, keep: Ints, *, users: int, vcs: int, estimates: float
) -> pd.DataFrame:
    columns = {
        "submit_s": draft.submit_s,
        "duration_s": draft.duration_s,
        "num_gpus": draft.num_gpus,
        **draft.more,
    }
    table = pd.DataFrame({name: values[keep] for name, values in columns.items()})
    group = draft.group[keep]
    groups = int(draft.group.max()) + 1
    if vcs:
        drawn = _zipf(streams, "vc", vcs, groups)[group]
        table["vc"] = np.array([f"vc-{k:02d}" for k in range(vcs)])[drawn]
    if users:
        drawn = _zipf(streams, "user", users, groups)[group]
        names = pd.Series(np.array([f"user-{k:03d}" for k in range(users)])[drawn])
        table["user"] = table["vc"].astype(str) + "/" + names if "vc" in table else names
    if estimates:
        over = np.exp(estimates * np.abs(streams("estimate").standard_normal(len(table))))
        table["estimate_s"] = table["duration_s"] * over
    return table


def _zipf(streams: Streams, name: str, values: int, count: int) -> Ints:
    weights = 1.0 / np.arange(1, values + 1)
    return sizes.choose(streams(name).random(count), weights)
