"""The canonical job table and inventory, column by column.

Every loader returns these columns (and only these); ``docs/traces/canonical.md`` is written from
them. Unknown is null, never 0. Times are float seconds from the trace's origin, which is
metadata of the workload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

Dtype = Literal["string", "float", "int", "bool"]

STATUSES = ("completed", "failed", "killed", "pending", "running", "unknown")
KINDS = ("training", "serving", "other")


@dataclass(frozen=True, slots=True)
class Column:
    """One canonical column: ``dtype``, ``unit``, whether null is allowed, and its meaning."""

    name: str
    dtype: Dtype
    unit: str
    nullable: bool
    meaning: str


JOB_COLUMNS: tuple[Column, ...] = (
    Column("job_id", "string", "", False, "unique name of the job"),
    Column("submit_s", "float", "s", False, "submission, seconds from the trace's origin"),
    Column(
        "duration_s",
        "float",
        "s",
        True,
        "run time on the GPUs it asked for, all attempts together; null: unknown",
    ),
    Column("num_gpus", "int", "GPUs", False, "GPUs of all workers together; 0 is a CPU job"),
    Column(
        "gpu_milli",
        "int",
        "GPU/1000",
        False,
        "share taken of each GPU; below 1000 only if num_gpus is 1",
    ),
    Column(
        "gpu_type",
        "string",
        "",
        True,
        "allowed GPU types, alternatives separated by '|'; null: any",
    ),
    Column("num_workers", "int", "", True, "worker processes (gang members, the paper's maxP)"),
    Column("cpu_milli", "int", "CPU/1000", True, "CPUs of all workers together"),
    Column("memory_mib", "int", "MiB", True, "host memory of all workers together"),
    Column("single_node", "bool", "", False, "must not span nodes"),
    Column("estimate_s", "float", "s", True, "run time the user stated beforehand"),
    Column("user", "string", "", True, "who submitted it"),
    Column("vc", "string", "", True, "virtual cluster, tenant or organisation"),
    Column("kind", "string", "", False, "one of " + ", ".join(KINDS)),
    Column("priority", "string", "", True, "priority class, in the publisher's words"),
    Column(
        "status",
        "string",
        "",
        False,
        "how it ended in the recorded cluster: one of " + ", ".join(STATUSES),
    ),
    Column(
        "start_s",
        "float",
        "s",
        True,
        "first start in the recorded cluster, seconds from the origin",
    ),
    Column("model", "string", "", True, "what it trains or runs, in the publisher's words"),
    Column("batch_size", "int", "samples", True, "batch per worker"),
    Column(
        "total_steps", "float", "steps", True, "work in global steps, where the trace counts it so"
    ),
    Column("min_gpus", "int", "GPUs", True, "GPUs guaranteed to an elastic job (minP); null: 0"),
    Column("max_gpus", "int", "GPUs", True, "most GPUs an elastic job may use; null: rigid"),
    Column("mixes_types", "bool", "", False, "elastic job that may mix GPU types (D2)"),
    Column(
        "left_censored", "bool", "", False, "it began before the trace did: submit_s is a bound"
    ),
    Column("right_censored", "bool", "", False, "it outlived the trace: duration_s is a bound"),
)

NODE_COLUMNS: tuple[Column, ...] = (
    Column("node", "string", "", False, "unique name of the machine"),
    Column("gpu_type", "string", "", False, "type of its GPUs ('gpu' if the publisher hides it)"),
    Column("num_gpus", "int", "GPUs", False, "GPUs in it"),
    Column("gpu_memory_mib", "int", "MiB", True, "memory of each GPU"),
    Column("cpu_milli", "int", "CPU/1000", True, "CPUs; null: not a limit"),
    Column("memory_mib", "int", "MiB", True, "host memory; null: not a limit"),
    Column("rack", "string", "", True, "rack, or the switch it hangs on"),
)

JOB_DEFAULTS: dict[str, object] = {
    "gpu_milli": 1000,
    "single_node": False,
    "kind": "training",
    "status": "unknown",
    "mixes_types": False,
    "left_censored": False,
    "right_censored": False,
}

PANDAS_DTYPE: dict[Dtype, str] = {
    "string": "string",
    "float": "float64",
    "int": "Int64",
    "bool": "bool",
}


def empty_jobs() -> pd.DataFrame:
    """Return a canonical job table without rows (the right columns and dtypes)."""
    return pd.DataFrame({c.name: pd.Series([], dtype=PANDAS_DTYPE[c.dtype]) for c in JOB_COLUMNS})
