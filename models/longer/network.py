"""LONGER, the network: a batch of jagged histories and their candidates to one logit each.

Source: Chai et al., "LONGER: Scaling Up Long Sequence Modeling in Industrial Recommenders" (arXiv
2505.04421). Behaviours become tokens (``features``), tokens are merged (``merge``), one
cross-causal layer takes the sampled merged tokens and the globals as queries over all of them, N
self-causal layers follow, and a head reads the rows of the candidate, the CLS tokens and the user.
The paper leaves the head's input unsaid beyond "concatenate, MLP"; ``docs/models/longer.md`` lists
what is our choice. The mask is read in chronological order: oldest event first, globals after the
events, candidate last of all, lower-right causal.

Leaves out: the tables behind the ids (a ``Lookup``, ``models.batch``), optimizers, data.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name torch gives it

from models.batch import Batch, Lookup
from models.config import LongerConfig
from models.longer.attention import Block, LayerNorm, take_rows
from models.longer.check import check_batch, check_vectors
from models.longer.execution import Execution
from models.longer.features import EventFeatures, GlobalTokens
from models.longer.layout import Layout, plan
from models.longer.merge import TokenMerge

_INNER_SCALE = 0.1
"""Of the weights through which InnerTrans adds to a token, before training."""


class Head(nn.Module):
    """The rows of the globals after the last layer, to a logit."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        self.free = 1 + config.num_cls
        widths = [(self.free + 1) * config.width, *config.head_hidden, 1]
        self.norm = LayerNorm(config.width)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, globals_: Tensor) -> Tensor:
        """Return logits (B,) of global rows (B, m, D); the cross features' rows are not read."""
        return self.judge(self.norm(globals_[:, -1]), self.norm(globals_[:, : self.free]))

    def judge(self, candidate: Tensor, free: Tensor) -> Tensor:
        """Return logits (B,) of normalised candidate rows (B, D), user and CLS rows (B, 1+c, D)."""
        x = torch.cat([candidate, free[:, 1:].flatten(1), free[:, 0]], dim=1)
        *hidden, last = self.layers
        for layer in hidden:
            x = F.gelu(layer(x))
        logits: Tensor = last(x)[:, 0]
        return logits


