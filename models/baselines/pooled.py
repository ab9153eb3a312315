"""Baselines that make one vector of a history; and the simplest of them, sum pooling.

Source: Covington et al., "Deep Neural Networks for YouTube Recommendations" (RecSys 2016): the
history is pooled to a fixed width and an MLP judges it beside the other features. A subclass says
how it pools; the head is the same: candidate, pooled history, user and cross features
concatenated, ``head_hidden`` layers, a logit. There are no CLS tokens, since no row would read one.

Pooled sums are divided by the square root of the longest history. The next linear map could undo
it, so no function is lost; it only keeps the first steps of training sane at any length.

Shapes: T events, B samples, b samples of equal length S, d width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.baselines.contract import draw_parameters, unmerged
from models.baselines.embedded import Embedded
from models.config import LongerConfig
from models.longer.execution import Execution
from models.longer.flops import NOTHING, Flops, sample_flops
from models.longer.layout import Layout


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring samples of equal length: ``samples`` of ``length`` events each."""

    samples: int
    length: int


class Head(nn.Module):
    """Rows (B, R, d), concatenated, to logits (B,)."""

    def __init__(self, config: LongerConfig, rows: int) -> None:
        super().__init__()
        widths = [rows * config.d, *config.head_hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, rows: Tensor) -> Tensor:
        """Judge rows."""
        x = rows.flatten(1)
        *hidden, last = self.layers
        for layer in hidden:
            x = F.gelu(layer(x))
        logits: Tensor = last(x)[:, 0]
        return logits


class Pooled(Embedded):
    """Tokens as LONGER's, pooled by ``pool``, judged by the head."""

    def __init__(self, config: LongerConfig, execution: Execution | None) -> None:
        super().__init__(replace(unmerged(config), num_cls=0), execution)
        self.head = Head(self.config, rows=3 + self.config.num_cross)

    def pool(self, tokens: Tensor, candidate: Tensor, runs: list[Run]) -> Tensor:
        """Return pooled histories (B, d).

        ``tokens`` (T, d), sample after sample, each oldest first, samples in the order of ``runs``;
        ``candidate`` (B, d) in the same order.
        """
        raise NotImplementedError

    def pool_flops(self, length: int) -> Flops:
        """Return the operations of pooling one history; ``cross_*`` are its parts."""
        raise NotImplementedError

    def judge(self, tokens: Tensor, globals_: Tensor, layout: Layout) -> Tensor:
        """Return logits (B,) of globals and pooled tokens."""
        m = self.config.num_globals
        runs = [Run(part.samples, part.keys - m) for part in layout.cross.parts]
        pooled = self.execution.run("cross", self.pool, tokens, globals_[:, -1], runs)
        rows = torch.cat([globals_, pooled.unsqueeze(1)], dim=1)
        return self.execution.run("head", self.head, rows)

    def sample_flops(self, length: int, *, executed: bool = False) -> Flops:
        """Return the operations of one sample; all of them are executed."""
        del executed
        length = min(length, self.config.max_length)
        features = sample_flops(self.config, length).features
        widths = [(3 + self.config.num_cross) * self.config.d, *self.config.head_hidden, 1]
        head = sum(2 * a * b for a, b in pairwise(widths))
        return replace(self.pool_flops(length), features=features, head=head)


def of_each_run(rows: Tensor, runs: list[Run]) -> Iterator[Tensor]:
    """Yield the rows (T, ...) of each run as a view (b, S, ...)."""
    parts = torch.split(rows, [run.samples * run.length for run in runs])
    for run, part in zip(runs, parts, strict=True):
        yield part.view(run.samples, run.length, *rows.shape[1:])


class SumPooling(Pooled):
    """The sum of the tokens; the candidate plays no part in it."""

    def __init__(
        self, config: LongerConfig, *, execution: Execution | None = None, seed: int = 0
    ) -> None:
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            super().__init__(config, execution)
        draw_parameters(self, seed)

    def pool(self, tokens: Tensor, candidate: Tensor, runs: list[Run]) -> Tensor:
        """Return the scaled sums (B, d) of tokens (T, d)."""
        del candidate
        sums = torch.cat([rows.sum(1) for rows in of_each_run(tokens, runs)])
        return sums / math.sqrt(self.config.max_length)

    def pool_flops(self, length: int) -> Flops:
        """Additions alone are not counted."""
        del length
        return NOTHING
