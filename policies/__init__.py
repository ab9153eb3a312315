"""Everything decided: the contract, the driver, and three kinds of policy.

``inter/``: which jobs run, on how many GPUs of which type. ``placement/``: on which GPUs.
``intra/``: how a job's logical workers sit on its GPUs.
"""

from policies.clock import Clock
from policies.contract import Backend, Listener, PlacementPolicy, Policy, Reason, Stint
from policies.driver import Driver
from policies.errors import PlanError, StarvationError
from policies.plan import Draft, Plan
from policies.registry import make_placement, make_policy
from policies.state import JobState
from policies.view import ClusterView

__all__ = [
    "Backend",
    "Clock",
    "ClusterView",
    "Draft",
    "Driver",
    "JobState",
    "Listener",
    "PlacementPolicy",
    "Plan",
    "PlanError",
    "Policy",
    "Reason",
    "StarvationError",
    "Stint",
    "make_placement",
    "make_policy",
]
