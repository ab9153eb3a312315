"""One job at a time: the baseline that EasyScale's artifact calls YARN-CS.

The earliest job that is not done gets its gang, and until it ends nobody else runs, however much of
the cluster is idle (EasyScale, SC'23, artifact, ``FifoPolicy``). A capacity scheduler would not do
that; head-of-line gang FIFO is ``fifo``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.contract import Policy
from policies.plan import Draft
from policies.view import ClusterView
from traces import UsageError


@dataclass(frozen=True, kw_only=True)
class YarnCs(Policy):
    """Serve one job at a time, in order of submission. ``round_s``: decide only so often (0: no).

    An elastic job runs as its gang.
    """

    round_s: float = 0.0
    name: ClassVar[str] = "yarn-cs"

    def __post_init__(self) -> None:
        if not 0.0 <= self.round_s < float("inf"):
            raise UsageError(f"yarn-cs: round_s is {self.round_s}; expected seconds, 0 or more")

    @property
    def interval_s(self) -> float | None:
        """The rounds, if there are any."""
        return self.round_s or None

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        rounds = f"once every {self.round_s:g} s" if self.round_s else "at every event"
        return (
            "Order: submission, then job id.",
            "One job runs at a time; everybody else waits, whatever is free.",
            f"Decisions are made {rounds}.",
            "Nothing is preempted; no estimates are used.",
        )

    def plan(self, view: ClusterView) -> Draft:
        """Start the first in line if nothing runs."""
        draft = view.draft()
        first = view.waiting.first()
        if first is not None and not view.running:
            draft.start(first)
        return draft
