"""How long a policy may believe a job runs: the truth, the user's word, or the truth with noise.

A policy never reads a job's duration. What it is given is named by its ``estimates`` parameter:

- ``true``: the duration itself (an oracle; what most published simulators do),
- ``user``: what the user said (the trace's ``estimate_s``; an error if the trace has none),
- ``noisy:SIGMA``: the truth times a lognormal factor of median 1 and log-deviation SIGMA, drawn
  per job from the run's seed and the job's id, so it does not depend on the order of events,
- ``none``: nothing (NaN).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from traces import DataError, Job, UsageError

Estimator = Callable[[Job], float]
MOST_SIGMA = 10.0  # beyond, a factor could leave the range of floats


def estimator(kind: str, seed: int) -> Estimator:
    """Return the function that gives each job's estimate in seconds.

    Raises :class:`UsageError` for a kind that does not exist.
    """
    name, _, argument = kind.partition(":")
    if name == "none" and not argument:
        return lambda job: math.nan
    if name == "true" and not argument:
        return lambda job: job.duration_s
    if name == "user" and not argument:
        return _user
    if name == "noisy":
        try:
            sigma = float(argument)
        except ValueError:
            sigma = math.nan
        if 0.0 <= sigma <= MOST_SIGMA:
            return lambda job: job.duration_s * math.exp(sigma * _normal(seed, job.job_id))
    raise UsageError(
        f"estimates {kind!r}: expected true, user, none or noisy:SIGMA with SIGMA from 0 to"
        f" {MOST_SIGMA:g}"
    )


def _user(job: Job) -> float:
    if job.user_estimate_s is None:
        raise DataError(
            f"job {job.job_id} has no user estimate",
            column="estimate_s",
            expected="a trace with user estimates, or the policy parameter estimates=true",
        )
    return job.user_estimate_s


def _normal(seed: int, job_id: str) -> float:
    """A standard normal variate that is a function of (seed, job id) alone (Box-Muller)."""
    digest = hashlib.blake2b(
        job_id.encode(), digest_size=16, key=seed.to_bytes(16, "little")
    ).digest()
    u1 = (int.from_bytes(digest[:8], "little") + 1) / 2.0**64
    u2 = int.from_bytes(digest[8:], "little") / 2.0**64
    return math.sqrt(-2.0 * math.log(u1)) * math.cos(2.0 * math.pi * u2)