class Longer(nn.Module):
    """The network of one ``LongerConfig``; its first parameters are a pure function of ``seed``."""

    def __init__(
        self, config: LongerConfig, *, execution: Execution | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.execution = Execution() if execution is None else execution
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are used up
            self.features = EventFeatures(config)
            self.globals = GlobalTokens(config)
            self.merge = TokenMerge(config)
            if config.sampling == "learnable":
                self.learnable = nn.Parameter(torch.zeros(config.queries, config.width))
            self.cross = self._block()
            self.layers = nn.ModuleList(self._block() for _ in range(config.self_layers))
            self.head = Head(config)
        self.reset(seed)

    def _block(self) -> Block:
        config = self.config
        return Block(
            config.width,
            heads=config.heads,
            ffn_factor=config.ffn_factor,
            dropout=config.dropout,
        )

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw all parameters anew.

        Weights uniform in +-sqrt(3 / inputs), so that rows keep their size from layer to layer, and
        biases 0; actions and ages N(0, 1), because what is small beside the items' vectors is
        learnt late; positions and free tokens N(0, 0.1^2). What is merged begins apart
        (``_begin_apart``).
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(3 / module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                deviation = 0.1 if module is self.features.position else 1.0
                module.weight.normal_(0, deviation, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.globals.cls.normal_(0, 0.1, generator=generator)
        if self.config.sampling == "learnable":
            self.learnable.normal_(0, 0.1, generator=generator)
        self._begin_apart()

    def _begin_apart(self) -> None:
        """Let queries, keys and values see each slot of a merged token by itself, at first.

        The projections of the layers after the merge begin block-diagonal, one block of d x d per
        slot, and InnerTrans begins near the identity. A head then has the events of one slot before
        it, as in a network that merges nothing, and not sums over K events of which it would have
        to learn at once which to match and which to read. On the generator that takes most of the
        search away (docs/models/learnability.md). Nothing is fixed: training fills the rest.
        """
        slot = torch.arange(self.config.width) // self.config.d
        same = (slot[:, None] == slot[None, :]).to(self.dtype) * math.sqrt(self.config.merge)
        for block in (self.cross, *self.layers):
            assert isinstance(block, Block)
            for linear in (block.query, block.key, block.value):
                linear.weight.mul_(same)
        for block in self.merge.blocks:
            assert isinstance(block, Block)
            for linear in (block.out, block.down):
                linear.weight.mul_(_INNER_SCALE)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters."""
        return self.globals.cls.dtype

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """Return the logits (B,) of a batch. Raises ModelError for a batch that is none.

        A history longer than ``max_length`` is cut to its newest events; an empty one is fine: the
        candidate then sees the globals alone. An empty batch gives no logits.
        """
        check_batch(batch, self.config)
        if len(batch) == 0:
            return torch.zeros(0, dtype=self.dtype, device=batch.label.device)
        layout = plan(batch.offsets, self.config, device=batch.item.device)
        tokens, globals_ = self.embed(batch, layout, lookup)
        last = self.trunk(tokens, globals_, layout)
        logits = self.execution.run("head", self.head, last)
        return take_rows(logits, layout.places)

    def embed(self, batch: Batch, layout: Layout, lookup: Lookup) -> tuple[Tensor, Tensor]:
        """Return merged tokens (S_total, D) and globals (B, m, D), both in the layout's order.

        Each table is asked once: the candidate's item and category come with those of the events.
        """
        events, order, count = layout.events, layout.order, len(layout.events)
        item = self.vectors(
            lookup, "item", torch.cat([batch.item[events], batch.candidate_item[order]])
        )
        category = self.vectors(
            lookup, "category", torch.cat([batch.category[events], batch.candidate_category[order]])
        )
        user = self.vectors(lookup, "user", batch.user[order])
        cross = self.vectors(lookup, "cross", batch.cross[order])
        tokens = self.merged(
            item[:count], category[:count], batch.action[events], batch.age_s[events], layout
        )
        globals_ = self.execution.run(
            "features", self.globals, user, cross, item[count:], category[count:]
        )
        return tokens, globals_

    def vectors(self, lookup: Lookup, table: str, ids: Tensor) -> Tensor:
        """Return the vectors (..., dim) of ids in the network's precision; ModelError if not."""
        dim = int(getattr(self.config, f"{table}_dim"))
        vectors = lookup(table, ids) if ids.numel() else ids.new_zeros((*ids.shape, dim)).float()
        check_vectors(table, vectors, (*ids.shape, dim))
        return vectors.to(self.dtype)

    def merged(
        self, item: Tensor, category: Tensor, action: Tensor, age_s: Tensor, layout: Layout
    ) -> Tensor:
        """Return merged tokens (S_total, D) of events in the layout's order."""
        tokens = self.execution.run(
            "features", self.features, item, category, action, age_s, layout.position
        )
        return self.execution.run("inner", self.merge, tokens, layout)

    def trunk(self, tokens: Tensor, globals_: Tensor, layout: Layout) -> Tensor:
        """Return the globals (B, m, D) after all layers."""
        samples, m, width = globals_.shape
        flat = globals_.reshape(samples * m, width)
        keys = take_rows(torch.cat([tokens, flat]), layout.keys)
        queries = take_rows(torch.cat([self.chosen(tokens, layout), flat]), layout.queries)
        rows = self.execution.run("cross", self.cross, queries, keys, layout.cross)
        *early, last = [*self.layers] or [None]
        for layer in early:
            rows = self.execution.run("self", layer, rows, rows, layout.self_)
        if last is not None and self.execution.whole_last_layer:
            rows = self.execution.run("self", last, rows, rows, layout.self_)
        heads = take_rows(rows, layout.heads)
        if last is not None and not self.execution.whole_last_layer:
            heads = self.execution.run("self", last, heads, rows, layout.last)
        return heads.view(samples, m, width)

    def chosen(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return the query tokens beside the globals: sampled merged tokens, or learnable ones."""
        if self.config.sampling == "learnable":
            # Shared by all samples; an embedding's gradient is summed in a fixed order.
            return F.embedding(layout.chosen, self.learnable)
        return take_rows(tokens, layout.chosen)


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean binary cross-entropy, in float32 at least, of logits and labels (B,)."""
    logits = logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits
    return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))
