"""MovieLens (20M, 25M, 32M): ratings of films, for comparison with published sequence models.

Source: GroupLens, README of each release: ``ratings.csv`` has the columns userId, movieId, rating
(0.5 to 5 stars in halves) and timestamp (Unix seconds); ``movies.csv`` has movieId, title, genres
(names joined by ``|``).

Label rule: a rating of ``liked`` stars or more (4, as usual) is a positive. An event's action is
its rating in whole stars, rounded up, minus 1. The category is the first genre of the film,
numbered from 1 in alphabetical order, where ``movies.csv`` is given; 0 is a film without genre, or
not in that file (counted). Times are when a rating was typed in, often many within a minute; no
outliers are known, so there is no window. Leaves out: tags, links, the genome.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.data.csvfile import read_csv
from models.data.events import EventStore, Ints, build_store
from models.errors import ModelError

ACTIONS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
_NO_GENRE = "(no genres listed)"


def load_movielens(
    ratings: str | Path,
    *,
    movies: str | Path | None = None,
    liked: float = 4.0,
    window_s: tuple[float, float] | None = None,
) -> EventStore:
    """Return the ratings of ``ratings.csv`` as events.

    Raises :class:`models.errors.ModelError` for ratings that are not half stars, negative ids or
    times, or a film described twice.
    """
    if not 0.5 <= liked <= 5:
        raise ModelError("no such rating", where="liked", value=liked, expected="0.5 to 5")
    table = read_csv(
        ratings, {"userId": "int", "movieId": "int", "rating": "float", "timestamp": "int"}
    )
    stars = table.numbers["rating"]
    halves = stars * 2
    wrong = (halves < 1) | (halves > 10) | (halves != np.rint(halves))
    table.refuse(wrong, "rating", "not a rating", "0.5, 1, 1.5, ... 5")
    time_s = table.ints("timestamp")
    table.refuse(time_s < 0, "timestamp", "a time before 1970", "Unix seconds")
    item = table.ids("movieId")
    category = np.zeros(len(item), dtype=np.int64)
    notes: tuple[tuple[str, int], ...] = ()
    if movies is not None:
        category, unknown = _genres(movies, item)
        notes = (("a film that movies.csv does not have", unknown),)
    return build_store(
        source=str(ratings),
        actions=ACTIONS,
        user=table.ids("userId"),
        item=item,
        category=category,
        action=np.ceil(stars).astype(np.int64) - 1,
        time_s=time_s.astype(np.float64),
        label=stars >= liked,
        window_s=window_s,
        notes=notes,
    )


def _genres(path: str | Path, item: Ints) -> tuple[Ints, int]:
    """Return the category of each item, and how many items the file does not have."""
    table = read_csv(path, {"movieId": "int", "genres": "text"})
    genres = table.texts["genres"]
    first = [value.split("|")[0] for value in genres.values]
    names = sorted({name for name in first if name not in ("", _NO_GENRE)})
    code = np.array([names.index(name) + 1 if name in names else 0 for name in first])
    return table.match("movieId", code[genres.codes], item)
