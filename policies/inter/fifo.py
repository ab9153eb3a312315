"""First in, first out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.contract import Policy
from policies.plan import Draft
from policies.view import ClusterView


@dataclass(frozen=True, kw_only=True)
class Fifo(Policy):
    """Serve in order of submission."""

    name: ClassVar[str] = "fifo"

    def plan(self, view: ClusterView) -> Draft:
        """Start from the head of the line while it fits."""
        draft = view.draft()
        for job in view.waiting:
            if not draft.start(job):
                break
        return draft
