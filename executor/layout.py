"""What a device is told of its generation, and what it tells of a step: values, without torch.

Leaves out: the device itself (``executor.replica``).
"""

from __future__ import annotations

from dataclasses import dataclass

from executor.shards import ShardMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which ranks each device of a generation holds, in rank order, and which device this is.

    ``shards``: who owns which rows of the tables; None: every device has all.
    """

    blocks: tuple[range, ...]
    index: int
    shards: ShardMap | None = None

    @property
    def own(self) -> range:
        """The ranks of this device."""
        return self.blocks[self.index]

    @property
    def copied(self) -> range:
        """The ranks whose contexts this device keeps a copy of: those of the device before it."""
        return self.blocks[self.index - 1] if len(self.blocks) > 1 else range(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A committed step: its number (counted from 1), mean loss, losses by rank, bytes sent."""

    step: int
    loss: float
    losses: tuple[float, ...]
    stop: bool
    sent_bytes: int
