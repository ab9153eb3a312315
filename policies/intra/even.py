"""Even: the same number of logical workers on every GPU, whatever its speed.

What a training framework does that divides a batch by the number of processes. Kept as the baseline
that the companion is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from policies.contract import IntraJobPolicy
from traces import Elastic, Profile, UsageError, WorkerMap
from traces.workermap import Gpu


@dataclass(frozen=True, kw_only=True)
class Even(IntraJobPolicy):
    """As many logical workers on one GPU as on another; the first hold one more. No proposals."""

    name: ClassVar[str] = "even"

    def says(self) -> tuple[str, ...]:
        """What the name leaves open."""
        return (
            "GPU types are not looked at: on mixed types the slowest GPU sets the pace.",
            "GPUs beyond the number of logical workers, or beyond the most the job may use, are"
            " left out of the map, the last of the inventory first.",
            "It proposes nothing.",
        )

    def assign(self, elastic: Elastic, gpus: Sequence[Gpu], profile: Profile) -> WorkerMap:
        """Divide the workers; raises :class:`UsageError` without a GPU."""
        used = sorted(gpus)[: min(elastic.num_workers, elastic.max_gpus)]
        if not used:
            raise UsageError("no plan: the job is given no GPU")
        share, more = divmod(elastic.num_workers, len(used))
        return WorkerMap(
            tuple((gpu.node, gpu.gpu) for gpu in used),
            tuple(share + (i < more) for i in range(len(used))),
        )
