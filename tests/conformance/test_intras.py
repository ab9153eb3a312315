"""Every registered intra-job policy; and some broken on purpose, to be found out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from policies.contract import IntraJobPolicy, Proposal
from policies.intra.check import CHECKS, check_intra
from policies.intra.even import Even
from policies.registry import INTRAS
from traces import Elastic, Profile, WorkerMap
from traces.workermap import Gpu, GpuCounts


@pytest.mark.parametrize("policy", [*INTRAS, "companion:top=0,max_waste=1"])
def test_registered_intra_policies_conform(policy: str) -> None:
    report = check_intra(policy)
    assert report, str(report)


class LosesARank(Even):
    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        workers = super().assign(elastic, gpus, profile)
        return workers._replace(counts=(workers.counts[0] + 1, *workers.counts[1:]))


class TakesWhatItHasNot(Even):
    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        return WorkerMap(((99, 0),), (elastic.num_workers,))


class TakesTheFirst(Even):
    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        return WorkerMap(((gpus[0].node, gpus[0].gpu),), (elastic.num_workers,))


class Uses(Even):
    """All GPUs, whatever the most is."""

    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        used = sorted(gpus)[: elastic.num_workers]
        rest = elastic.num_workers - len(used)
        return WorkerMap(tuple((g.node, g.gpu) for g in used), (1 + rest, *(1 for _ in used[1:])))


@dataclass(frozen=True, kw_only=True)
class Counts(Even):
    """Remembers how often it was asked."""

    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        used = sorted(gpus)[next(_CALLS) % len(gpus)]
        return WorkerMap(((used.node, used.gpu),), (elastic.num_workers,))


_CALLS = itertools.count()


class WantsMoreThanThereIs(Even):
    def proposals(
        self, elastic: Elastic, held: GpuCounts, free: GpuCounts, profile: Profile
    ) -> Sequence[Proposal]:
        return [
            Proposal(
                gpu_type="v100",
                more=9,
                speedup=2.0,
                gain=0.1,
                step_s=1.0,
                gpus={},
                released={},
                waste_share=0.0,
            )
        ]


class Crashes(Even):
    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        raise KeyError("gpu")


@pytest.mark.parametrize(
    ("policy", "check", "words"),
    [
        (LosesARank(), "ranks", "logical workers, but the map is"),
        (LosesARank(), "small jobs", "one logical worker on one GPU sits on"),
        (TakesWhatItHasNot(), "devices", "held are"),
        (Uses(), "devices", "GPUs may be used"),
        (TakesTheFirst(), "repeatable", "then"),
        (Counts(), "repeatable", "then"),
        (WantsMoreThanThereIs(), "proposals", "free are"),
        (Crashes(), "ranks", "KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, IntraJobPolicy) else None,
)
def test_what_is_broken_is_found(policy: IntraJobPolicy, check: str, words: str) -> None:
    report = check_intra(policy)
    assert not report
    found = {finding.check: finding.fault for finding in report.findings}
    assert words in found[check]
    assert set(found) <= set(CHECKS)
    assert f"FAILED  {check}" in str(report)
