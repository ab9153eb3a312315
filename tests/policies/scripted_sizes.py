"""A policy in a file: sizes go up and down with the time, for tests of runs that are replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies import ClusterView, Draft, Policy


@dataclass(frozen=True, kw_only=True)
class Sawtooth(Policy):
    """Each round every job wants another number of GPUs; who may mixes types."""

    name: ClassVar[str] = "sawtooth"
    resizes: ClassVar[bool] = True

    @property
    def interval_s(self) -> float:
        return 20.0

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        tooth = int(view.now // 20) % 3
        for job in sorted([*view.waiting, *view.running], key=lambda j: j.rank):
            elastic = job.elastic
            assert elastic is not None
            draft.resize(job, (1 + tooth, tooth if elastic.mixes_types else 0))
        return draft
