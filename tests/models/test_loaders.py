"""Loaders against small files in the publishers' formats, and against anything at all."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.data.events import EventStore
from models.data.kuairand import load_kuairand
from models.data.movielens import load_movielens
from models.data.taobao import WINDOW_S, load_taobao
from models.data.taobao_mm import TaobaoMM, load_taobao_mm
from models.errors import ModelError

TAOBAO = """\
7,100,9,pv,1511600000
7,101,9,cart,1511600010
3,100,9,pv,1511700000
7,100,9,buy,1511600005
7,100,9,buy,1511600005
3,102,8,fav,-2134949234
3,102,8,pv,1512316799
3,102,8,pv,1512316800
"""
KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)
KUAIRAND = f"""\
{KUAIRAND_HEADER}
0,11,20220408,1400,1649400000500,1,0,0,0,0,0,1,151024,104400,0,0,0,0,1
0,12,20220408,1400,1649400000500,0,0,0,0,0,0,0,0,104400,0,0,0,0,1
5,11,20220409,100,1649437200000,1,1,0,0,0,0,0,9000,104400,0,0,0,0,1
5,13,20220409,100,1649437100000,0,0,0,0,0,1,0,10,104400,0,0,0,1,2
5,13,20230409,100,1680973200000,1,0,0,0,0,0,0,10,104400,0,0,0,1,2
"""
VIDEOS = """\
video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag
13,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989206467,4,"12,65"
11,442,AD,2020-07-08,ShortImport,1,,720,1280,989206467,,
"""
RATINGS = """\
userId,movieId,rating,timestamp
1,2,3.5,1112486027
1,29,5.0,1112484676
2,2,0.5,974820889
"""
MOVIES = """\
movieId,title,genres
2,Jumanji (1995),Adventure|Children|Fantasy
29,"City of Lost Children, The (1995)",Drama|Mystery
31,Nothing (1990),(no genres listed)
"""


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def events(store: EventStore) -> list[tuple[Any, ...]]:
    """(user, item, category, action, time, label) of every event, in the store's order."""
    user = np.repeat(store.users, store.lengths)
    columns = (user, store.item, store.category, store.action, store.time_s, store.label)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(u, i, c, store.actions[a], t, y) for u, i, c, a, t, y in rows]


def test_taobao(tmp_path: Path) -> None:
    store = load_taobao(put(tmp_path / "UserBehavior.csv", TAOBAO))
    assert events(store) == [
        (3, 100, 9, "pv", 1511700000.0, 0.0),
        (3, 102, 8, "pv", 1512316799.0, 0.0),
        (7, 100, 9, "pv", 1511600000.0, 0.0),
        (7, 100, 9, "buy", 1511600005.0, 1.0),
        (7, 100, 9, "buy", 1511600005.0, 1.0),
        (7, 101, 9, "cart", 1511600010.0, 1.0),
    ]
    assert store.cleaning.rows == 8
    assert store.cleaning.kept == len(store) == 6
    assert str(store.cleaning) == (
        "8 rows, 6 kept; left out, outside the time window: 2; kept, the same as another row: 1"
    )
    everything = load_taobao(tmp_path / "UserBehavior.csv", window_s=None)
    assert everything.cleaning.kept == 8


def test_the_published_excerpt_of_taobao(shared_data: Path) -> None:
    store = load_taobao(shared_data / "taobao" / "UserBehavior.csv.gz", window_s=None)
    assert len(store) == store.cleaning.rows == 4321
    assert len(store.users) == 43
    assert len(np.unique(store.item)) == 3276
    assert len(np.unique(store.category)) == 567
    counts = dict(zip(store.actions, np.bincount(store.action).tolist(), strict=True))
    assert counts == {"pv": 3926, "cart": 190, "fav": 128, "buy": 77}
    assert store.label.sum() == 190 + 128 + 77
    assert store.lengths.max() == 466
    inside = load_taobao(shared_data / "taobao" / "UserBehavior.csv.gz")
    assert inside.cleaning.left_out == (("outside the time window", 1),)
    assert inside.time_s.min() >= WINDOW_S[0]
    assert inside.time_s.max() <= WINDOW_S[1]


