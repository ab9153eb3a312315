"""Small LONGER networks, batches and tables for tests, and the network written naively."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from models.batch import Batch
from models.config import TINY, LongerConfig, Sampling
from models.longer.attention import Block
from models.longer.features import age_bucket
from models.longer.kvcache import Events
from models.longer.network import Longer
from models.longer.sampling import sampled
from models.longer.scoring import Candidates

SAMPLINGS: tuple[Sampling, ...] = ("recent", "uniform", "learnable", "recent+uniform")
SMALL = replace(TINY, d=4, merge=3, max_length=20, queries=4, head_hidden=(8,), num_actions=3)


@dataclass
class Tables:
    """Forty rows per table, float64; every id has one of them."""

    config: LongerConfig
    rows: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        for table in ("item", "category", "user", "cross"):
            dim = getattr(self.config, f"{table}_dim")
            self.rows[table] = torch.randn(40, dim, dtype=torch.float64, generator=generator)

    def __call__(self, table: str, ids: Tensor) -> Tensor:
        return self.rows[table][ids % 40]


def make_batch(lengths: Iterable[int], config: LongerConfig, seed: int = 0) -> Batch:
    """Return random samples with histories of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    sizes = list(lengths)
    total, count = sum(sizes), len(sizes)

    def ids(*shape: int) -> Tensor:
        return torch.randint(-(2**62), 2**62, shape, generator=generator)

    return Batch(
        offsets=torch.tensor([0, *sizes]).cumsum(0),
        item=ids(total),
        category=ids(total),
        action=torch.randint(0, config.num_actions, (total,), generator=generator),
        age_s=10 ** (8 * torch.rand(total, dtype=torch.float64, generator=generator)),
        candidate_item=ids(count),
        candidate_category=ids(count),
        user=ids(count),
        cross=ids(count, config.num_cross),
        label=torch.randint(0, 2, (count,), generator=generator).float(),
    )


def with_columns(batch: Batch, **columns: Tensor) -> Batch:
    """Return the batch with other columns."""
    return replace(batch, **columns)


def one(batch: Batch, sample: int) -> Batch:
    """Return a batch of one of the samples."""
    start, end = int(batch.offsets[sample]), int(batch.offsets[sample + 1])
    columns = {
        f.name: getattr(batch, f.name)[start:end]
        if f.name in {"item", "category", "action", "age_s"}
        else getattr(batch, f.name)[sample : sample + 1]
        for f in fields(batch)
    }
    return Batch(**{**columns, "offsets": torch.tensor([0, end - start])})


def history(batch: Batch, sample: int) -> Events:
    """Return the events of one sample."""
    alone = one(batch, sample)
    return Events(item=alone.item, category=alone.category, action=alone.action, age_s=alone.age_s)


def candidates(batch: Batch) -> Candidates:
    """Return the candidates of a batch."""
    return Candidates(
        item=batch.candidate_item, category=batch.candidate_category, cross=batch.cross
    )


def for_each(batch: Batch, sample: int, others: Batch) -> Batch:
    """Return the history and user of one sample once for each candidate of ``others``."""
    events, count = history(batch, sample), len(others)
    return Batch(
        offsets=torch.arange(count + 1) * len(events),
        item=events.item.repeat(count),
        category=events.category.repeat(count),
        action=events.action.repeat(count),
        age_s=events.age_s.repeat(count),
        candidate_item=others.candidate_item,
        candidate_category=others.candidate_category,
        user=batch.user[sample].repeat(count),
        cross=others.cross,
        label=others.label,
    )


def printed_mask(rows: list[int], keys: int) -> Tensor:
    """The paper's mask for queries that are these of the keys: visible where j >= i."""
    return torch.tensor([[j >= i for j in range(keys)] for i in rows])


