"""Gittins index: serve those most likely to end soon for the service they still take.

Tiresias-G (Gu et al., NSDI 2019, section 3.3.2) after Gittins and Jones (1974). With S the size of
a job in GPU-seconds and a its attained service,

    index(a) = sup over D of  P(S - a <= D | S > a) / E[min(S - a, D) | S > a],

highest first: for M/G/1 the order of least mean time among those that do not know sizes but know
their distribution. Here the distribution is a sample, so the sup is over the sample's values and
exact. Attained service is discretised: a job has the index of the lower end of its level, so the
order changes only when a job crosses a level. Queues inside a level are first in first out,
running jobs win ties, as in Tiresias.

Deviations of the published simulator that are not followed: there D is one fixed quantum and no
sup is taken; E adds up S instead of S - a; one variant serves the lowest index first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from policies.contract import NEVER
from policies.inter.las import Level, Levels
from policies.state import JobState
from traces import DataError, UsageError

OBSERVED = "observed"
# From a minute of one GPU in steps of four; the last ends at 5.5 GPU-months of 512 GPUs.
LEVELS = tuple(60.0 * 4.0**k for k in range(12))

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gittins(Levels):
    """Highest Gittins index first, preemptive, from a sample of job sizes.

    ``history``: where the sample comes from: ``observed`` (the sizes of the jobs finished so far
    in this run) or a file: a trace, or a CSV with a column ``gpu_s`` (a job's GPU-seconds).
    ``levels``: attained service (GPU-seconds, ascending) at which a job's index is computed anew.
    ``min_history``: with fewer sizes the order is least attained service, by the same levels.
    """

    history: str = OBSERVED
    levels: tuple[float, ...] = LEVELS
    min_history: int = 100
    name: ClassVar[str] = "gittins"
    learns: ClassVar[bool] = True
    ahead: ClassVar[str] = "higher Gittins index"

    def __post_init__(self) -> None:
        limits = self.levels
        if (
            not limits
            or any(not 0 < x < NEVER for x in limits)
            or list(limits) != sorted(set(limits))
        ):
            raise UsageError(f"gittins: levels are {limits}; expected ascending numbers above 0")
        if self.min_history < 1:
            raise UsageError(f"gittins: min_history is {self.min_history}; expected 1 or more")
        if self.history != OBSERVED and not Path(self.history).exists():
            raise UsageError(
                f"gittins: history is {self.history!r}; expected 'observed' or a file of sizes"
            )

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        known = (
            f"the jobs finished so far in this run; before {self.min_history} of them, and until"
            " their number has next doubled, least attained service"
            if self.history == OBSERVED
            else f"the sizes in {self.history}"
        )
        return (
            f"The distribution of sizes: {known}.",
            f"The index changes at {len(self.levels)} levels of attained GPU-seconds:"
            f" {', '.join(f'{x:g}' for x in self.levels)}.",
            "Inside a level those that run come first, then first in first out.",
            "A job that does not fit is passed over; whatever comes later is preempted.",
            "No job's own run time is used. Time spent on costs counts as service.",
        )

    def limit(self, queue: int) -> float:
        """Where a level ends."""
        return self.levels[queue] if queue < len(self.levels) else NEVER

    def learn(self, sizes_gpu_s: Sequence[float]) -> tuple[int, ...]:
        """Return the place of each level in the order of service (0: first)."""
        if self.history != OBSERVED:
            return _places_by_file(self.history, self.levels)
        if len(sizes_gpu_s) < self.min_history:
            return tuple(range(len(self.levels) + 1))
        return _places(sizes_gpu_s, self.levels)

    def order(self, job: JobState, now: float) -> tuple[int, int, float]:
        """The level's place, running before waiting, first in first out."""
        level: Level = job.memory
        place: int = job.lesson[level.queue]
        return (place, 0 if job.running else 1, level.entered_s)

    def running_order(self, job: JobState, now: float) -> tuple[int, float]:
        """As ``order``, among those that run."""
        level: Level = job.memory
        return (job.lesson[level.queue], level.entered_s)


def gittins_index(sizes: Floats, attained: float) -> float:
    """The index (1/GPU-second) of a job with ``attained`` GPU-seconds, from a sample.

    ``sizes`` (n,) ascending. 0 if nothing in the sample is larger: such a job is served last.
    The ratio can only be largest where D reaches a value of the sample, because between two of
    them the probability stands still and the expectation grows.
    """
    above = sizes[np.searchsorted(sizes, attained, side="right") :] - attained
    count = len(above)
    if not count:
        return 0.0
    ended = np.arange(1, count + 1, dtype=np.float64)
    spent = np.cumsum(above) + (count - ended) * above
    return float(np.max(ended / spent))


@lru_cache(maxsize=16)
def _places_by_file(file: str, levels: tuple[float, ...]) -> tuple[int, ...]:
    return _places(history_of(file), levels)


def _places(sizes_gpu_s: Sequence[float], levels: tuple[float, ...]) -> tuple[int, ...]:
    """Order the levels by index, highest first; the lower level first among equals."""
    sizes = np.sort(np.asarray(sizes_gpu_s, dtype=np.float64))
    indices = [gittins_index(sizes, start) for start in (0.0, *levels)]
    ranked = sorted(range(len(indices)), key=lambda level: (-indices[level], level))
    places = [0] * len(indices)
    for place, level in enumerate(ranked):
        places[level] = place
    return tuple(places)


def history_of(file: str) -> tuple[float, ...]:
    """Read sizes in GPU-seconds from a CSV with a column ``gpu_s``, or from a trace.

    Raises :class:`DataError` for a file without sizes, or with sizes that are not above 0.
    """
    import pandas as pd  # noqa: PLC0415  (only where a file is asked for)

    from traces import load  # noqa: PLC0415

    if Path(file).suffix == ".csv":
        try:
            head = list(pd.read_csv(file, nrows=0).columns)
        except (ValueError, OSError) as error:
            raise DataError(f"cannot be read: {error}", file=file, expected="a CSV") from error
        if "gpu_s" in head:
            return _sizes(file, pd.read_csv(file, usecols=["gpu_s"], dtype=str)["gpu_s"].tolist())
    table = load(file).table
    sizes = table["num_gpus"] * table["gpu_milli"] / 1000 * table["duration_s"]
    found = tuple(float(s) for s in sizes.dropna() if s > 0)
    if not found:
        raise DataError("no job with a size", file=file, expected="jobs with GPUs and run times")
    return found


def _sizes(file: str, cells: list[object]) -> tuple[float, ...]:
    found = []
    for row, cell in enumerate(cells, start=2):
        try:
            size = float(str(cell))
        except ValueError:
            size = float("nan")
        if not 0.0 < size < NEVER:
            raise DataError(
                "not a size",
                file=file,
                row=row,
                column="gpu_s",
                value=cell,
                expected="GPU-seconds above 0",
            )
        found.append(size)
    if not found:
        raise DataError("no sizes", file=file, expected="one size per row in column gpu_s")
    return tuple(found)
