"""Embedding tables: dynamic ids, row-wise optimizers, admission, eviction, tiers, state, versions.

Source: LONGER (arXiv 2505.04421), section 3, for what there is (dense and sparse updated in one
step, tiers, serving from the training state); how each part works is ours, and said in its file.
"""

from models.sparse.evict import Eviction
from models.sparse.gradients import SparseGradient, accumulate, joined
from models.sparse.optimizer import RowAdagrad, RowAdam, RowOptimizer
from models.sparse.published import Published, ServingTables, publish, retire, versions
from models.sparse.state import load_tables, save_tables
from models.sparse.table import EmbeddingTable, TableState
from models.sparse.tableset import TableSet
from models.sparse.tiers import Tiers

__all__ = [
    "EmbeddingTable",
    "Eviction",
    "Published",
    "RowAdagrad",
    "RowAdam",
    "RowOptimizer",
    "ServingTables",
    "SparseGradient",
    "TableSet",
    "TableState",
    "Tiers",
    "accumulate",
    "joined",
    "load_tables",
    "publish",
    "retire",
    "save_tables",
    "versions",
]
