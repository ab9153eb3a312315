"""Taobao-MM: impressions with the user's history of up to 1,000 items in every row.

Source: the columns of the published parquet shards as the data set's card and its reference code
(MUSE) name them: ``label_0`` (one-hot: not clicked, clicked), ``129_1`` user, ``205`` and ``206``
the candidate's item and category, ``150_2_180`` and ``151_2_180`` the history's items and
categories, oldest first, padded with 0 on the left. Ids are 64-bit hashes and may be negative.

The rows are samples already, with histories of their own, so they do not become an event log.
There are no times and no kinds of action: an event's age is its place, 1 s for the newest, and its
action is 0. Leaves out: the other user and item features (130_1 to 130_5, 213, 214) and the
multimodal vectors.

A shard's histories fill gigabytes; ``max_history`` and ``max_rows`` bound what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.batch import Batch
from models.data.collate import check_crosses, checked_indices, collate, offsets_of, ranges
from models.data.events import Cleaning, Ints
from models.errors import ModelError

_SCALARS = ("129_1", "205", "206")
_HISTORY_ITEM, _HISTORY_CATEGORY = "150_2_180", "151_2_180"
_COLUMNS = ("label_0", *_SCALARS, _HISTORY_ITEM, _HISTORY_CATEGORY)
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TaobaoMM:
    """``N`` impressions in memory; row n has the events ``offsets[n]:offsets[n + 1]``.

    Columns: ``item``, ``category`` (T,), ``candidate_item``, ``candidate_category``, ``user`` (N,)
    int64 raw ids, ``label`` (N,) float32.
    """

    offsets: Ints
    item: Ints
    category: Ints
    candidate_item: Ints
    candidate_category: Ints
    user: Ints
    label: NDArray[np.float32]
    cleaning: Cleaning
    num_cross: int = 2

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return len(self.label)

    def batch(self, indices: Sequence[int] | Ints, *, visible: int | None = None) -> Batch:
        """Return rows, each with its newest ``visible`` events (None: all that were kept).

        Raises :class:`ModelError` for indices outside 0..num_samples-1.
        """
        index = checked_indices(indices, self.num_samples)
        if visible is not None and visible < 0:
            raise ModelError("no such view", where="visible", value=visible, expected="0 or more")
        lengths = self.offsets[index + 1] - self.offsets[index]
        if visible is not None:
            lengths = np.minimum(lengths, visible)
        history = ranges(self.offsets[index + 1] - lengths, lengths)
        age = np.repeat(self.offsets[index + 1], lengths) - history
        return collate(
            lengths=lengths,
            item=self.item[history],
            category=self.category[history],
            action=np.zeros(len(history), dtype=np.int64),
            age_s=age.astype(np.float64),
            candidate_item=self.candidate_item[index],
            candidate_category=self.candidate_category[index],
            user=self.user[index],
            label=self.label[index],
            num_cross=self.num_cross,
        )


def load_taobao_mm(
    shards: Sequence[str | Path],
    *,
    max_history: int = 1000,
    max_rows: int | None = None,
    num_cross: int = 2,
) -> TaobaoMM:
    """Return the rows of some shards, in the order given, with their newest events.

    Rows beyond ``max_rows`` are counted in ``cleaning``. Raises :class:`ModelError` for files that
    are not such shards, labels that are not one-hot, and histories whose two lists differ in
    length.
    """
    check_crosses(num_cross)
    if max_history < 0 or (max_rows is not None and max_rows < 1):
        raise ModelError(
            "nothing would be kept",
            where="max_history, max_rows",
            value=(max_history, max_rows),
            expected="0 or more events, 1 or more rows",
        )
    parts: list[dict[str, NDArray[Any]]] = []
    rows = kept = padding = 0
    for path in shards:
        for size, chunk in _chunks(Path(path)):
            take = size if max_rows is None else min(size, max_rows - kept)
            rows += size
            if take > 0:
                part, inside = _part(Path(path), chunk.slice(0, take), max_history)
                parts.append(part)
                kept += take
                padding += inside
    if not parts:
        raise ModelError("no shard has rows", where="shards", expected="parquet files with rows")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return TaobaoMM(
        offsets=offsets_of(whole["lengths"]),
        item=whole["item"],
        category=whole["category"],
        candidate_item=whole["205"],
        candidate_category=whole["206"],
        user=whole["129_1"],
        label=whole["label"].astype(np.float32),
        cleaning=Cleaning(
            rows=rows,
            left_out=(("beyond max_rows", rows - kept),),
            notes=(("item 0 inside a history, not padding", padding),),
        ),
        num_cross=num_cross,
    )


def _chunks(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (rows, record batch) of one shard."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise ModelError(
                    "columns are missing", where=path, value=missing, expected=", ".join(_COLUMNS)
                )
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
                yield batch.num_rows, batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read: {error}", where=path) from error


def _part(path: Path, chunk: Any, max_history: int) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the columns of some rows, and how many zeros stand inside their histories."""
    lengths, item = _lists(path, chunk, _HISTORY_ITEM)
    other, category = _lists(path, chunk, _HISTORY_CATEGORY)
    if not np.array_equal(lengths, other):
        raise ModelError("items and categories of a history differ in number", where=path)
    # Padding is what stands before the first item of a row.
    offsets = offsets_of(lengths)
    real = np.concatenate(([0], np.cumsum(item != 0)))
    row = np.repeat(np.arange(len(lengths)), lengths)
    started = real[1:] > real[offsets[:-1]][row]
    size = np.bincount(row[started], minlength=len(lengths))
    inside = int((started & (item == 0)).sum())
    size = np.minimum(size, max_history)
    history = ranges(offsets[1:] - size, size)
    part: dict[str, NDArray[Any]] = {name: _scalars(path, chunk, name) for name in _SCALARS}
    part |= {"item": item[history], "category": category[history], "lengths": size}
    part["label"] = _labels(path, chunk)
    return part, inside


