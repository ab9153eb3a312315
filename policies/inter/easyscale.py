"""EasyScale's inter-job scheduler (SC'23, section 3.4), as its artifact behaves, and repaired.

``version=paper``: rounds, first plans and growth by proposals, every quirk of the artifact by its
name (``policies.inter.easyscale_paper``). ``version=tandem``: the idea (elastic jobs, mixed types,
GPUs to whom they help most) without the defects (``policies.inter.easyscale_tandem``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from policies.contract import Policy
from policies.inter import easyscale_paper
from policies.inter.easyscale_tandem import Pass, Weights, wait_of
from policies.intra.artifact import Quirks
from policies.plan import Draft, Plan
from policies.state import JobState
from policies.view import ClusterView
from policies.yielding import give_way
from traces import UsageError

PAPER_ROUND_S = 60.0


@dataclass(frozen=True, kw_only=True)
class EasyScale(Policy):
    """Elastic jobs on mixed GPU types: ``version`` paper (as the artifact behaves) or tandem.

    ``types``: preferred holds every job to its preferred type. ``round_s``: decide only so often
    (default: every 60 s as paper, at every event as tandem). ``quirks``, of version paper: all,
    none, names joined by ; or -name; (``policies.intra.artifact.Quirks``).

    Of version tandem: ``estimates`` of run time, if it may have them; without, a job is expected
    to run on for ``prior_s`` plus what it has done. ``horizon_s``: a change of size must repay
    itself in that time. ``thrift``: while others wait, GPUs must bring that share of what the
    first one brings. ``margin``: only a job with less than that share of service left takes GPUs
    from a running one. ``aging``: a job's key halves when its age is so many times its work left.
    ``reserve``: share of the GPUs kept for the least that jobs run on which are older than
    ``patience`` times their work left.
    """

    version: Literal["paper", "tandem"] = "tandem"
    types: Literal["mixed", "preferred"] = "mixed"
    round_s: float | None = None
    quirks: str = "all"
    estimates: str = "none"
    prior_s: float = 300.0
    horizon_s: float = 300.0
    thrift: float = 0.5
    margin: float = 0.5
    aging: float = 1.0
    patience: float = 20.0
    reserve: float = 0.25
    name: ClassVar[str] = "easyscale"
    remembers: ClassVar[bool] = True
    resizes: ClassVar[bool] = True
    ahead: ClassVar[str] = "less service expected to be left, or older"

    def __post_init__(self) -> None:
        Quirks.of(self.quirks)
        for field in ("round_s", "prior_s", "horizon_s", "aging", "patience"):
            value = getattr(self, field)
            if value is not None and not 0.0 < value < float("inf"):
                raise UsageError(f"easyscale: {field} is {value}; expected more than 0")
        for field in ("thrift", "margin", "reserve"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"easyscale: {field} is {value}; expected 0 to 1")

    @property
    def interval_s(self) -> float | None:
        """Rounds, or every event."""
        if self.round_s is None and self.version == "paper":
            return PAPER_ROUND_S
        return self.round_s

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        held = "May mix GPU types, if the job may." if self.types == "mixed" else "Preferred type."
        if self.version == "paper":
            return (
                "As the artifact behaves: one GPU first, then growth by proposals, one a round.",
                f"Rounds of {self.interval_s:g} s; quirks: {self.quirks}.",
                held,
                "Jobs never shrink; no estimates of run time are used.",
            )
        rounds = "at every event" if self.round_s is None else f"every {self.round_s:g} s"
        return (
            "Least expected service left first, moving up with age.",
            "Each job gets the size that is worth most within what is left.",
            f"Estimates of run time: {self.estimates}.",
            f"Decides {rounds}; a change of size must repay itself within {self.horizon_s:g} s.",
            held,
            "Takes GPUs from those who come later; guaranteed GPUs are never taken.",
        )

    def order(self, job: JobState, now: float) -> float:
        """By submission; the pass itself finds who is next."""
        return 0.0

    def remember(self, job: JobState, now: float, event: str) -> Any:
        """Of paper the GPUs held since the last start, one entry per size: its plan follows.

        Of tandem what decides its place in line.
        """
        if self.version == "tandem":
            return wait_of(job, self.weights())
        if event == "start":
            return (job.held,)
        if event == "resize":
            return (*job.memory, job.held)
        return job.memory if event == "migrate" else ()

    def plan(self, view: ClusterView) -> Draft:
        """Decide one round, or one event."""
        if self.version == "paper":
            mixing = self.types == "mixed"
            return easyscale_paper.plan_round(view, Quirks.of(self.quirks), mixing=mixing)
        return Pass(view, self.weights()).run()

    def give_way(self, view: ClusterView, pool: int, count: int) -> Plan:
        """To an online service: last in line first (as paper: as all policies do)."""
        order = None
        if self.version == "tandem":
            order = [job for *_, job in reversed(Pass(view, self.weights()).running_line())]
            order += [job for job in view.running if job.elastic is None]
        return give_way(view, pool, count, order)

    def weights(self) -> Weights:
        """The parameters of the pass."""
        return Weights(
            prior_s=self.prior_s,
            horizon_s=self.horizon_s,
            thrift=self.thrift,
            margin=self.margin,
            aging=self.aging,
            patience=self.patience,
            reserve=self.reserve,
            estimates=self.estimates != "none",
            preferred=self.types == "preferred",
        )
