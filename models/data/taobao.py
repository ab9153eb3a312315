"""Taobao UserBehavior: a million users' page views, carts, favourites and purchases of nine days.

Source: Alibaba Tianchi, data set 649. ``UserBehavior.csv`` has no header; its columns are user id,
item id, category id, behaviour (``pv``, ``buy``, ``cart``, ``fav``) and Unix seconds. It covers
2017-11-25 to 12-03 in Beijing and has stray times from 1902 to 2037: rows outside are left out and
counted.

Label rule: the log has no impressions, so no true negatives. ``label`` says whether an event is
more than a page view (cart, favourite or purchase). For next-item samples use the rule ``next`` of
:mod:`models.data.samples`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.data.csvfile import read_csv
from models.data.events import EventStore, build_store

ACTIONS = ("pv", "buy", "cart", "fav")
# 2017-11-25 00:00:00 to 2017-12-03 23:59:59 in Beijing (UTC+8).
WINDOW_S = (1_511_539_200.0, 1_512_316_799.0)
_COLUMNS = ("user", "item", "category", "behavior", "timestamp")


def load_taobao(path: str | Path, *, window_s: tuple[float, float] | None = WINDOW_S) -> EventStore:
    """Return the events of ``UserBehavior.csv``, or of a ``.gz`` of it.

    ``window_s``: first and last second kept (None: all). Raises
    :class:`models.errors.ModelError` for rows of another form, negative ids, unknown behaviours.
    """
    table = read_csv(
        path,
        {"user": "int", "item": "int", "category": "int", "behavior": "text", "timestamp": "int"},
        header=_COLUMNS,
    )
    behavior = table.texts["behavior"]
    known = np.array([ACTIONS.index(v) if v in ACTIONS else -1 for v in behavior.values])
    action = known[behavior.codes]
    table.refuse(action < 0, "behavior", "unknown behaviour", ", ".join(ACTIONS))
    return build_store(
        source=str(path),
        actions=ACTIONS,
        user=table.ids("user"),
        item=table.ids("item"),
        category=table.ids("category"),
        action=action,
        time_s=table.ints("timestamp").astype(np.float64),
        label=action > 0,
        window_s=window_s,
    )
