"""Optimus (Peng et al., EuroSys 2018): workers to the jobs whose remaining time they shorten most.

Every round each job, in order of submission, gets the least it can run on; then steps are given to
the job with the greatest ``(r / p - r / p+) / GPUs`` (r: work left, p: rate before the step, p+:
after it), until none fits or none gains. Rounds of 600 s.

Lab: GPUs are the only resource, so a job's dominant share is its GPUs; steps instead of single
workers (``policies.inter.shares``); remaining work is the policy's estimate, where Optimus fits
loss curves; one GPU type per job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import ClassVar

from policies.inter.shares import Sharer, Shares, guaranteed, raise_to
from traces import UsageError


@dataclass(frozen=True, kw_only=True)
class Optimus(Shares):
    """Shares by the remaining time that one more GPU saves, in rounds of ``round_s``."""

    round_s: float = 600.0
    name: ClassVar[str] = "optimus"

    def __post_init__(self) -> None:
        if not 0.0 < self.round_s < float("inf"):
            raise UsageError(f"optimus: round_s is {self.round_s}; expected seconds above 0")

    @property
    def interval_s(self) -> float | None:
        """The rounds."""
        return self.round_s

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            f"Shares everything anew every {self.round_s:g} s; changes are charged by the world.",
            "Each job first gets the least it runs on, in order of submission; then GPUs go to the"
            " job whose remaining time each of them shortens most.",
            "Every job stays on one GPU type: preferred, or else the one with most room.",
            f"Estimates of run time: {self.estimates}.",
        )

    def levels(self, sharers: Sequence[Sharer], room: list[int]) -> list[int]:
        """Give out least sizes, then steps by gain."""
        levels = guaranteed(sharers, room)
        heap: list[tuple[float, int]] = []
        for i, sharer in enumerate(sharers):
            if not sharer.steps or not (levels[i] or raise_to(sharer, levels, i, 1, room)):
                continue
            if len(sharer.steps) > 1:
                heap.append((-_saved_s(sharer, 1), i))
        heapify(heap)
        while heap:
            _, i = heappop(heap)
            sharer, level = sharers[i], levels[i]
            if raise_to(sharer, levels, i, level + 1, room) and level + 1 < len(sharer.steps):
                heappush(heap, (-_saved_s(sharer, level + 1), i))
        return levels


def _saved_s(sharer: Sharer, level: int) -> float:
    """Seconds that the next step takes off the remaining time, per GPU."""
    before, after = sharer.rate(level), sharer.rate(level + 1)
    gpus = sharer.gpus(level + 1) - sharer.gpus(level)
    return sharer.left_s * (1.0 / before - 1.0 / after) / gpus
