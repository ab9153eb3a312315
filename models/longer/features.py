"""What a token is made of: behaviour tokens, and the global tokens beside them.

Source: LONGER (arXiv 2505.04421). A behaviour is its item's embedding with the absolute time
difference to the request concatenated as side information, a learnable absolute position embedding
added, then an MLP. The paper gives neither widths nor bucketing. Here the concatenation is (item,
category, action, age), the age in logarithmic buckets, and the position is added to it, before the
MLP. Ages are measured from the request, never from a property of the candidate, so that behaviour
tokens can be cached.

Global tokens in chronological reading, that is in reverse of the paper's G: the user, learnable
CLS tokens, the cross features of user and candidate, and the candidate last of all. A row sees only
what stands before it, so everything up to the CLS tokens is free of the candidate.

Ids are looked up as they are. If two cross features may share an id with different meanings, the
caller makes the ids distinct (one table ``cross`` serves all).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.config import LongerConfig

LONGEST_AGE_S = 10 * 365 * 86_400
"""Ages of ten years and more share the last bucket."""


def age_bucket(age_s: Tensor, buckets: int) -> Tensor:
    """Return the bucket, 0 to ``buckets - 1``, of ages in seconds; equal steps in log(1 + age).

    Computed in float64, so that an age has one bucket whatever the network's precision.
    """
    share = torch.log1p(age_s.double()) / math.log1p(LONGEST_AGE_S)
    return (share * buckets).floor().clamp(0, buckets - 1).long()


class Mlp(nn.Module):
    """Two linear maps with GELU between: (..., inputs) to (..., outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(outputs, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows."""
        mapped: Tensor = self.second(nn.functional.gelu(self.first(rows)))
        return mapped


class EventFeatures(nn.Module):
    """Behaviours to tokens of width d."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        self.buckets = config.age_buckets
        inputs = config.item_dim + config.category_dim + config.action_dim + config.age_dim
        self.action = nn.Embedding(config.num_actions, config.action_dim)
        self.age = nn.Embedding(config.age_buckets, config.age_dim)
        self.position = nn.Embedding(config.max_length, inputs)
        self.mlp = Mlp(inputs, config.d)

    def forward(
        self, item: Tensor, category: Tensor, action: Tensor, age_s: Tensor, position: Tensor
    ) -> Tensor:
        """Return tokens (T, d) of item (T, item_dim) and category (T, category_dim) vectors."""
        age = self.age(age_bucket(age_s, self.buckets))
        joined = torch.cat([item, category, self.action(action), age], dim=-1)
        tokens: Tensor = self.mlp(joined + self.position(position))
        return tokens


class GlobalTokens(nn.Module):
    """User, CLS, cross features and candidate to tokens of width D."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        width = config.width
        self.user = nn.Linear(config.user_dim, width)
        self.cls = nn.Parameter(torch.zeros(config.num_cls, width))
        self.cross = nn.ModuleList(
            nn.Linear(config.cross_dim, width) for _ in range(config.num_cross)
        )
        self.candidate = Mlp(config.item_dim + config.category_dim, width)

    def free(self, user: Tensor) -> Tensor:
        """Return the tokens no candidate touches (B, 1 + num_cls, D) of users (B, user_dim)."""
        cls = self.cls.expand(user.shape[0], -1, -1)
        return torch.cat([self.user(user).unsqueeze(1), cls], dim=1)

    def bound(self, cross: Tensor, item: Tensor, category: Tensor) -> Tensor:
        """Return the tokens of candidates (B, num_cross + 1, D), the candidate's own last.

        ``cross`` (B, num_cross, cross_dim), ``item`` (B, item_dim), ``category`` (B, category_dim).
        """
        tokens = [linear(cross[:, i]) for i, linear in enumerate(self.cross)]
        tokens.append(self.candidate(torch.cat([item, category], dim=-1)))
        return torch.stack(tokens, dim=1)

    def forward(self, user: Tensor, cross: Tensor, item: Tensor, category: Tensor) -> Tensor:
        """Return all global tokens (B, m, D)."""
        return torch.cat([self.free(user), self.bound(cross, item, category)], dim=1)
