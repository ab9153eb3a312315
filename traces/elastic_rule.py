"""Rigid jobs made elastic by a stated rule, so that elastic policies can be tried on any trace.

No public trace but EasyScale's says how a job's speed depends on its size, or whether it may mix
GPU types. A rule says it: how many logical workers a gang becomes, what is guaranteed, which model
of a profile a job trains, and which models may mix types. What is drawn is a hash of the job's id,
so it does not depend on the order of rows, or on which other jobs there are.

The work of a job is unchanged: its gang, on the type it prefers, takes the trace's run time. Left
rigid: CPU jobs, shares of a GPU, and what is not training.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from traces.errors import UsageError, did_you_mean
from traces.job import WHOLE_GPU_MILLI

if TYPE_CHECKING:
    from traces.profile import Profile
    from traces.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticRule:
    """How a gang of g GPUs becomes elastic.

    ``max``: g x max logical workers (rounded, at least g), and as many GPUs at most. ``min``: g x
    min GPUs are guaranteed (rounded down). ``models``: those a job without a known one may train,
    joined by ``;``, or ``all`` of the profile; which one is drawn by its id. ``mix``: models that
    may mix GPU types: ``all``, ``none``, or names. ``batch``: per logical worker, for models drawn
    (0: the smallest that was recorded). Raises :class:`UsageError` for numbers that cannot be.
    """

    max: float = 1.0
    min: float = 0.0
    models: str = "all"
    mix: str = "none"
    batch: int = 0

    def __post_init__(self) -> None:
        if not 1.0 <= self.max <= 1000.0:
            raise UsageError(f"elastic rule: max is {self.max}; expected 1 to 1000 times the gang")
        if not 0.0 <= self.min <= 1.0:
            raise UsageError(f"elastic rule: min is {self.min}; expected 0 to 1 times the gang")
        if self.batch < 0:
            raise UsageError(f"elastic rule: batch is {self.batch}; expected 0 or more")


def make_elastic(workload: Workload, rule: ElasticRule, profile: Profile | None) -> Workload:
    """Return the workload with its gangs made elastic; jobs that are elastic already stay.

    Without a ``profile`` jobs get no model. Raises :class:`UsageError` for models that the profile
    does not have.
    """
    table = workload.table.copy()
    gangs = (
        table["max_gpus"].isna()
        & (table["num_gpus"] > 0)
        & (table["gpu_milli"] == WHOLE_GPU_MILLI)
        & (table["kind"] == "training")
    ).to_numpy(dtype=bool)
    gpus = table["num_gpus"].to_numpy(dtype=np.int64)
    workers = np.maximum(gpus, np.floor(gpus * rule.max + 0.5).astype(np.int64))
    least = np.floor(gpus * rule.min).astype(np.int64)
    for column, values in (("num_workers", workers), ("max_gpus", workers), ("min_gpus", least)):
        table[column] = table[column].mask(gangs, pd.Series(values, dtype="Int64"))
    # Its gang holds several logical workers a GPU, and is slower than at rate 1 by that.
    slower = np.where(gangs, -(-workers // np.maximum(gpus, 1)), 1)
    for column in ("duration_s", "estimate_s"):
        table[column] = table[column] / slower
    names = _names(rule.models, profile, "models")
    mixing = _names(rule.mix, profile, "mix")
    if profile is not None:
        _draw_models(table, gangs, names, rule, profile)
        table["mixes_types"] = table["mixes_types"] | (gangs & table["model"].isin(mixing))
    else:
        table["mixes_types"] = table["mixes_types"] | (gangs & (rule.mix == "all"))
    note = f"{int(gangs.sum())} gangs made elastic: " + ", ".join(
        f"{k}={v}" for k, v in asdict(rule).items()
    )
    source = replace(workload.source, notes=(*workload.source.notes, note))
    return type(workload)(table, source)


def _draw_models(
    table: pd.DataFrame, gangs: np.ndarray, names: list[str], rule: ElasticRule, profile: Profile
) -> None:
    """Give every gang whose model the profile does not know one of ``names``."""
    known = table["model"].isin(list(profile.models)) & table["batch_size"].notna()
    models = table["model"].tolist()
    batches = table["batch_size"].tolist()
    for at in np.flatnonzero(gangs & ~known.to_numpy(dtype=bool)).tolist():
        name = names[_hash(str(table["job_id"].iloc[at])) % len(names)]
        models[at] = name
        batches[at] = rule.batch or min(profile.models[name].microbatch_s)
    table["model"] = pd.Series(models, dtype="string")
    table["batch_size"] = pd.Series(batches, dtype="Int64")


def _names(text: str, profile: Profile | None, what: str) -> list[str]:
    if text in ("all", "none") or profile is None:
        return sorted(profile.models) if profile is not None and text == "all" else []
    names = [name for name in text.split(";") if name]
    for name in names:
        if name not in profile.models:
            near = did_you_mean(name, profile.models)
            raise UsageError(f"elastic rule: {what}: the profile has no model {name!r}; {near}")
    if not names:
        raise UsageError(f"elastic rule: {what} is empty; expected all, none or names")
    return names


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
