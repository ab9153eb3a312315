"""The kinds of synthetic workload: each puts arrivals and sizes together into jobs.

``philly``: small and large bursts and the cron virtual cluster (Jeon et al., ATC 2019, and the
public trace). The GPU count and the run time belong to the burst: its head runs that long, every
later job that long times a lognormal factor, for 85 % of the variance of log run time lies between
bursts. ``openb``: renewals of CPU, shared, one-GPU and multi-GPU pods. ``poisson`` and ``gavel``:
Poisson arrivals with a law of run times and GPU counts.

Left out: jobs of one burst with different GPU counts (11 % of bursts have some), retries and
failures, and that a virtual cluster has its own job sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import UsageError
from traces.synthetic import arrivals, sizes
from traces.synthetic.sizes import Counts, Floats, Ints
from traces.synthetic.streams import Streams

PHILLY_JOBS_PER_DAY = 1040.0  # what seventy days of twelve seeds average
PHILLY_WITHIN_SIGMA = 0.65
PHILLY_LARGE = (7.28, 1.52)  # mu, sigma of ln seconds of jobs in large bursts, all told
PHILLY_CRON_VC = "11cb48"
# ln of the medians; the spread is that of the same bodies in the one- and two-GPU mixtures.
PHILLY_CRON_ONE = (math.log(70.0), 0.16)
PHILLY_CRON_TWO = (math.log(19.0), 0.34)
PHILLY_CRON_GPUS = Counts((1, 2), (0.91, 0.09))
# Share of small and of large bursts by virtual cluster, counted over the ten weeks that the rest
# was fitted to, bursts cut at gaps of 60 s within a virtual cluster. Fewer than 5 are left out.
PHILLY_SMALL_VCS = (
    *(("6214e9", 0.315), ("6c71a0", 0.242), ("103959", 0.153), ("ee9e8c", 0.114)),
    *(("7f04ca", 0.045), ("b436b2", 0.039), ("e13805", 0.033), ("2869ce", 0.031)),
    *(("ed69ec", 0.022), ("0e4a51", 0.004)),
)
PHILLY_LARGE_VCS = (
    *(("6214e9", 0.540), ("6c71a0", 0.258), ("b436b2", 0.074), ("0e4a51", 0.056)),
    *(("ed69ec", 0.054), ("ee9e8c", 0.008), ("7f04ca", 0.006)),
)


@dataclass(slots=True)
class Draft:
    """Columns of the jobs drawn, in any order; ``group`` numbers jobs that share a submitter."""

    submit_s: Floats
    duration_s: Floats
    num_gpus: Ints
    group: Ints
    more: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A generator: its title, its options (name to default and meaning), how many jobs to expect
    a day, and who draws whole days of it.
    """

    title: str
    options: Mapping[str, tuple[str, str]]
    jobs_per_day: Callable[[Mapping[str, str]], float]
    draw: Callable[[Streams, int, Mapping[str, str]], Draft]


def _labels(
    streams: Streams, name: str, shares: tuple[tuple[str, float], ...], count: int
) -> NDArray[np.str_]:
    drawn = sizes.choose(streams(name).random(count), np.array([s for _, s in shares]))
    return np.array([label for label, _ in shares])[drawn]


def _philly(streams: Streams, days: int, options: Mapping[str, str]) -> Draft:
    del options
    small, large = arrivals.philly_bursts(streams, days)
    cron_s, strays_s = arrivals.philly_cron(streams, days)

    gpu_class = sizes.PHILLY_SMALL_GPUS.draw(streams, "small gpus", len(small.size))
    gpus = gpu_class.copy()
    big = np.flatnonzero(gpu_class == 12)
    gpus[big] = sizes.PHILLY_BIG_GPUS.draw(streams, "big gpus", len(big))
    length_s = np.empty(len(gpus))
    for count, law in sizes.PHILLY_DURATIONS.items():
        members = np.flatnonzero(gpu_class == count)
        length_s[members] = law.draw(streams, f"small duration {count}", len(members))
    within = np.exp(PHILLY_WITHIN_SIGMA * streams("small within").standard_normal(len(small.burst)))
    within[np.cumsum(small.size) - small.size] = 1.0  # the head's run time is the burst's
    small_s = length_s[small.burst] * within

    mu, sigma = PHILLY_LARGE
    between = math.sqrt(sigma**2 - PHILLY_WITHIN_SIGMA**2)
    level = mu + between * streams("large duration").standard_normal(len(large.size))
    noise = PHILLY_WITHIN_SIGMA * streams("large within").standard_normal(len(large.burst))
    large_s = np.exp(level[large.burst] + noise)

    cron_gpus, cron_run_s = _cron_jobs(streams, "cron", len(cron_s))
    stray_gpus, stray_run_s = _cron_jobs(streams, "stray", len(strays_s))
    one = np.flatnonzero(stray_gpus == 1)
    stray_run_s[one] = sizes.PHILLY_DURATIONS[1].draw(streams, "stray one", len(one))
    cron_count = len(cron_s) + len(strays_s)
    vc = np.concatenate(
        [
            _labels(streams, "small vc", PHILLY_SMALL_VCS, len(small.size))[small.burst],
            _labels(streams, "large vc", PHILLY_LARGE_VCS, len(large.size))[large.burst],
            np.full(cron_count, PHILLY_CRON_VC),
        ]
    )
    duration = np.concatenate([small_s, large_s, cron_run_s, stray_run_s])
    return Draft(
        submit_s=np.floor(np.concatenate([small.submit_s, large.submit_s, cron_s, strays_s])),
        duration_s=np.clip(np.rint(duration), 1.0, sizes.PHILLY_LONGEST_S),
        num_gpus=np.concatenate(
            [gpus[small.burst], np.ones(len(large_s), dtype=np.int64), cron_gpus, stray_gpus]
        ),
        # The cron virtual cluster has one owner; every burst has its own draw. Odd and even
        # numbers keep a group's number the same however many days are drawn.
        group=np.concatenate(
            [2 * small.burst + 1, 2 * large.burst + 2, np.zeros(cron_count, dtype=np.int64)]
        ),
        more={"vc": vc},
    )


