"""The service over HTTP, without a port: scores, versions, figures, and what can be wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.serve.http import build_app
from models.serve.service import Service, Settings
from models.serve.versions import Versions
from tests.servecases import CONFIG, OLDEST, Model, body, damage

Body = dict[str, Any]


class Client:
    """Speaks to an application in this process, one request at a time."""

    def __init__(self, app: Any) -> None:
        self._transport = httpx.ASGITransport(app)

    def request(self, method: str, path: str, **sent: Any) -> Any:
        async def send() -> Any:
            url = "http://here"
            async with httpx.AsyncClient(transport=self._transport, base_url=url) as client:
                return await client.request(method, path, **sent)

        return asyncio.run(send())

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def post(self, path: str, **sent: Any) -> Any:
        return self.request("POST", path, **sent)

    def post_text(self, path: str, content: bytes | str) -> Any:
        """Send a body that is called JSON, whatever it is."""
        return self.post(path, content=content, headers={"content-type": "application/json"})


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture
def service(model: Model, tmp_path: Path) -> Iterator[Service]:
    model.publish(tmp_path)
    settings = Settings(max_wait_ms=0, max_candidates=50)
    with Service(Versions(tmp_path), settings) as opened:
        yield opened


@pytest.fixture
def client(service: Service) -> Client:
    return Client(build_app(service, max_body_bytes=20_000))


def encoded(asked: Body) -> Body:
    """The request for a user who was encoded before."""
    return {name: value for name, value in asked.items() if name != "history"}


def to_encode(asked: Body) -> Body:
    return {name: value for name, value in asked.items() if name != "candidates"}


# --- right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("events", "candidates"), [(1, 1), (11, 7), (20, 50)])
def test_scores_are_the_whole_networks(
    client: Client, model: Model, events: int, candidates: int
) -> None:
    asked = body(events, events=events, candidates=candidates)
    whole = model.logits(asked)
    first = client.post("/v1/encode", json=to_encode(asked)).json()
    assert (first["version"], first["events"], first["cached"]) == (1, events, False)
    assert first["held_bytes"] > 0
    for sent in (asked, encoded(asked)):
        answer = client.post("/v1/score", json=sent)
        assert answer.status_code == 200
        found = answer.json()
        # JSON writes as many digits as a double has.
        assert np.abs(np.array(found["logits"]) - whole).max() < 1e-12
        assert np.abs(np.array(found["probabilities"]) - 1 / (1 + np.exp(-whole))).max() < 1e-12
        assert (found["version"], found["events"], found["cached"]) == (1, events, True)
    other = body(events + 100, events=events, candidates=candidates)
    found = client.post("/v1/score", json=other).json()
    assert np.abs(np.array(found["logits"]) - whole).max() > 1e-6


def test_a_user_without_events_is_said_to_be_one(client: Client, model: Model) -> None:
    asked = body(1, events=0)
    refused = client.post("/v1/score", json=asked)
    assert refused.status_code == 422
    assert "cold_start" in refused.json()["errors"][0]["expected"]
    whole = model.logits(asked)
    for sent in (asked, encoded(asked)):
        found = client.post("/v1/score", json=sent | {"cold_start": True}).json()
        assert np.abs(np.array(found["logits"]) - whole).max() < 1e-12
    assert client.post("/v1/encode", json=to_encode(asked)).status_code == 422
    assert client.post("/v1/encode", json=to_encode(asked) | {"cold_start": True}).json()["cached"]


def test_events_are_appended_where_the_network_allows_it(tmp_path: Path) -> None:
    model = Model(OLDEST)
    model.publish(tmp_path)
    asked = body(2, events=12)
    with Service(Versions(tmp_path), Settings(max_wait_ms=0)) as service:
        client = Client(build_app(service))
        assert client.get("/v1/versions").json()["held"][0]["append"] is True
        columns = asked["history"]
        parts = [{n: c[rows] for n, c in columns.items()} for rows in (slice(9), slice(9, 12))]
        client.post("/v1/encode", json=to_encode(asked) | {"history": parts[0]})
        answer = client.post("/v1/append", json=to_encode(asked) | {"history": parts[1]})
        assert (answer.status_code, answer.json()["events"]) == (200, 12)
        found = client.post("/v1/score", json=encoded(asked)).json()
        assert np.abs(np.array(found["logits"]) - model.logits(asked)).max() < 1e-12
        again = client.post("/v1/append", json=to_encode(asked))
        assert again.status_code == 409
        assert again.json()["errors"][0]["where"] == "max_length"


def test_versions_are_named_swapped_and_refused(
    client: Client, model: Model, service: Service
) -> None:
    asked = body(1)
    other = Model(seed=9)
    other.publish(service.versions.folder)
    assert client.post("/v1/reload").json()["changed"] is True
    assert client.post("/v1/reload").json()["changed"] is False
    listed = client.get("/v1/versions").json()
    assert listed["current"] == 2
    assert [v["version"] for v in listed["held"]] == [2, 1]
    assert {"max_length": 20, "num_actions": 3, "num_cross": 2, "append": False}.items() <= (
        listed["held"][0].items()
    )
    assert listed["held"][0]["append_problem"].startswith("alignment: cached tokens would change")
    assert listed["held"][0]["precision"] == "float64"
    for number, right in ((1, model), (2, other), (None, other)):
        found = client.post("/v1/score", json=asked | {"version": number}).json()
        assert found["version"] == (number or 2)
        assert np.abs(np.array(found["logits"]) - right.logits(asked)).max() < 1e-12
    unknown = client.post("/v1/score", json=asked | {"version": 7})
    assert unknown.status_code == 404
    assert unknown.json() == {
        "errors": [
            {
                "where": "version",
                "problem": "unknown version",
                "found": "7",
                "expected": "one of 2, 1",
            }
        ]
    }
    other.publish(service.versions.folder)
    damage(service.versions.folder, 3)
    answer = client.post("/v1/reload").json()
    assert (answer["changed"], answer["current"]) == (False, 2)
    assert answer["failed"][0]["version"] == 3
    assert "cut short or damaged" in answer["failed"][0]["problem"]
    assert client.get("/health").json() == {"status": "ok", "version": 2}
    assert client.post("/v1/score", json=asked).status_code == 200


def test_a_user_who_was_not_encoded(client: Client) -> None:
    asked = body(1)
    for path, sent in (("/v1/score", encoded(asked)), ("/v1/append", to_encode(asked))):
        answer = client.post(path, json=sent)
        assert answer.status_code == 404
        (error,) = answer.json()["errors"]
        assert error["where"] == "user"
        assert error["found"] == str(asked["user"])
        assert error["expected"] == "an encode request before, or the history in this one"
    client.post("/v1/encode", json=to_encode(asked))
    assert client.post("/v1/append", json=to_encode(asked)).status_code == 409


# --- wrong ----------------------------------------------------------------------------------------


def put(*path: str | int, value: Any) -> Callable[[Body], None]:
    """Return what puts a value at a place in a request."""

    def change(asked: Any) -> None:
        for part in path[:-1]:
            asked = asked[part]
        asked[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Body], None]:
    def change(asked: Any) -> None:
        for part in path[:-1]:
            asked = asked[part]
        del asked[path[-1]]

    return change


def grow(asked: Body) -> None:
    asked["history"] = body(1, events=21)["history"]


def many(asked: Body) -> None:
    asked["candidates"] = body(1, candidates=51)["candidates"]


def nobody(asked: Body) -> None:
    asked["candidates"] = {"item": [], "category": [], "cross": []}


ID = "0 to 2^63 - 1"
WRONG = [
    (put("history", "item", 3, value=-1), "history.item[3]", "is no id", "-1", ID),
    (put("history", "item", 3, value=2**63), "history.item[3]", "is no id", str(2**63), ID),
    (put("history", "category", 0, value=-5), "history.category[0]", "is no id", "-5", ID),
    (
        put("history", "category", 0, value=2**70),
        "history.category[0]",
        "is no id",
        str(2**70),
        f"a whole number from {ID}",
    ),
    (put("history", "item", 2, value=1.5), "history.item[2]", "has another type", "1.5", "a valid"),
    (put("history", "item", 2, value="7"), "history.item[2]", "has another type", "7", "a valid"),
    (put("history", "item", 2, value=True), "history.item[2]", "has another type", "True", "a val"),
    (put("history", "item", 2, value=None), "history.item[2]", "has another type", None, "a valid"),
    (put("history", "item", value=3), "history.item", "has another type", "3", "a valid list"),
    (put("history", "action", 4, value=3), "history.action[4]", "no action that is", "3", "0 to 2"),
    (put("history", "action", 4, value=-1), "history.action[4]", "is no id", "-1", ID),
    (
        put("history", "time_s", 4, value=float("nan")),
        "history.time_s[4]",
        "is no time",
        "nan",
        "a finite",
    ),
    (
        put("history", "time_s", 4, value=float("inf")),
        "history.time_s[4]",
        "is no time",
        "inf",
        "a finite",
    ),
    (
        put("history", "time_s", 4, value=0),
        "history.time_s[4]",
        "is before the event before it",
        "0.0",
        "oldest event first",
    ),
    (
        put("history", "time_s", 10, value=1.8e9),
        "history.time_s[10]",
        "is after the request",
        "1800000000.0",
        "1700000000.0 (request_time_s) or before",
    ),
    (
        put("history", "category", value=[1]),
        "history.category",
        "has another length",
        "1",
        "11, as item has",
    ),
    (drop("history", "time_s"), "history.time_s", "is missing", None, "a value"),
    (grow, "history", "is longer than the network's", "21 events", "the newest 20"),
    (drop("candidates"), "candidates", "is missing", None, "a value"),
    (nobody, "candidates", "are none", None, "at least one"),
    (many, "candidates", "are too many", "51", "50 at most"),
    (put("candidates", "item", 1, value=-1), "candidates.item[1]", "is no id", "-1", ID),
    (put("candidates", "category", value=[1]), "candidates.category", "another length", "1", "5"),
    (put("candidates", "cross", value=[]), "candidates.cross", "has another length", "0", "5, as"),
    (
        put("candidates", "cross", 2, value=[1]),
        "candidates.cross[2]",
        "has another number of cross features",
        "1",
        "2 ids",
    ),
    (put("candidates", "cross", 2, 1, value=-3), "candidates.cross[2][1]", "is no id", "-3", ID),
    (put("user", value=-1), "user", "is no id", "-1", ID),
    (put("user", value=2**64), "user", "is no id", str(2**64), ID),
    (drop("user"), "user", "is missing", None, "a value"),
    (put("request_time_s", value=float("nan")), "request_time_s", "is no time", "nan", "seconds"),
    (put("request_time_s", value="now"), "request_time_s", "another type", "now", "a valid number"),
    (put("verison", value=1), "verison", "is no field that is known", None, "no such field"),
    (put("version", value="latest"), "version", "has another type", "latest", "a valid integer"),
]


@pytest.mark.parametrize(
    ("change", "where", "problem", "found", "expected"), WRONG, ids=[w[1] for w in WRONG]
)
def test_what_is_wrong_is_said(
    client: Client,
    change: Callable[[Body], None],
    where: str,
    problem: str,
    found: str | None,
    expected: str,
) -> None:
    asked = body(1)
    change(asked)
    answer = client.post_text("/v1/score", json.dumps(asked))  # which writes NaN, as some do
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["where"] == where
    assert problem in error["problem"]
    assert error["found"] == found
    assert expected in error["expected"]
    assert client.post("/v1/score", json=body(1)).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "where"),
    [
        (b"", 422, "body"),
        (b'{"user": 3', 422, "body"),
        (b"[1]", 422, "body"),
        (b"\xff\xfe{", 400, "POST /v1/score"),
        (b'{"user": "' + b"x" * 20_000 + b'"}', 413, "POST /v1/score"),
    ],
)
def test_bodies_that_are_none(client: Client, content: bytes, status: int, where: str) -> None:
    answer = client.post_text("/v1/score", content)
    assert answer.status_code == status
    (error,) = answer.json()["errors"]
    assert error["where"] == where
    assert error["problem"]


def test_a_body_that_is_not_called_json(client: Client) -> None:
    answer = client.post("/v1/score", content=json.dumps(body(1)))
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["expected"] == "one JSON object, sent as application/json"


def test_many_errors_are_cut_short(client: Client) -> None:
    asked = body(1)
    asked["candidates"]["item"] = ["x"] * 40
    errors = client.post("/v1/score", json=asked).json()["errors"]
    assert len(errors) == 21
    assert errors[-1]["problem"] == "20 more errors"


def test_paths_and_methods_that_are_not_there(client: Client) -> None:
    for method, path, status in (("GET", "/v2/score", 404), ("GET", "/v1/score", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["errors"][0]["where"] == f"{method} {path}"


def test_a_service_that_is_closed_or_full_says_so(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._batcher, "max_waiting", 0)
    for problem in ("too many requests are waiting", "is shutting down"):
        answer = client.post("/v1/score", json=body(1))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["errors"][0]["problem"] == problem
        service.close()


# --- figures --------------------------------------------------------------------------------------


def test_figures(client: Client) -> None:
    for seed in (1, 2, 1, 1):
        assert client.post("/v1/score", json=body(seed, candidates=3)).status_code == 200
    client.post("/v1/encode", json=to_encode(body(3)))
    client.post("/v1/score", json={})
    client.get("/nowhere")
    stats = client.get("/v1/stats").json()
    assert stats["cache"] | {"held_bytes": 0, "max_bytes": 0} == {
        "users": 3,
        "held_bytes": 0,
        "max_bytes": 0,
        "hits": 2,
        "misses": 3,
        "hit_share": 0.4,
        "evicted": 0,
    }
    assert (stats["histories_encoded"], stats["candidates_scored"]) == (3, 12)
    assert stats["answered_by_version"] == {"1": 5}
    assert stats["refused"] == {"404": 1, "422": 1}
    assert (stats["current_version"], stats["held_versions"]) == (1, [1])
    assert stats["batches"]["count"] == 5
    assert {kind: times["count"] for kind, times in stats["latency"].items()} == {
        "encode": 1,
        "score": 4,
    }
    assert {path: times["count"] for path, times in stats["http"].items()} == {
        "/v1/encode": 1,
        "/v1/score": 4,
    }
    for times in (stats["latency"]["score"], stats["http"]["/v1/score"]):
        assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"] <= times["max_ms"]
    text = client.get("/metrics").text
    assert 'tandem_http_seconds_count{path="/v1/score"} 4\n' in text
    assert "tandem_cache_hits_total 2\n" in text
    assert 'tandem_refused_total{status="422"} 1\n' in text
    line = re.compile(
        r'(# TYPE \w+ (summary|counter|gauge)|\w+(\{\w+="[^"]+"(,\w+="[^"]+")*\})? \S+)$'
    )
    assert all(line.match(each) for each in text.splitlines())


def test_the_form_of_requests_is_published(client: Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/v1/encode", "/v1/append", "/v1/score", "/v1/versions", "/v1/reload", "/v1/stats"),
        *("/health", "/metrics"),
    }
    assert set(schema["components"]["schemas"]["ScoreBody"]["properties"]) == {
        *("user", "request_time_s", "version", "candidates", "history", "cold_start")
    }
    assert CONFIG.num_cross == 2
