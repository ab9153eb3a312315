"""The plain Transformer: all tokens, causal, nothing merged and nothing left out.

It is LONGER with K = 1, no InnerTrans and every token a query, exactly: the queries of the cross
layer are then its keys, and its lower-right causal mask is the ordinary causal one, so cross layer
and self-causal layers are ``1 + self_layers`` like pre-norm blocks of width ``d`` over [history;
globals]. This is the row "no merge" of Table 2 in the paper (arXiv 2505.04421). So it is built as
that, and the cache, the FLOPs and every switch of LONGER serve it too.
"""

from __future__ import annotations

from models.baselines.contract import Baseline, unmerged
from models.config import LongerConfig
from models.longer.execution import Execution
from models.longer.flops import Flops, sample_flops
from models.longer.network import Longer


class Transformer(Longer, Baseline):
    """A causal pre-norm Transformer over the whole history, judged as LONGER is."""

    def __init__(
        self, config: LongerConfig, *, execution: Execution | None = None, seed: int = 0
    ) -> None:
        super().__init__(unmerged(config), execution=execution, seed=seed)

    def sample_flops(self, length: int, *, executed: bool = False) -> Flops:
        """Return LONGER's count for this configuration.

        ``executed``: with the last layer pruned, if this network's switches prune it.
        """
        whole = not executed or self.execution.whole_last_layer
        return sample_flops(self.config, length, whole_last_layer=whole)