def test_kuairand(tmp_path: Path) -> None:
    log = put(tmp_path / "log_standard_4_08_to_4_21_1k.csv", KUAIRAND)
    videos = put(tmp_path / "video_features_basic_1k.csv", VIDEOS)
    store = load_kuairand([log], videos=videos)
    assert events(store) == [
        (0, 11, 0, "long view", 1649400000.5, 1.0),
        (0, 12, 0, "shown", 1649400000.5, 0.0),
        (5, 13, 13, "hate", 1649437100.0, 0.0),
        (5, 11, 0, "engaged", 1649437200.0, 1.0),
    ]
    assert dict(store.cleaning.left_out) == {"outside the time window": 1}
    assert dict(store.cleaning.notes)["a video that the features file does not have"] == 1
    liked = load_kuairand([log], label="is_like")
    assert liked.label.tolist() == [0, 0, 0, 1]
    assert not liked.category.any()
    assert load_kuairand([log, log]).cleaning.rows == 10


def test_movielens(tmp_path: Path) -> None:
    ratings, movies = put(tmp_path / "ratings.csv", RATINGS), put(tmp_path / "movies.csv", MOVIES)
    store = load_movielens(ratings, movies=movies)
    assert events(store) == [
        (1, 29, 2, "5 stars", 1112484676.0, 1.0),
        (1, 2, 1, "4 stars", 1112486027.0, 0.0),
        (2, 2, 1, "1 star", 974820889.0, 0.0),
    ]
    assert load_movielens(ratings, liked=3.5).label.tolist() == [1, 1, 0]
    assert store.cleaning.left_out == (("outside the time window", 0),)


MM: dict[str, list[Any]] = {
    "label_0": [[0, 1], [1, 0], [1, 0]],
    "129_1": [-58759430334327705, 8, 8],
    "130_1": [1, 2, 3],
    "205": [910284, 7, 2**62],
    "206": [103, 104, 103],
    "150_2_180": [[0, 0, 142, -381, 910], [0, 0, 0, 0, 0], [5, 0, 6, 7, 8]],
    "151_2_180": [[0, 0, 12, 103, 103], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]],
}


def shard(path: Path, columns: dict[str, list[Any]], row_group: int = 2) -> Path:
    kinds: dict[str, Any] = {"label_0": pa.list_(pa.int8())}
    kinds |= {name: pa.list_(pa.int64()) for name in ("150_2_180", "151_2_180")}
    table = pa.table({n: pa.array(v, type=kinds.get(n)) for n, v in columns.items()})
    pq.write_table(table, path, row_group_size=row_group)
    return path


def rows_of(data: TaobaoMM) -> list[list[int]]:
    return [data.item[a:b].tolist() for a, b in zip(data.offsets, data.offsets[1:], strict=False)]


