"""Another placement, held to an allowance of each GPU type.

A policy that divides the cluster among others (``policies.inter.quota``) shows each of them a part
of the free devices by number, not by name: an allowance is so many thousandths of GPUs per pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from policies.contract import PlacementPolicy
from policies.free import FreeGpus
from traces import Allocation, Request


@dataclass(frozen=True, kw_only=True)
class Within(PlacementPolicy):
    """Another placement, held to an allowance: free thousandths by pool less ``hidden_milli``."""

    inner: PlacementPolicy
    hidden_milli: tuple[int, ...]
    name: ClassVar[str] = "within"

    def place(self, request: Request, free: FreeGpus) -> Allocation | None:
        """Place on the types whose allowance suffices."""
        need = request.num_gpus * request.gpu_milli
        if not need:
            return self.inner.place(request, free)
        candidates = list(free.candidates(request))
        allowed = [
            pool.gpu_type
            for pool in candidates
            if pool.free * 1000 + pool.share_milli - self.hidden_milli[pool.index] >= need
            and (request.gpu_milli != 1000 or pool.free >= request.num_gpus)
        ]
        if not allowed:
            return None
        if len(allowed) == len(candidates):
            return self.inner.place(request, free)
        return self.inner.place(replace(request, gpu_types=tuple(allowed)), free)


@dataclass(frozen=True, kw_only=True)
class WithinByCount(Within):
    """The same around a placement by count."""

    by_count: ClassVar[bool] = True
