"""``check_intra``: the conformance suite for the author of an intra-job policy, in one line.

Jobs and GPUs are drawn from a seed and the policy is asked about each. What it must hold:

- ``ranks``: a worker map has exactly the job's logical workers, one or more on every GPU in it,
- ``devices``: its GPUs are among those held, none twice, no more than ``max_gpus``,
- ``types``: a job that may not mix GPU types sits on one, if it was given one,
- ``repeatable``: the same question has the same answer, and the order of the GPUs is nothing,
- ``proposals``: for free GPUs that there are, faster than now, none negative,
- ``small jobs``: one logical worker on one GPU sits there.

Left out: how good the plans are (``policies.intra.companion`` is held to exhaustive search).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from policies.check import FAULTS, Finding
from policies.contract import IntraJobPolicy
from policies.registry import make_intra
from traces import Elastic, Profile, WorkerMap
from traces.profile import ModelProfile
from traces.workermap import Gpu

_T = TypeVar("_T")
TYPES = ("v100", "p100", "t4")
QUESTIONS = 60
CHECKS = ("ranks", "devices", "types", "repeatable", "proposals", "small jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntraReport:
    """What ``check_intra`` found; true if nothing."""

    policy: str
    questions: int
    findings: tuple[Finding, ...] = ()

    def __bool__(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        failed = {finding.check for finding in self.findings}
        lines = [f"{self.policy}: {self.questions} questions"]
        lines += [f"  {'FAILED' if check in failed else 'ok':>6}  {check}" for check in CHECKS]
        lines += [f"{finding.check}: {finding.fault}" for finding in self.findings]
        return "\n".join(lines)


def check_intra(policy: IntraJobPolicy | str, *, seed: int = 0) -> IntraReport:
    """Hold an intra-job policy to the contract; the first fault of each check is reported.

    Raises :class:`traces.UsageError` for a name that does not exist.
    """
    subject = make_intra(policy) if isinstance(policy, str) else policy
    examination = _Examination(subject)
    rng = np.random.default_rng(seed)
    for number in range(QUESTIONS):
        examination.ask(rng, small=number < len(TYPES), number=number)
    return IntraReport(
        policy=subject.name or type(subject).__name__,
        questions=QUESTIONS,
        findings=tuple(examination.findings.values()),
    )


@dataclass(slots=True)
class _Examination:
    policy: IntraJobPolicy
    findings: dict[str, Finding] = field(default_factory=dict)

    def report(self, check: str, fault: str) -> None:
        """Keep the first fault of each check."""
        self.findings.setdefault(check, Finding(check=check, fault=fault))

    def ask(self, rng: np.random.Generator, *, small: bool, number: int) -> None:
        """Draw a job and its GPUs and ask everything about them."""
        profile = _profile(rng)
        if small:
            job = _job(1, 1, mixes=True)
            gpus = [Gpu(0, 0, TYPES[number])]
        else:
            mixes = bool(rng.integers(2))
            job = _job(int(rng.integers(1, 33)), int(rng.integers(1, 17)), mixes=mixes)
            gpus = _gpus(rng, mixes=mixes)
        workers: object = self._answer("ranks", lambda: self.policy.assign(job, gpus, profile))
        if workers is None:
            return
        if not isinstance(workers, WorkerMap):
            self.report("ranks", f"assign() returned {workers!r}; expected a WorkerMap")
            return
        self._map(job, gpus, workers)
        if small and workers != WorkerMap(((0, 0),), (1,)):
            self.report("small jobs", f"one logical worker on one GPU sits on {workers}")
        again = self._answer("repeatable", lambda: self.policy.assign(job, gpus, profile))
        turned = self._answer("repeatable", lambda: self.policy.assign(job, gpus[::-1], profile))
        if not workers == again == turned:
            self.report("repeatable", f"{job} on {gpus}: {workers}, then {again}, then {turned}")
        self._proposals(job, gpus, profile)

    def _map(self, job: Elastic, gpus: list[Gpu], workers: WorkerMap) -> None:
        counts = workers.counts
        if len(counts) != len(workers.gpus) or sum(counts) != job.num_workers or min(counts) < 1:
            self.report("ranks", f"{job.num_workers} logical workers, but the map is {workers}")
        held = {(gpu.node, gpu.gpu): gpu.gpu_type for gpu in gpus}
        strange = [gpu for gpu in workers.gpus if gpu not in held]
        if strange or len(set(workers.gpus)) < len(workers.gpus):
            self.report("devices", f"{workers}: held are {sorted(held)}")
        elif workers.num_gpus > job.max_gpus:
            self.report("devices", f"{workers}: at most {job.max_gpus} GPUs may be used")
        elif not job.mixes_types and len({held[gpu] for gpu in workers.gpus}) > 1:
            self.report("types", f"{workers} mixes {sorted({held[gpu] for gpu in workers.gpus})}")

    def _proposals(self, job: Elastic, gpus: list[Gpu], profile: Profile) -> None:
        held = {t: sum(gpu.gpu_type == t for gpu in gpus) for t in TYPES}
        free = {"v100": 3, "t4": 2}
        found = self._answer("proposals", lambda: self.policy.proposals(job, held, free, profile))
        for proposal in found or ():
            if not 1 <= proposal.more <= free.get(proposal.gpu_type, 0):
                self.report("proposals", f"{proposal}: free are {free}")
            elif proposal.speedup <= 1.0 or proposal.gain <= 0.0:
                self.report("proposals", f"{proposal} is no faster")

    def _answer(self, check: str, ask: Callable[[], _T]) -> _T | None:
        try:
            return ask()
        except FAULTS as error:  # the author's own code may raise anything
            self.report(check, f"it raised {type(error).__name__}: {error}")
            return None


def _job(workers: int, most: int, *, mixes: bool) -> Elastic:
    return Elastic(
        num_workers=workers, max_gpus=most, mixes_types=mixes, model="model", batch_size=8
    )


def _gpus(rng: np.random.Generator, *, mixes: bool) -> list[Gpu]:
    first = int(rng.integers(len(TYPES)))
    return [
        Gpu(node, gpu, TYPES[(first + node * mixes) % len(TYPES)])
        for node in range(3)
        for gpu in range(int(rng.integers(1, 5)))
    ]


def _profile(rng: np.random.Generator) -> Profile:
    seconds = {t: float(s) for t, s in zip(TYPES, rng.uniform(0.05, 2.0, 3), strict=True)}
    switch = {t: float(rng.choice([0.0, 0.01])) for t in TYPES}
    model = ModelProfile(microbatch_s={8: seconds}, switch_s=switch, update_s=switch)
    return Profile(models={"model": model}, origin="analytic")
