"""AFS-L: apathetic future share (Hwang et al., NSDI 2021), with known lengths.

GPUs are given out step by step. Of two jobs, a that would end sooner at its present share and b
that would end later, the step goes to a if ``(p_a+ - p_a) / p_a > (p_b+ - p_b) / p_b+`` (p: rate at
the present share, p+: after the step), else to b; of two jobs without a share to the one with the
greater p+. The jobs are scanned in order of submission, the winner so far against the next.
Everything is shared anew at every event.

Lab, where the paper leaves it open: steps instead of single GPUs, their gain taken per GPU
(``policies.inter.shares``); the order of the scan; one GPU type per job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from policies.inter.shares import Sharer, Shares, guaranteed, raise_to


@dataclass(frozen=True, kw_only=True)
class Afs(Shares):
    """Shares that shorten the mean JCT by looking at pairs of jobs. ``estimates`` of run time."""

    name: ClassVar[str] = "afs"
    ahead: ClassVar[str] = "a greater share is worth more to them"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Shares everything anew at every event; every change is charged by the world.",
            "A step goes to the job that would end sooner if its relative gain per GPU is greater"
            " than that of the one that would end later, relative to its rate after.",
            "Every job stays on one GPU type: preferred, or else the one with most room.",
            f"Estimates of run time: {self.estimates}.",
        )

    def levels(self, sharers: Sequence[Sharer], room: list[int]) -> list[int]:
        """Give out steps until none fits."""
        levels = guaranteed(sharers, room)
        open_ = [i for i, s in enumerate(sharers) if s.steps]
        while open_:
            open_ = [i for i in open_ if _fits(sharers[i], levels[i], room)]
            champion: int | None = None
            for i in open_:
                if champion is None or not _beats(sharers, levels, champion, i):
                    champion = i
            if champion is not None:
                raise_to(sharers[champion], levels, champion, levels[champion] + 1, room)
        return levels


def _fits(sharer: Sharer, level: int, room: list[int]) -> bool:
    if level >= len(sharer.steps):
        return False
    return sharer.gpus(level + 1) - sharer.gpus(level) <= room[sharer.pool]


def _beats(sharers: Sequence[Sharer], levels: Sequence[int], i: int, j: int) -> bool:
    """Whether the next step goes to i rather than to j (submitted later)."""
    p_i, p_j = sharers[i].rate(levels[i]), sharers[j].rate(levels[j])
    up_i, up_j = _after(sharers[i], levels[i]), _after(sharers[j], levels[j])
    if p_i == 0.0 and p_j == 0.0:
        return up_i >= up_j
    if p_j == 0.0 or (p_i > 0.0 and sharers[i].left_s / p_i <= sharers[j].left_s / p_j):
        return _gain(p_i, up_i, sharers[i], levels[i], p_i) > _gain(
            p_j, up_j, sharers[j], levels[j], up_j
        )
    return not _gain(p_j, up_j, sharers[j], levels[j], p_j) > _gain(
        p_i, up_i, sharers[i], levels[i], up_i
    )


def _after(sharer: Sharer, level: int) -> float:
    return sharer.rate(level + 1)


def _gain(before: float, after: float, sharer: Sharer, level: int, base: float) -> float:
    """Relative gain of the next step, per GPU."""
    return (after - before) / base / (sharer.gpus(level + 1) - sharer.gpus(level))
