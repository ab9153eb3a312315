"""Two-stage retrieval in the manner of TWIN: find the relevant events, then attend to them alone.

Source: Chang et al., "TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR
Prediction at Kuaishou" (KDD 2023). Its point is that both stages use one relevance: the scaled
product of the candidate's query and an event's key, from the same parameters. The events of highest
score are kept (the mean over heads decides, a choice of ours), and multi-head target attention runs
over them with the scores they were found by.

Leaves out: the split of behaviour features into item properties, projected beforehand and stored,
and user-item cross features, reduced to one bias each. That makes the first stage cheap to serve
and says the same in other parameters; here action and age are part of the token and go through the
key. Retrieval by hashing or by category (ETA, SIM) is another method.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.baselines.contract import draw_parameters
from models.baselines.pooled import Pooled, Run, of_each_run
from models.config import LongerConfig
from models.errors import ModelError
from models.longer.attention import take_rows
from models.longer.execution import Execution
from models.longer.flops import NOTHING, Flops


class Twin(Pooled):
    """Attention of the candidate to the ``retrieved`` most relevant events.

    By default as many as LONGER has queries (``config.queries``). Raises ModelError for fewer than
    one.
    """

    def __init__(
        self,
        config: LongerConfig,
        *,
        retrieved: int | None = None,
        execution: Execution | None = None,
        seed: int = 0,
    ) -> None:
        count = config.queries if retrieved is None else retrieved
        if count < 1:
            raise ModelError("is no size", where="retrieved", value=retrieved, expected="1 or more")
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            super().__init__(config, execution)
            self.retrieved = count
            self.query = nn.Linear(config.d, config.d)
            self.key = nn.Linear(config.d, config.d)
            self.value = nn.Linear(config.d, config.d)
            self.out = nn.Linear(config.d, config.d)
        draw_parameters(self, seed)

    def pool(self, tokens: Tensor, candidate: Tensor, runs: list[Run]) -> Tensor:
        """Return what the candidates (B, d) found in the tokens (T, d)."""
        heads = self.config.heads
        q = self.query(candidate).unflatten(1, (heads, -1))
        k = self.key(tokens).unflatten(1, (heads, -1))
        q = q / q.shape[-1] ** 0.5
        scores, kept = [], []
        first = 0
        for run, queries, keys in zip(
            runs, torch.split(q, [run.samples for run in runs]), of_each_run(k, runs), strict=True
        ):
            scores.append(torch.einsum("bhe,bshe->bsh", queries, keys).flatten(0, 1))
            kept.append(first + self._found(scores[-1].detach().view(*keys.shape[:3]), run))
            first += run.samples * run.length
        index = torch.cat(kept)
        short = [Run(run.samples, min(run.length, self.retrieved)) for run in runs]
        relevance = take_rows(torch.cat(scores), index)  # (R, heads)
        values = self.value(take_rows(tokens, index)).unflatten(1, (heads, -1))
        wide = torch.promote_types(relevance.dtype, torch.float32)
        mixed = [
            torch.einsum("bsh,bshe->bhe", torch.softmax(s, dim=1, dtype=wide).to(v.dtype), v)
            for s, v in zip(of_each_run(relevance, short), of_each_run(values, short), strict=True)
        ]
        found: Tensor = self.out(torch.cat(mixed).flatten(1))
        return found

    def _found(self, scores: Tensor, run: Run) -> Tensor:
        """Return the rows, counted from the run's first, of the events kept, oldest first.

        ``scores`` (b, S, heads). Of equal scores the newer event is kept.
        """
        count = min(run.length, self.retrieved)
        newest_first = scores.mean(2).flip(1)
        best = newest_first.sort(dim=1, descending=True, stable=True).indices[:, :count]
        at = (run.length - 1 - best).sort(dim=1).values
        base = torch.arange(run.samples, device=at.device).unsqueeze(1) * run.length
        return (base + at).flatten()

    def pool_flops(self, length: int) -> Flops:
        """``cross_dense``: projections; ``cross_attention``: scores of all, values of the kept."""
        d, kept = self.config.d, min(length, self.retrieved)
        pairs = 2 * d * (length + kept)
        return replace(
            NOTHING,
            cross_dense=2 * d * d * (length + kept + 2),
            cross_attention=pairs,
            cross_visible=pairs,
        )
