"""The world of EasyScale's artifact: a job is as fast as its scheduler's plan says.

The artifact's simulator does not seat logical workers. It takes the step time from the plan that
the scheduler chose, with the plan's defects: threads of types that the job does not hold slow it
down, and the worst plan of a placement is the one carried out. So that its published numbers can be
met, this model of rates asks for the plan as ``easyscale:version=paper`` works it out. Nothing else
in Tandem uses it: in every other world the worker map decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from policies.inter.easyscale_paper import Class, Jobs, plan_after
from policies.intra.artifact import Quirks, step_seconds
from policies.model import Model
from policies.rates import reference_s
from policies.state import JobState
from traces import Allocation, ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactModel(Model):
    """Rates of the artifact's simulator. For runs of ``easyscale:version=paper`` alone."""

    quirks: Quirks = field(default_factory=Quirks)
    types: Literal["mixed", "preferred"] = "mixed"

    def elastic_rate(
        self, job: JobState, allocation: Allocation, spec: ClusterSpec, at_s: float = 0.0
    ) -> float:
        """Progress per second by the plan that leads to this allocation."""
        elastic = job.elastic
        assert elastic is not None
        assert self.profile is not None
        assert job.kind is not None
        jobs = Class.of(job.kind, mixing=self.types == "mixed")
        held = dict.fromkeys(spec.gpu_types, 0) | dict(allocation.by_type(spec))
        known = Jobs(jobs, tuple(spec.gpus_by_type().values()), self.quirks)
        plan = plan_after(known, (*job.memory, tuple(held.values())))
        return reference_s(self.profile, elastic) / step_seconds(jobs.seconds, plan)
