"""Placement on one node: shares of a GPU, CPU jobs, and gangs that must not span nodes.

The plain rule shared by the placements that do not have their own for these cases: the first
node in order that has the GPUs (or the share), the CPUs and the memory.
"""

from __future__ import annotations

from policies.free import FreeGpus
from traces import Allocation, Request


def place_on_one_node(request: Request, free: FreeGpus) -> Allocation | None:
    """TO BE WRITTEN by the author of the placements."""
    raise AssertionError(request, free)
