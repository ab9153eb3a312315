"""What more GPUs would give an elastic job, and what fewer would cost it.

EasyScale's companion (SC'23, section 3.3) proposes increments: for each GPU type, the number of
GPUs with the best speed-up per GPU, with plans that waste more than 30 % left out. Here a plan is
the best one for the GPUs (``policies.intra.balance``), so a proposal also says which GPUs the job
would no longer use.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from policies.intra.balance import Counts, Fit, best, ladder
from policies.rates import UNLIMITED, Comm
from traces.profile import JobRates, ReduceCost

_FREE = ReduceCost()


class Growth(NamedTuple):
    """``more`` GPUs of a type (its position): the fit it leads to, speed-up, speed-up per GPU."""

    type_index: int
    more: int
    speedup: float
    gain: float
    fit: Fit


class Loss(NamedTuple):
    """``fewer`` GPUs of a type: the fit that is left, the rate lost as a share, and per GPU."""

    type_index: int
    fewer: int
    lost: float
    per_gpu: float
    fit: Fit


def waste_share(rates: JobRates, workers: int, fit: Fit) -> float:
    """Equation 1 (d) of a fit, by the identity (e): 1 - (workers / f) / sum N_i C_i."""
    seconds = rates.microbatch_s.values()
    speed = sum(n / s for n, s in zip(fit.gpus, seconds, strict=True))
    return 1.0 - workers / fit.compute_s / speed


@lru_cache(maxsize=65_536)
def growths(
    rates: JobRates,
    workers: int,
    held: Counts,
    free: Counts,
    most: int,
    comm: Comm = UNLIMITED,
    max_waste: float = 1.0,
    reference_s: float = 0.0,
) -> tuple[Growth, ...]:
    """Return all increments of one type that make a job faster, the best gain first.

    ``held``, ``free``: GPUs by type. For a job that holds none, the speed-up is ``reference_s``
    over the step. Equal gains: the larger speed-up first (the paper prefers more GPUs), then the
    order of the types.
    """
    now = best(rates, workers, held, most, comm) if any(held) else None
    found: list[Growth] = []
    for g, limit in enumerate(free):
        for more in _numbers(rates, workers, held, g, min(limit, workers), now):
            grown = tuple(n + more if i == g else n for i, n in enumerate(held))
            fit = best(rates, workers, grown, most, comm)
            if fit is None or waste_share(rates, workers, fit) > max_waste:
                continue
            if now is None:
                speedup = reference_s / fit.step_s
                found.append(Growth(g, more, speedup, speedup / more, fit))
            elif fit.step_s < now.step_s:
                speedup = now.step_s / fit.step_s
                found.append(Growth(g, more, speedup, (speedup - 1.0) / more, fit))
    found.sort(key=lambda growth: (-growth.gain, -growth.speedup, growth.type_index))
    return tuple(found)


def losses(
    rates: JobRates,
    workers: int,
    held: Counts,
    most: int,
    comm: Comm = UNLIMITED,
    least: int = 1,
) -> tuple[Loss, ...]:
    """Return, for each number of GPUs of one type that a job could give up, what it would lose.

    The smallest loss per GPU first; GPUs that hold no logical worker are lost for nothing. At
    least ``least`` GPUs stay.
    """
    now = best(rates, workers, held, most, comm)
    if now is None:
        return ()
    found: list[Loss] = []
    for g, count in enumerate(held):
        for fewer in range(1, min(count, sum(held) - least) + 1):
            kept = tuple(n - fewer if i == g else n for i, n in enumerate(held))
            fit = best(rates, workers, kept, most, comm)
            if fit is not None:
                lost = 1.0 - now.step_s / fit.step_s
                found.append(Loss(g, fewer, lost, lost / fewer, fit))
    found.sort(key=lambda loss: (loss.per_gpu, -loss.fewer, loss.type_index))
    return tuple(found)


def _numbers(
    rates: JobRates, workers: int, held: Counts, g: int, limit: int, now: Fit | None
) -> list[int]:
    """Numbers of GPUs of type ``g`` that may be best, rising.

    Where a step is its computation, those at which the shortest computation gets shorter; else all.
    """
    if limit < 1:
        return []
    if rates.reduce != _FREE or len(set(rates.update_s.values())) > 1 or rates.gradient_bytes:
        return list(range(1, limit + 1))
    rungs = ladder(rates, workers)
    numbers: list[int] = []
    for j in range(len(rungs.times_s) - 1, -1, -1):
        if now is not None and rungs.times_s[j] >= now.compute_s:
            continue
        caps = rungs.caps[j]
        if not caps[g]:
            break
        need = workers - sum(n * c for n, c in zip(held, caps, strict=True))
        more = -(-need // caps[g])
        if more > limit:
            break
        if more > 0 and (not numbers or numbers[-1] != more):
            numbers.append(more)
    return numbers
