"""What every baseline is, so that one trainer takes any of them in LONGER's place.

Built as ``Class(config, execution=..., seed=...)`` from the ``LongerConfig`` of the network it is
compared with; some take one more option. A baseline reads the widths, ``max_length``, ``positions``
and ``head_hidden`` of it and works on behaviour tokens of width ``d`` themselves: nothing is merged
(``unmerged``). Features of events and globals are LONGER's own modules, so two networks of one
configuration differ only in what they do with the history.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.batch import Batch, Lookup
from models.config import LongerConfig
from models.longer.execution import Execution
from models.longer.flops import NOTHING, Flops


def unmerged(config: LongerConfig) -> LongerConfig:
    """Return the configuration with K = 1 and every token a query.

    Raises ModelError if ``heads`` does not divide ``d``.
    """
    return replace(config, merge=1, inner_layers=0, queries=config.max_length, sampling="recent")


class Baseline(nn.Module):
    """A network over a batch. ``config`` is what it was built as: unmerged, perhaps shortened."""

    config: LongerConfig
    execution: Execution

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """Return the logits (B,) of a batch. Raises ModelError for a batch that is none.

        Histories longer than ``config.max_length`` are cut to their newest events; empty histories
        are fine; an empty batch gives no logits.
        """
        raise NotImplementedError

    def sample_flops(self, length: int, *, executed: bool = False) -> Flops:
        """Return the operations of one forward pass over a history of ``length`` events.

        Counted as in ``models.longer.flops``. ``executed``: count what is computed here, which is
        less where rows that nobody reads or pairs that nobody sees are left out.
        """
        raise NotImplementedError

    def flops(self, lengths: Iterable[int], *, executed: bool = False) -> Flops:
        """Return the operations of a batch from its true lengths."""
        total = NOTHING
        for length, count in sorted(Counter(int(n) for n in lengths).items()):
            total += self.sample_flops(length, executed=executed) * count
        return total


@torch.no_grad()
def draw_parameters(network: nn.Module, seed: int) -> None:
    """Draw all parameters as LONGER does: weights +-1/sqrt(inputs), tables N(0, 0.1^2)."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for name, parameter in network.named_parameters():
        if name == "globals.cls":  # the one parameter that is no module's weight or bias
            parameter.normal_(0, 0.1, generator=generator)