def _labels(path: Path, chunk: Any) -> NDArray[np.bool_]:
    """Return whether each row was clicked."""
    lengths, values = _lists(path, chunk, "label_0")
    if not (lengths == 2).all():
        raise ModelError("a label is not one-hot", where=path, expected="two numbers in label_0")
    pairs = values.reshape(-1, 2)
    if not (((pairs == 0) | (pairs == 1)).all() and (pairs.sum(axis=1) == 1).all()):
        raise ModelError("a label is not one-hot", where=path, expected="[1, 0] or [0, 1]")
    clicked: NDArray[np.bool_] = pairs[:, 1] == 1
    return clicked


def _scalars(path: Path, chunk: Any, name: str) -> Ints:
    """Return a column of ids; some copies wrap each in a list of one."""
    if not _is_list(chunk.column(name).type):
        return _integers(path, chunk.column(name), name)
    lengths, values = _lists(path, chunk, name)
    if not (lengths == 1).all():
        raise ModelError("not one id in a row", where=f"{path}, column {name!r}")
    return values


def _lists(path: Path, chunk: Any, name: str) -> tuple[Ints, Ints]:
    """Return the lengths of a column of lists, and all their numbers."""
    column = chunk.column(name)
    if not _is_list(column.type) or column.null_count:
        raise ModelError(
            "not a list in every row", where=f"{path}, column {name!r}", value=str(column.type)
        )
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, _integers(path, pc.list_flatten(column), name)


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _integers(path: Path, column: Any, name: str) -> Ints:
    """Return an array of integers without gaps as int64."""
    if not pa.types.is_integer(column.type) or pa.types.is_uint64(column.type) or column.null_count:
        raise ModelError(
            "not an integer in every place",
            where=f"{path}, column {name!r}",
            value=str(column.type),
            expected="integers that fit 64 bits, and none missing",
        )
    numbers: Ints = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers
