"""What both worlds do around a driver's run: its record, its jobs table, and how it is ended.

``simulator.run`` and the executor leave the same kind of run directory; here is what they say of a
run in the same words (``traces/runlog.py`` has the format).
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from policies.books import Outcomes
from policies.contract import IntraJobPolicy, PlacementPolicy, Policy
from policies.driver import Driver
from policies.model import Model
from policies.transitions import Assign
from traces import ClusterSpec, DataError, UsageError, Workload
from traces.feasibility import infeasible
from traces.runlog import JOB_OUTCOME_COLUMNS, OUTCOMES

SAMPLES = 1000  # a run's time line is sampled about so often, unless told otherwise


def opening(
    *,
    kind: str,
    name: str | None,
    seed: int,
    policy: tuple[Policy, object],
    placement: tuple[PlacementPolicy, object],
    intra: tuple[IntraJobPolicy | None, object],
    cluster: tuple[ClusterSpec, object],
    workload: Workload,
    model: Model,
    believed: Model | None,
) -> dict[str, Any]:
    """What the record says from the start; policies and cluster come with the text they were."""
    seats, seats_text = intra
    spec, text = cluster
    return {
        "kind": kind,
        "status": "partial",
        "name": name,
        "seed": seed,
        "policy": describe(*policy),
        "placement": describe(*placement),
        "intra": None if seats is None else describe(seats, seats_text),
        "cluster": {
            "text": text if isinstance(text, str) else spec.describe(),
            "nodes": [dataclasses.asdict(n) for n in spec.nodes],
            "links": dataclasses.asdict(spec.links),
            "digest": spec.digest(),
        },
        "workload": {
            **dataclasses.asdict(workload.source),
            "jobs": len(workload),
            "digest": workload.digest(),
        },
        "model": model.describe(),
        "believed": None if believed is None else believed.describe(),
        "versions": versions(),
        "revision": revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(policy: Policy | PlacementPolicy | IntraJobPolicy, spec: object) -> dict[str, Any]:
    """What the run's record says of a policy: name, parameters, and what the name leaves open.

    ``spec`` is the text it was made from, if it was; a replay makes it again.
    """
    return {
        "name": policy.name or type(policy).__name__,
        "spec": spec if isinstance(spec, str) else None,
        "params": policy.params(),
        "says": list(policy.says()),
    }


def versions() -> dict[str, str]:
    """Versions of everything that could change a result."""
    found = {"python": platform.python_version()}
    for package in (
        "tandem-lab",
        "simpy",
        "numpy",
        "pandas",
        "pyarrow",
        "networkx",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def revision() -> str | None:
    """The source revision of this checkout, with "+" if it has local changes; None outside git."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(  # noqa: S603  (our own checkout, no input)
            [
                git,
                "-C",
                str(root),
                "describe",
                "--always",
                "--dirty=+",
                "--exclude=*",
                "--abbrev=12",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return described.stdout.strip()


def misfit_ranks(
    workload: Workload, spec: ClusterSpec, misfits: str, *, sizes: bool
) -> frozenset[int]:
    """Ranks of jobs that fit nowhere; an error unless they are to be rejected."""
    verdict = infeasible(workload, spec, sizes=sizes)
    ranks = np.flatnonzero(verdict.mask).tolist()
    if ranks and misfits == "refuse":
        first = ranks[0]
        raise DataError(
            f"{len(ranks)} of {len(workload)} jobs fit nowhere on this cluster ({spec.describe()});"
            f" first: {workload.table['job_id'][first]}: {verdict.reason(first)}",
            file=workload.source.path or None,
            expected="a larger cluster, or misfits=reject (--misfits reject) to run without them",
        )
    return frozenset(ranks)


def assign_with(seats: IntraJobPolicy | None, believed: Model) -> Assign | None:
    """How the driver asks the intra-job policy."""
    profile = believed.profile
    if seats is None or profile is None:
        return None
    return lambda elastic, gpus: seats.assign(elastic, gpus, profile)


def start_s(workload: Workload) -> float:
    """The clock starts at 0, or at the first submission if that is before."""
    return min(0.0, float(workload.table["submit_s"].iloc[0])) if len(workload) else 0.0


def sampling_s(workload: Workload, asked: float | None) -> float:
    """Seconds between samples: as asked, or about a thousandth of the span of submissions."""
    if asked is not None:
        if not 0.0 < asked < float("inf"):
            raise UsageError(f"sample_s is {asked}; expected seconds above 0")
        return asked
    submit = workload.table["submit_s"]
    span = float(submit.iloc[-1] - submit.iloc[0]) if len(workload) else 0.0
    return max(1.0, span / SAMPLES)


def ending(driver: Driver, wall_s: float) -> dict[str, Any]:
    """What the record says once the run has ended."""
    counts = driver.counts
    submit = driver.workload.table["submit_s"]
    return {
        "status": "complete" if driver.complete else "partial",
        "span": {
            "start_s": float(submit.iloc[0]) if len(submit) else 0.0,
            "end_s": float(driver.clock.now),
        },
        "counts": dataclasses.asdict(counts) | {"events": driver.clock.events()},
        "wall_s": round(wall_s, 3),
    }


def jobs_table(workload: Workload, outcomes: Outcomes) -> pd.DataFrame:
    """One row per job in rank order, with its outcome."""
    jobs = workload.table[["job_id", "submit_s", "num_gpus"]].copy()
    columns = outcomes.columns()
    for column in JOB_OUTCOME_COLUMNS:
        jobs[column.name] = np.asarray(columns[column.name])
    jobs["status"] = pd.Categorical.from_codes(
        np.asarray(columns["status"]), categories=list(OUTCOMES)
    )
    return jobs


@contextmanager
def stopping_on_signals(driver: Driver) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end the run between two decisions; a second one ends it at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        driver.stop()

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
