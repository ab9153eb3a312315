"""What LONGER is compared with, under one interface and from the same input features.

Each is built from a ``LongerConfig`` and has ``forward(batch, lookup) -> logits (B,)`` and
``flops(lengths)``. Importing this package imports no torch; asking ``BASELINES`` for a class does.
"""

from models.baselines.registry import BASELINES, find_baseline

__all__ = ["BASELINES", "find_baseline"]
