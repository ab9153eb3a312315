"""A part of a view, as if it were the whole: some waiting jobs, some running ones, some room.

Nothing is copied but lists of heads: the queues are the view's own. Policies inside policies plan
on it (``inter/quota.py``), and questions of the kind "would it start if nobody else waited?" are
asked with it (``reasons.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.contract import PlacementPolicy, Policy
from policies.free import FreeGpus
from policies.queues import RunningJobs, Shape, WaitingJobs
from policies.state import JobState
from policies.view import ClusterView


class SubView(ClusterView):
    """A view of the same instant with fewer jobs or less room.

    ``shapes``: the queues of those who wait. ``running``: jobs in the order of the view's own.
    What is not given is the view's.
    """

    def __init__(
        self,
        view: ClusterView,
        *,
        policy: Policy | None = None,
        placement: PlacementPolicy | None = None,
        free: FreeGpus | None = None,
        shapes: Iterable[Shape] | None = None,
        running: Iterable[JobState] | None = None,
    ) -> None:
        # No super().__init__: that builds the indices of an empty cluster, these exist.
        self.now = view.now
        self.spec = view.spec
        self.policy = policy or view.policy
        self.placement = placement or view.placement
        self.free = free or view.free
        self.waiting = view.waiting if shapes is None else WaitingJobs.of(shapes)
        self.running = view.running if running is None else RunningJobs.of(running, view.running)
        self.finished = view.finished
        self.model = view.model
        self.elastic = view.elastic
        self.steady = view.steady
        self._shapes = view._shapes
        self._due = view._due
        self._by_types = view._by_types


def alone(job: JobState) -> Shape:
    """A queue in which only this waiting job stands."""
    shape = Shape(job.request, job.shape.group, job.shape.pools)
    shape.waiting.add(job.entry)
    return shape
