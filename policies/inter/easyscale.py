"""EasyScale's inter-job scheduler (SC'23, section 3.4), as its artifact behaves, and repaired.

``version=paper``: rounds, proposals ranked by speed-up per GPU, every quirk of the artifact by its
name (``policies.inter.easyscale_paper``). ``version=tandem``: the same idea repaired
(``policies.inter.easyscale_tandem``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from policies.contract import Policy
from policies.inter import easyscale_paper
from policies.intra.artifact import Quirks
from policies.plan import Draft
from policies.state import JobState
from policies.view import ClusterView
from traces import UsageError


@dataclass(frozen=True, kw_only=True)
class EasyScale(Policy):
    """Elastic jobs on mixed GPU types, by speed-up per GPU."""

    version: Literal["paper", "tandem"] = "tandem"
    types: Literal["mixed", "preferred"] = "mixed"
    quirks: str = "all"
    round_s: float = 60.0
    name: ClassVar[str] = "easyscale"
    remembers: ClassVar[bool] = True
    resizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.round_s < float("inf"):
            raise UsageError(f"easyscale: round_s is {self.round_s}; expected seconds above 0")
        Quirks.of(self.quirks)

    @property
    def interval_s(self) -> float | None:
        return self.round_s

    def remember(self, job: JobState, now: float, event: str) -> Any:
        if event == "start":
            return (job.held,)
        if event == "resize":
            return (*job.memory, job.held)
        return job.memory if event == "migrate" else ()

    def plan(self, view: ClusterView) -> Draft:
        return easyscale_paper.plan_round(
            view, Quirks.of(self.quirks), mixing=self.types == "mixed"
        )
