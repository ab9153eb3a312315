"""KuaiRand (27K, 1K, Pure): every video that was shown to some Kuaishou users in a month of 2022.

Source: Gao et al., CIKM 2022, and the README of its repository (columns of ``log_*.csv`` and of
``video_features_basic_*.csv``). The logs have a header of 19 columns, of which ids, ``time_ms`` and
the 0/1 signals are read; they cover 2022-04-08 to 05-08 in Beijing, and times outside are left out
and counted.

Label rule: true impressions, so each event's own signal: ``is_click`` (a click, or 7 s played in
the one-column feed), or another signal by choice. In histories an event's action is the strongest
of what happened: shown, click, long view, engaged (like, follow, comment or forward), hate.

The category is the first of the video's tags plus 1, where the features file is given; 0 is a
video without tag (or with a negative one), or not in that file (counted). Leaves out: the
statistics files (they hold the future), user features, play times, and the difference between
standard and random exposure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.csvfile import Kind, read_csv
from models.data.events import EventStore, Ints, build_store
from models.errors import ModelError

ACTIONS = ("shown", "click", "long view", "engaged", "hate")
# 2022-04-08 00:00:00.000 to 2022-05-08 23:59:59.999 in Beijing (UTC+8).
WINDOW_S = (1_649_347_200.0, 1_652_025_599.999)
SIGNALS = (
    "is_click",
    "long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
)
_TAG = re.compile(r"-?[0-9]{1,17}")
_STRENGTH = {"is_click": 1, "long_view": 2, "is_hate": 4}  # any other signal is an engagement: 3


def load_kuairand(
    logs: Sequence[str | Path],
    *,
    videos: str | Path | None = None,
    label: str = "is_click",
    window_s: tuple[float, float] | None = WINDOW_S,
) -> EventStore:
    """Return the events of one or more ``log_*.csv``.

    ``videos``: ``video_features_basic_*.csv``, for categories. Raises
    :class:`models.errors.ModelError` for missing columns, signals that are not 0 or 1, negative
    ids, or a video described twice.
    """
    if label not in SIGNALS:
        raise ModelError("no such signal", where="label", value=label, expected=", ".join(SIGNALS))
    if not logs:
        raise ModelError("no log is named", where="logs", expected="log_*.csv")
    parts = [_read_log(path, label) for path in logs]
    user, item, time_s, action, liked = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    category = np.zeros(len(item), dtype=np.int64)
    notes: tuple[tuple[str, int], ...] = ()
    if videos is not None:
        category, unknown = _categories(videos, item)
        notes = (("a video that the features file does not have", unknown),)
    return build_store(
        source=", ".join(str(path) for path in logs),
        actions=ACTIONS,
        user=user,
        item=item,
        category=category,
        action=action,
        time_s=time_s,
        label=liked,
        window_s=window_s,
        notes=notes,
    )


def _read_log(path: str | Path, label: str) -> tuple[NDArray[np.generic], ...]:
    """Return user, item, time in seconds, action and label of one file."""
    kinds: dict[str, Kind] = dict.fromkeys(("user_id", "video_id", "time_ms", *SIGNALS), "int")
    table = read_csv(path, kinds)
    action = np.zeros(len(table.ints("user_id")), dtype=np.int64)
    for name in SIGNALS:
        signal = table.ints(name)
        table.refuse((signal != 0) & (signal != 1), name, "not a signal", "0 or 1")
        action = np.maximum(action, signal * _STRENGTH.get(name, 3))
    return (
        table.ids("user_id"),
        table.ids("video_id"),
        table.ints("time_ms") / 1000.0,
        action,
        table.ints(label) == 1,
    )


def _categories(path: str | Path, item: Ints) -> tuple[Ints, int]:
    """Return the category of each item, and how many items the file does not have."""
    table = read_csv(path, {"video_id": "int", "tag": "text"})
    tag = table.texts["tag"]
    first = [value.split(",")[0].strip() for value in tag.values]
    good = np.array([text == "" or _TAG.fullmatch(text) is not None for text in first])
    table.refuse(~good[tag.codes], "tag", "not a list of tags", "numbers, or nothing")
    code = np.array([max(int(text or -1), -1) + 1 for text in first], dtype=np.int64)
    return table.match("video_id", code[tag.codes], item)