def naive_logit(network: Longer, sample: Batch, lookup: Tables) -> Tensor:
    """One sample as the paper prints it: newest first, globals first, candidate before them all."""
    c = network.config
    length = min(int(sample.offsets[1]), c.max_length)
    tokens = [_token(network, sample, length, t, lookup) for t in range(length)]
    merged = _merge(network, tokens)
    g = network.globals
    others = [
        g.candidate(
            torch.cat(
                [
                    lookup("item", sample.candidate_item),
                    lookup("category", sample.candidate_category),
                ],
                1,
            )
        )[0]
    ]
    crosses = [g.cross[i](lookup("cross", sample.cross[0, i])) for i in range(c.num_cross)]
    globals_ = [*others, *crosses[::-1], *g.cls.flip(0), g.user(lookup("user", sample.user))[0]]
    m, total = len(globals_), len(merged)
    r = torch.stack([*globals_, *merged[::-1]])
    # Oldest-first indices to rows of R: index i is the (total - 1 - i)-th token after the globals.
    at = [m + total - 1 - int(i) for i in sampled(total, c.queries, c.sampling)][::-1]
    if c.sampling == "learnable":
        queries = [*globals_, *network.learnable[: len(at)].flip(0)]
        mask = torch.cat(
            [
                printed_mask([*range(m)], m + total),
                torch.tensor(
                    [[j >= m for j in range(m + total)] for _ in at], dtype=torch.bool
                ).view(len(at), m + total),
            ]
        )
    else:
        queries = [r[i] for i in [*range(m), *at]]
        mask = printed_mask([*range(m), *at], m + total)
    x = _block(network.cross, torch.stack(queries), r, mask)
    for layer in network.layers:
        assert isinstance(layer, Block)
        x = _block(layer, x, x, printed_mask([*range(len(x))], len(x)))
    x = network.head.norm(x)
    cls = [x[m - 2 - i] for i in range(c.num_cls)]
    hidden = torch.cat([x[0], *cls, x[m - 1]])
    *inner, last = network.head.layers
    for linear in inner:
        hidden = torch.nn.functional.gelu(linear(hidden))
    logit: Tensor = last(hidden)
    return logit


def _token(network: Longer, sample: Batch, length: int, t: int, lookup: Tables) -> Tensor:
    c, f = network.config, network.features
    row = int(sample.offsets[1]) - length + t
    position = length - 1 - t if c.positions == "newest" else t
    joined = torch.cat(
        [
            lookup("item", sample.item[row]),
            lookup("category", sample.category[row]),
            f.action.weight[sample.action[row]],
            f.age.weight[age_bucket(sample.age_s[row], c.age_buckets)],
        ]
    )
    token: Tensor = f.mlp(joined + f.position.weight[position])
    return token


def _merge(network: Longer, tokens: list[Tensor]) -> list[Tensor]:
    c = network.config
    missing = -len(tokens) % c.merge
    front = missing if c.alignment == "newest" else 0
    slots: list[Tensor | None] = [None] * front + [*tokens] + [None] * (missing - front)
    merged = []
    for start in range(0, len(slots), c.merge):
        group = slots[start : start + c.merge]
        x = torch.stack([t for t in group if t is not None])
        for block in network.merge.blocks:
            assert isinstance(block, Block)
            x = _block(block, x, x, torch.ones(len(x), len(x), dtype=torch.bool))
        rest = iter(x)
        zeros = torch.zeros(c.d, dtype=x.dtype)
        merged.append(torch.cat([zeros if t is None else next(rest) for t in group]))
    return merged


def _block(block: Block, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    q, k, v = block.query(block.norm(x)), block.key(block.norm(keys)), block.value(block.norm(keys))
    width = q.shape[1] // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / width**0.5
        heads.append(torch.softmax(scores.masked_fill(~mask, float("-inf")), 1) @ v[:, part])
    x = x + block.out(torch.cat(heads, 1))
    hidden = torch.nn.functional.gelu(block.up(block.ffn_norm(x)))
    out: Tensor = x + block.down(hidden)
    return out
