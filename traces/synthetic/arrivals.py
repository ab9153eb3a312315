"""When jobs come: Poisson, Philly's bursts and cron, openb's renewals in warped time.

Philly is not Poisson. One virtual cluster fires every 600 s; the rest comes in bursts whose heads
are a Poisson process with hour, weekday and random hourly factors, and a few large bursts (a sweep
of hundreds of one-GPU jobs) carry two thirds of all jobs. openb is a gamma renewal process in a
time warped by hour and a random factor per day. Numbers: fits to the two public traces
(``docs/traces/generators.md`` has each with its source and how well a run agrees).

Second 0 is a Monday, 00:00, on the trace's own clock. All functions return unsorted instants that
may lie past the end of the last day; :func:`traces.synthetic.generate` sorts and cuts.

Left out: holidays, growth over the months, and that a burst follows the failure of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.synthetic.sizes import Counts, Floats, Ints
from traces.synthetic.streams import Streams

HOUR_S = 3600.0
DAY_S = 86_400.0

PHILLY_HEADS_PER_HOUR = 5.09
PHILLY_HOUR_FACTORS = (
    *(1.24, 0.89, 1.07, 1.15, 0.92, 1.16, 1.32, 1.30, 1.43, 1.14, 0.79, 0.66),
    *(0.61, 0.65, 0.61, 0.72, 0.83, 1.10, 1.14, 0.97, 0.89, 1.17, 1.12, 1.11),
)
PHILLY_WEEKDAY_FACTORS = (0.97, 1.20, 1.28, 1.36, 1.14, 0.68, 0.37)
PHILLY_HOURLY_SHAPE = 2.0
PHILLY_LARGE_SHARE = 0.06
PHILLY_LARGE_DAILY_SIGMA = 0.8
PHILLY_SMALL_SIZES = Counts(
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
    (0.724, 0.163, 0.045, 0.027, 0.0147, 0.0109, 0.0062, 0.0051, 0.0036),
)
PHILLY_LARGE_SIZE = (3.88, 1.15)  # mu, sigma of ln jobs
PHILLY_LARGE_SIZE_RANGE = (10, 1063)
PHILLY_SMALL_GAP_S = 8.4
PHILLY_LARGE_GAP = (1.89, 0.78)  # mu, sigma of ln mean gap in seconds
PHILLY_CRON_PERIOD_S = 600.0
PHILLY_CRON_STRAYS_PER_DAY = 53.0

OPENB_PODS_PER_DAY = 236.0
OPENB_RENEWAL_SHAPE = 0.5
OPENB_DAILY_SIGMA = 0.4
OPENB_HOUR_FACTORS = (
    *(1.43, 1.31, 1.07, 1.27, 1.24, 0.93, 0.84, 0.98, 0.72, 0.44, 0.66, 0.61),
    *(0.45, 0.44, 0.41, 0.81, 0.89, 1.27, 1.64, 1.39, 1.04, 1.28, 1.27, 1.60),
)


@dataclass(frozen=True, slots=True)
class Bursts:
    """Bursts and their jobs: ``size`` is per burst; ``submit_s`` and ``burst`` are per job.

    Jobs stand burst by burst; ``burst`` is the index of a job's burst.
    """

    size: Ints
    submit_s: Floats
    burst: Ints


def poisson(streams: Streams, name: str, per_hour: float, end_s: float) -> Floats:
    """Instants of a Poisson process with ``per_hour`` events an hour, in seconds, past ``end_s``.

    The draw is long enough to pass the end but for one chance in 10^15; the rest is cut.
    """
    mean = per_hour * end_s / HOUR_S
    count = int(mean + 10 * np.sqrt(mean) + 60)
    gaps = streams(name).exponential(HOUR_S / per_hour, count)
    instants: Floats = np.cumsum(gaps)
    return instants[instants < end_s]


def philly_bursts(streams: Streams, days: int) -> tuple[Bursts, Bursts]:
    """Small and large bursts of ``days`` days, without the cron virtual cluster."""
    hours = np.arange(24 * days)
    rate = (
        PHILLY_HEADS_PER_HOUR
        * np.array(PHILLY_HOUR_FACTORS)[hours % 24]
        * np.array(PHILLY_WEEKDAY_FACTORS)[hours // 24 % 7]
        * streams("hourly").gamma(PHILLY_HOURLY_SHAPE, 1 / PHILLY_HOURLY_SHAPE, len(hours))
    )
    daily = _lognormal_mean_one(streams, "large daily", PHILLY_LARGE_DAILY_SIGMA, days)

    small_heads = _heads(streams, "small", rate * (1 - PHILLY_LARGE_SHARE))
    small_sizes = PHILLY_SMALL_SIZES.draw(streams, "small size", len(small_heads))
    small = _spread(
        streams, "small", small_heads, small_sizes, np.full(len(small_heads), PHILLY_SMALL_GAP_S)
    )

    large_heads = _heads(streams, "large", rate * PHILLY_LARGE_SHARE * daily[hours // 24])
    large_sizes = np.rint(
        np.clip(
            streams("large size").lognormal(*PHILLY_LARGE_SIZE, len(large_heads)),
            *PHILLY_LARGE_SIZE_RANGE,
        )
    ).astype(np.int64)
    gaps_s = streams("large gap mean").lognormal(*PHILLY_LARGE_GAP, len(large_heads))
    return small, _spread(streams, "large", large_heads, large_sizes, gaps_s)


def philly_cron(streams: Streams, days: int) -> tuple[Floats, Floats]:
    """Instants of the virtual cluster that fires every 600 s, and of its stray jobs."""
    phase_s = streams("cron phase").random() * PHILLY_CRON_PERIOD_S
    count = int(days * DAY_S / PHILLY_CRON_PERIOD_S)
    ticks: Floats = np.arange(count, dtype=np.float64) * PHILLY_CRON_PERIOD_S + phase_s
    strays = poisson(streams, "cron strays", PHILLY_CRON_STRAYS_PER_DAY / 24, days * DAY_S)
    return ticks, strays


def openb_renewals(streams: Streams, days: int) -> Floats:
    """Instants of ``days`` days of openb: a gamma renewal process in warped time.

    The warp is the integral of the rate: in it, gaps are gamma with mean 1 event.
    """
    hours = np.arange(24 * days)
    daily = _lognormal_mean_one(streams, "daily", OPENB_DAILY_SIGMA, days)
    rate = OPENB_PODS_PER_DAY / 24 * np.array(OPENB_HOUR_FACTORS)[hours % 24] * daily[hours // 24]
    warp = np.concatenate([[0.0], np.cumsum(rate)])
    count = int(warp[-1] + 20 * np.sqrt(warp[-1]) + 60)
    gaps = streams("renewal").gamma(OPENB_RENEWAL_SHAPE, 1 / OPENB_RENEWAL_SHAPE, count)
    events: Floats = np.cumsum(gaps)
    events = events[events < warp[-1]]
    return np.asarray(np.interp(events, warp, np.arange(len(warp)) * HOUR_S), dtype=np.float64)


def _heads(streams: Streams, name: str, rate_per_hour: Floats) -> Floats:
    counts = streams(f"{name} heads").poisson(rate_per_hour)
    hour = np.repeat(np.arange(len(counts)), counts)
    return (hour + streams(f"{name} head place").random(len(hour))) * HOUR_S


def _spread(
    streams: Streams, name: str, heads_s: Floats, sizes: Ints, mean_gap_s: Floats
) -> Bursts:
    """Put each burst's jobs after its head, with exponential gaps of the burst's mean."""
    burst = np.repeat(np.arange(len(sizes)), sizes)
    gaps = streams(f"{name} gaps").exponential(1.0, len(burst)) * mean_gap_s[burst]
    first = np.cumsum(sizes) - sizes
    gaps[first] = 0.0
    passed = np.cumsum(gaps)
    offset = passed - passed[first][burst]
    return Bursts(size=sizes, submit_s=heads_s[burst] + offset, burst=burst)


def _lognormal_mean_one(streams: Streams, name: str, sigma: float, count: int) -> Floats:
    return streams(name).lognormal(-sigma * sigma / 2, sigma, count)