def test_taobao_mm(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-shard-0.parquet", MM)
    data = load_taobao_mm([path])
    assert rows_of(data) == [[142, -381, 910], [], [5, 0, 6, 7, 8]]
    assert data.category.tolist() == [12, 103, 103, 1, 0, 1, 1, 1]
    assert data.label.tolist() == [1, 0, 0]
    assert data.user.tolist() == [-58759430334327705, 8, 8]
    assert data.candidate_item.tolist() == [910284, 7, 2**62]
    assert dict(data.cleaning.notes) == {"item 0 inside a history, not padding": 1}
    short = load_taobao_mm([path, path], max_history=2, max_rows=4)
    assert rows_of(short) == [[-381, 910], [], [7, 8], [-381, 910]]
    assert short.cleaning.left_out == (("beyond max_rows", 2),)
    batch = data.batch([2, 0], visible=3)
    assert batch.item.tolist() == [6, 7, 8, 142, -381, 910]
    assert batch.age_s.tolist() == [3, 2, 1, 3, 2, 1]
    assert batch.label.tolist() == [0, 1]
    wrapped = MM | {name: [[v] for v in MM[name]] for name in ("129_1", "205", "206")}
    again = load_taobao_mm([shard(tmp_path / "b.parquet", wrapped)])
    assert again.user.tolist() == data.user.tolist()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"label_0": [[0, 1], [1, 1], [1, 0]]}, "one-hot"),
        ({"label_0": [[0, 1], [1], [1, 0]]}, "one-hot"),
        ({"label_0": [[0, 1], None, [1, 0]]}, "label_0"),
        ({"205": [1, None, 2]}, "205"),
        ({"205": [1.5, 1.0, 2.0]}, "205"),
        ({"206": [[1], [1, 2], [2]]}, "206"),
        ({"151_2_180": [[0, 0, 1], [0], [1]]}, "differ in number"),
        ({"150_2_180": [[0, 0, 1, None, 1], [0] * 5, [1] * 5]}, "150_2_180"),
    ],
)
def test_taobao_mm_of_another_form(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    path = shard(tmp_path / "odd.parquet", MM | change)
    with pytest.raises(ModelError, match=word):
        load_taobao_mm([path])


def test_taobao_mm_files_that_are_none(tmp_path: Path) -> None:
    path = shard(tmp_path / "shard.parquet", MM)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-30])
    for odd in (cut, tmp_path / "none.parquet", put(tmp_path / "text.parquet", "PAR1")):
        with pytest.raises(ModelError, match="cannot be read"):
            load_taobao_mm([odd])
    less = {name: column for name, column in MM.items() if name != "206"}
    with pytest.raises(ModelError, match="206"):
        load_taobao_mm([shard(tmp_path / "less.parquet", less)])
    with pytest.raises(ModelError, match="no shard"):
        load_taobao_mm([])
    with pytest.raises(ModelError, match="max_rows"):
        load_taobao_mm([path], max_rows=0)
    data = load_taobao_mm([path])
    with pytest.raises(ModelError, match="indices"):
        data.batch([3])
    with pytest.raises(ModelError, match="visible"):
        data.batch([0], visible=-1)


def load_csv(kind: str, path: Path) -> EventStore:
    if kind == "taobao":
        return load_taobao(path)
    return load_kuairand([path]) if kind == "kuairand" else load_movielens(path)


GOOD = {"taobao": TAOBAO, "kuairand": KUAIRAND, "movielens": RATINGS}


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("taobao", "cart", "look", r"row 2, column 'behavior'.*'look'.*pv, buy, cart, fav"),
        ("taobao", "7,101", "7,-101", r"row 2, column 'item'.*negative.*-101"),
        ("taobao", "7,101", "7,1e3", r"Row #2"),
        ("taobao", "7,101", "7,", r"Row #2"),
        ("taobao", "7,101", "7,99999999999999999999", r"Row #2"),
        ("taobao", "7,101", "7,101,1", r"Row #2"),
        ("taobao", "15", "99", "no event lies in the time window"),
        ("kuairand", "time_ms", "time", "time_ms"),
        ("kuairand", "1649400000500,1,", "1649400000500,2,", r"row 2, column 'is_click'"),
        ("kuairand", "0,12,", "-1,12,", r"row 3, column 'user_id'"),
        ("movielens", "3.5", "3.7", r"row 2, column 'rating'"),
        ("movielens", "3.5", "nan", r"row 2, column 'rating'.*not a number"),
        ("movielens", "5.0", "6", r"row 3, column 'rating'"),
        ("movielens", "974820889", "-974820889", r"row 4, column 'timestamp'"),
        ("movielens", "rating,", "stars,", "rating"),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, kind: str, old: str, new: str, said: str) -> None:
    assert old in GOOD[kind]
    path = put(tmp_path / "log.csv", GOOD[kind].replace(old, new))
    with pytest.raises(ModelError, match=said) as caught:
        load_csv(kind, path)
    assert "log.csv" in str(caught.value)


