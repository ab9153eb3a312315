"""First in, first out: with and without passing the head of the line.

``fifo`` is strict: while the first job in order does not fit, nobody starts (Tiresias' simulator
calls it ``fifo``, Kueue ``StrictFIFO``). ``best-effort`` passes over what does not fit (Tiresias'
``fjf``, Kueue's ``BestEffortFIFO``); it keeps GPUs busier and can starve large gangs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.contract import Policy
from policies.inter.greedy import admit
from policies.plan import Draft
from policies.view import ClusterView


@dataclass(frozen=True, kw_only=True)
class Fifo(Policy):
    """Serve in order of submission; the head of the line blocks."""

    name: ClassVar[str] = "fifo"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Order: submission, then job id.",
            "The head of the line blocks: nobody passes a job that does not fit.",
            "Nothing is preempted; no estimates are used.",
        )

    def plan(self, view: ClusterView) -> Draft:
        """Start from the head of the line while it fits."""
        draft = view.draft()
        admit(view, draft, blocks=True)
        return draft


@dataclass(frozen=True, kw_only=True)
class BestEffort(Policy):
    """Serve in order of submission; what does not fit is passed over."""

    name: ClassVar[str] = "best-effort"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "Order: submission, then job id.",
            "A job that does not fit is passed over at once, by any number of later ones.",
            "Nothing is preempted; no estimates are used.",
        )

    def plan(self, view: ClusterView) -> Draft:
        """Start whatever fits, in order."""
        draft = view.draft()
        admit(view, draft, blocks=False)
        return draft
