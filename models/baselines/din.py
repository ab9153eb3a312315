"""DIN: every event is weighted by a small network that looks at it and at the candidate together.

Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (KDD 2018), eq. 3 and
the activation unit of its figure 2. The unit reads event, candidate and their product; the
difference that public code adds is a linear map of the first two and changes nothing. Weights are
not normalised over the history (no softmax), as the paper argues: their sum says how strong an
interest is. ``recent``: look at the newest events only, as the paper of LONGER does in its
"DIN (recent 50)".

Leaves out: Dice, an activation with batch statistics, which would make one sample's logit depend on
its neighbours (GELU here), and mini-batch aware regularisation, which belongs to an optimizer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.baselines.contract import draw_parameters
from models.baselines.pooled import Pooled, Run, of_each_run
from models.config import LongerConfig
from models.errors import ModelError
from models.longer.execution import Execution
from models.longer.flops import NOTHING, Flops


class Din(Pooled):
    """Target attention by an MLP of one hidden layer, ``hidden`` wide (36 in the paper).

    ``recent``: the newest events that are seen, all up to ``max_length`` if None. Raises ModelError
    for fewer than one.
    """

    def __init__(
        self,
        config: LongerConfig,
        *,
        recent: int | None = None,
        hidden: int = 36,
        execution: Execution | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("recent", recent), ("hidden", hidden)):
            if value is not None and value < 1:
                raise ModelError("is no size", where=name, value=value, expected="1 or more")
        if recent is not None:
            config = replace(config, max_length=min(recent, config.max_length))
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            super().__init__(config, execution)
            self.unit = nn.Linear(3 * config.d, hidden)
            self.weight = nn.Linear(hidden, 1)
        draw_parameters(self, seed)

    def pool(self, tokens: Tensor, candidate: Tensor, runs: list[Run]) -> Tensor:
        """Return the scaled weighted sums (B, d) of tokens (T, d)."""
        counts = [run.samples for run in runs]
        beside = torch.cat(
            [
                rows.unsqueeze(1).expand(-1, run.length, -1).reshape(-1, rows.shape[1])
                for run, rows in zip(runs, torch.split(candidate, counts), strict=True)
            ]
        )
        hidden = F.gelu(self.unit(torch.cat([tokens, beside, tokens * beside], dim=1)))
        weights = self.weight(hidden)  # (T, 1)
        sums = [
            (weight.transpose(1, 2) @ rows).squeeze(1)
            for weight, rows in zip(
                of_each_run(weights, runs), of_each_run(tokens, runs), strict=True
            )
        ]
        return torch.cat(sums) / math.sqrt(self.config.max_length)

    def pool_flops(self, length: int) -> Flops:
        """``cross_dense``: the activation unit; ``cross_attention``: the weighted sum."""
        d, hidden = self.config.d, self.unit.out_features
        weighted = 2 * length * d
        return replace(
            NOTHING,
            cross_dense=2 * length * (3 * d * hidden + hidden),
            cross_attention=weighted,
            cross_visible=weighted,
        )