def _cron_jobs(streams: Streams, name: str, count: int) -> tuple[Ints, Floats]:
    """GPUs and run times of the cron virtual cluster's jobs."""
    gpus = PHILLY_CRON_GPUS.draw(streams, f"{name} gpus", count)
    normal = streams(f"{name} duration").standard_normal(count)
    (mu1, sigma1), (mu2, sigma2) = PHILLY_CRON_ONE, PHILLY_CRON_TWO
    logs = np.where(gpus == 1, mu1 + sigma1 * normal, mu2 + sigma2 * normal)
    return gpus, np.exp(logs)


def _openb(streams: Streams, days: int, options: Mapping[str, str]) -> Draft:
    del options
    submit_s = arrivals.openb_renewals(streams, days)
    count = len(submit_s)
    kind = sizes.OPENB_CLASSES.draw(streams, "class", count)
    gpus = np.minimum(kind, 1)
    multi = np.flatnonzero(kind == 3)
    gpus[kind == 2] = 1
    gpus[multi] = sizes.OPENB_MULTI_GPUS.draw(streams, "multi gpus", len(multi))
    milli = np.full(count, 1000)
    shared = np.flatnonzero(kind == 1)
    milli[shared] = sizes.OPENB_SHARES.draw(streams, "share", len(shared))
    duration = np.empty(count)
    for index, law in enumerate(sizes.OPENB_DURATIONS):
        members = np.flatnonzero(kind == index)
        duration[members] = law.draw(streams, f"duration {index}", len(members))
    cpu = np.array([sizes.OPENB_MEDIAN_CPU_MILLI.get(g, 0) for g in range(9)])
    return Draft(
        submit_s=np.floor(submit_s),
        duration_s=np.clip(np.rint(duration), 1.0, sizes.OPENB_LONGEST_S),
        num_gpus=gpus,
        group=np.arange(count),
        more={
            "gpu_milli": milli,
            "cpu_milli": cpu[gpus],
            "single_node": np.full(count, True),
            "priority": _labels(streams, "qos", sizes.OPENB_QOS, count),
        },
    )


def _poisson(streams: Streams, days: int, options: Mapping[str, str]) -> Draft:
    submit_s = arrivals.poisson(streams, "arrivals", _rate(options), days * arrivals.DAY_S)
    count = len(submit_s)
    return Draft(
        submit_s=submit_s,
        duration_s=sizes.duration_law(options["duration"]).draw(streams, "duration", count),
        num_gpus=sizes.gpu_counts(options["gpus"]).draw(streams, "gpus", count),
        group=np.arange(count),
        more={},
    )


def _rate(options: Mapping[str, str]) -> float:
    text = options["jobs_per_hour"]
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1_000_000:
        raise UsageError(f"jobs_per_hour {text!r}: expected a number above 0, at most 1000000")
    return rate


def _poisson_per_day(options: Mapping[str, str]) -> float:
    return 24 * _rate(options)


def _poisson_options(per_hour: str, duration: str, gpus: str) -> Mapping[str, tuple[str, str]]:
    laws = ", ".join(sizes.LAWS.values())
    return {
        "jobs_per_hour": (per_hour, "arrival rate before any scaling to a load"),
        "duration": (duration, f"law of run times: {laws}"),
        "gpus": (gpus, "GPUs per job: COUNT, COUNT:WEIGHT,COUNT:WEIGHT,... or gavel"),
    }


KINDS: Mapping[str, Kind] = {
    "philly": Kind(
        title="bursts, cron and duration mixtures fitted to Microsoft Philly 2017",
        options={},
        jobs_per_day=lambda options: PHILLY_JOBS_PER_DAY,
        draw=_philly,
    ),
    "openb": Kind(
        title="gamma renewals, shares and durations fitted to Alibaba openb 2023",
        options={},
        jobs_per_day=lambda options: arrivals.OPENB_PODS_PER_DAY,
        draw=_openb,
    ),
    "poisson": Kind(
        title="Poisson arrivals with a chosen law of run times and GPU counts",
        options=_poisson_options("60", "exponential:3600", "1"),
        jobs_per_day=_poisson_per_day,
        draw=_poisson,
    ),
    "gavel": Kind(
        title="Poisson arrivals with the sizes and run times of Gavel's generator",
        options=_poisson_options("6", "gavel", "gavel"),
        jobs_per_day=_poisson_per_day,
        draw=_poisson,
    ),
}
