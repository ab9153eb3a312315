"""Which merged tokens become queries of the cross layer, and what each query may see.

Source: LONGER (arXiv 2505.04421), the cross-causal layer and its Table 2. The paper compares the
newest k tokens, k tokens spread evenly, k learnable tokens, and half newest with half spread; it
gives no formula for any of them. Here everything is a pure function of the number of merged tokens
S, so that a batch decides nothing: no random sampling.

The mask is the paper's, read in chronological order (``docs/models/longer.md``): keys are the S
merged tokens, oldest first, then the m globals, candidate last; a query that stands at key ``i``
sees keys ``0..i``. So one number per query says its whole row of the mask. A learnable query
stands nowhere: it sees every merged token and no global, as if it stood at the newest token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.config import Sampling

Ints = NDArray[np.int64]


def spread(total: int, count: int) -> Ints:
    """Return ``count`` distinct indices of ``0..total-1``, evenly spread, the last one included."""
    ranks = np.arange(1, count + 1, dtype=np.int64)
    return -(-ranks * total // max(count, 1)) - 1


def sampled(merged: int, queries: int, how: Sampling) -> Ints:
    """Return where the queries of a history stand among its ``merged`` tokens, oldest first.

    ``min(queries, merged)`` indices. ``recent+uniform`` takes the newest half (the larger one of an
    odd number) and spreads the others over the rest. For ``learnable`` queries, which stand
    nowhere, it is the newest token's index every time: what they see ends there.
    """
    count = min(queries, merged)
    if how == "learnable":
        return np.full(count, merged - 1, dtype=np.int64)
    if how == "uniform":
        return spread(merged, count)
    recent = count if how == "recent" else count - count // 2
    older = merged - recent
    newest = np.arange(older, merged, dtype=np.int64)
    return np.concatenate([spread(older, count - recent), newest])


def standing(merged: int, num_globals: int, queries: int, how: Sampling) -> Ints:
    """Return at which key each query of the cross layer stands: sampled tokens, then globals."""
    globals_at = np.arange(merged, merged + num_globals, dtype=np.int64)
    return np.concatenate([sampled(merged, queries, how), globals_at])


def lower_right(queries: int, keys: int) -> Ints:
    """Return where ``queries`` stand if they are the last of ``keys``: the usual causal mask."""
    return np.arange(keys - queries, keys, dtype=np.int64)
