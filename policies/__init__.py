"""Everything decided: the contract, the driver, and three kinds of policy.

``inter/``: which jobs run, on how many GPUs of which type. ``placement/``: on which GPUs.
``intra/``: how a job's logical workers sit on its GPUs.

Exports are lazy (:mod:`traces.lazy`): name each twice, for the type checker and for the table.
"""

from typing import TYPE_CHECKING

from traces.lazy import lazy_exports

if TYPE_CHECKING:
    from policies.check import check_policy
    from policies.clock import Clock
    from policies.contract import (
        Backend,
        IntraJobPolicy,
        Listener,
        PlacementPolicy,
        Policy,
        Proposal,
        Reason,
        Stint,
    )
    from policies.driver import Driver
    from policies.errors import PlanError, PolicyError, StarvationError
    from policies.intra.check import check_intra
    from policies.plan import Draft, Plan
    from policies.registry import make_intra, make_placement, make_policy
    from policies.state import JobState
    from policies.view import ClusterView
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "Backend": "policies.contract",
            "Clock": "policies.clock",
            "ClusterView": "policies.view",
            "Draft": "policies.plan",
            "Driver": "policies.driver",
            "IntraJobPolicy": "policies.contract",
            "JobState": "policies.state",
            "Listener": "policies.contract",
            "PlacementPolicy": "policies.contract",
            "Plan": "policies.plan",
            "PlanError": "policies.errors",
            "PolicyError": "policies.errors",
            "Policy": "policies.contract",
            "Proposal": "policies.contract",
            "Reason": "policies.contract",
            "StarvationError": "policies.errors",
            "Stint": "policies.contract",
            "check_intra": "policies.intra.check",
            "check_policy": "policies.check",
            "make_intra": "policies.registry",
            "make_placement": "policies.registry",
            "make_policy": "policies.registry",
        },
    )

__all__ = [
    "Backend",
    "Clock",
    "ClusterView",
    "Draft",
    "Driver",
    "IntraJobPolicy",
    "JobState",
    "Listener",
    "PlacementPolicy",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "Proposal",
    "Reason",
    "StarvationError",
    "Stint",
    "check_intra",
    "check_policy",
    "make_intra",
    "make_placement",
    "make_policy",
]