def test_options_and_side_files_that_do_not_fit(tmp_path: Path) -> None:
    log = put(tmp_path / "log.csv", KUAIRAND)
    with pytest.raises(ModelError, match="is_click"):
        load_kuairand([log], label="is_rand")
    with pytest.raises(ModelError, match="no log"):
        load_kuairand([])
    twice = put(tmp_path / "twice.csv", VIDEOS + VIDEOS.splitlines()[-1] + "\n")
    with pytest.raises(ModelError, match=r"row 4, column 'video_id'.*twice"):
        load_kuairand([log], videos=twice)
    words = put(tmp_path / "words.csv", VIDEOS.replace("12,65", "cats,12"))
    with pytest.raises(ModelError, match=r"row 2, column 'tag'"):
        load_kuairand([log], videos=words)
    with pytest.raises(ModelError, match="liked"):
        load_movielens(put(tmp_path / "ratings.csv", RATINGS), liked=7)


@pytest.mark.parametrize("kind", GOOD)
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    header = "" if kind == "taobao" else GOOD[kind].splitlines()[0] + "\n"
    cut = tmp_path / "log.csv.gz"
    cut.write_bytes(gzip.compress(GOOD[kind].encode() * 50)[:-20])
    for odd in (tmp_path / "none.csv", tmp_path, put(tmp_path / "empty.csv", header), cut):
        with pytest.raises(ModelError):
            load_csv(kind, odd)


def same(one: EventStore, other: EventStore) -> bool:
    return events(one) == events(other)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(kind=st.sampled_from(sorted(GOOD)), data=st.data())
def test_the_order_of_rows_changes_nothing(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    lines = GOOD[kind].splitlines()
    head = [] if kind == "taobao" else [lines.pop(0)]
    mixed = head + data.draw(st.permutations(lines))
    store = load_csv(kind, put(tmp_path / "mixed.csv", "\n".join(mixed)))
    assert same(store, load_csv(kind, put(tmp_path / "plain.csv", GOOD[kind])))


def either(load: Callable[[Path], object], path: Path) -> None:
    """Load, or be told by a ModelError why not; anything else fails the test."""
    try:
        load(path)
    except ModelError as error:
        assert str(error)


MORSELS = st.sampled_from([b"", b",", b"\n", b'"', b"\xff", b"\x00", b"-", b"9" * 25, b"nan", b"x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120)
@given(
    kind=st.sampled_from(sorted(GOOD)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), MORSELS), max_size=3),
    junk=st.one_of(st.none(), st.binary(max_size=60)),
)
def test_any_bytes_load_or_are_refused(
    tmp_path: Path, kind: str, edits: list[tuple[float, int, bytes]], junk: bytes | None
) -> None:
    content = GOOD[kind].encode() if junk is None else junk
    for where, removed, morsel in edits:
        place = int(where * len(content))
        content = content[:place] + morsel + content[place + removed :]
    path = tmp_path / "fuzz.csv"
    path.write_bytes(content)
    either(lambda p: load_csv(kind, p), path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(where=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
@example(where=0.375, byte=128, cut=False)  # a column's name that is no UTF-8
def test_any_shard_loads_or_is_refused(tmp_path: Path, where: float, byte: int, cut: bool) -> None:
    good = tmp_path / "good.parquet"
    if not good.exists():
        shard(good, MM)
    content = bytearray(good.read_bytes())
    place = int(where * (len(content) - 1))
    content[place] = byte
    path = tmp_path / "fuzz.parquet"
    path.write_bytes(bytes(content[:place] if cut else content))
    either(lambda p: load_taobao_mm([p]), path)
