"""The service without a port: whole-network scores, batches, the bounded cache, appends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ModelError
from models.longer import kvcache, scoring
from models.longer.kvcache import encode
from models.serve.batcher import Batcher, Job
from models.serve.figures import percentile, summary
from models.serve.refusal import Busy, Closed, NotAppendable, NotEncoded, NotFinite, UnknownVersion
from models.serve.request import Digest, History, Whose, events_of
from models.serve.service import Service, Settings
from models.serve.users import EncodedUsers, Entry
from models.serve.versions import Versions
from tests.servecases import CONFIG, OLDEST, Model, body, candidates, history, whose

PATIENT = Settings(max_wait_ms=200, max_batch=8)
AT_ONCE = Settings(max_wait_ms=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture
def service(model: Model, tmp_path: Path) -> Iterator[Service]:
    model.publish(tmp_path)
    with Service(Versions(tmp_path), AT_ONCE) as opened:
        yield opened


def ask(service: Service, asked: dict[str, Any], *, encoded: bool = False) -> Any:
    """Send a score request, with its history unless that is ``encoded``."""
    sent = None if encoded else history(asked)
    return service.score(whose(asked), candidates(asked), sent, cold_start=not encoded)


# --- right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [0, 1, 11, 20])
def test_scores_are_the_whole_networks(service: Service, model: Model, events: int) -> None:
    asked = body(events, events=events, candidates=7)
    answer = ask(service, asked).result()
    whole = model.logits(asked)
    assert answer.logits.dtype == np.float64
    assert np.abs(answer.logits - whole).max() < 1e-12
    assert np.abs(answer.probabilities - 1 / (1 + np.exp(-whole))).max() < 1e-12
    assert (answer.version, answer.events, answer.cached) == (1, events, False)
    again = ask(service, asked, encoded=True).result()
    assert again.cached
    assert np.array_equal(again.logits, answer.logits)
    # The comparison can fail: another user.
    other = body(events, events=events, candidates=7) | {"user": asked["user"] ^ 1}
    assert np.abs(ask(service, other).result().logits - whole).max() > 1e-6


def test_in_single_precision_scores_are_near(tmp_path: Path) -> None:
    model = Model(dtype=torch.float32)
    model.publish(tmp_path)
    asked = body(3, events=20, candidates=50)
    with Service(Versions(tmp_path)) as service:
        answer = ask(service, asked).result()
    assert answer.logits.dtype == np.float32
    assert np.abs(answer.logits - model.logits(asked)).max() < 2e-6


def test_batching_changes_no_score(model: Model, tmp_path: Path) -> None:
    model.publish(tmp_path)
    asked = [body(n, events=n % 13, candidates=1 + n % 5) for n in range(24)]
    with Service(Versions(tmp_path), AT_ONCE) as alone:
        one = [ask(alone, a).result() for a in asked]
        assert alone.stats()["batches"]["by_requests"] == {"1": 24}
    with Service(Versions(tmp_path), PATIENT) as together:
        futures = [ask(together, a) for a in asked]
        many = [future.result() for future in futures]
        stats = together.stats()
    assert stats["batches"]["by_requests"] == {"8": 3}
    assert stats["histories_encoded"] == 24
    for a, b, c in zip(one, many, asked, strict=True):
        assert np.abs(a.logits - b.logits).max(initial=0) < 1e-12
        assert np.abs(model.logits(c) - b.logits).max(initial=0) < 1e-12


def test_equal_histories_of_a_batch_are_encoded_once(model: Model, tmp_path: Path) -> None:
    model.publish(tmp_path)
    asked = body(1)
    with Service(Versions(tmp_path), PATIENT) as service:
        futures = [ask(service, asked) for _ in range(8)]
        logits = [future.result().logits for future in futures]
        assert service.stats()["histories_encoded"] == 1
    assert all(np.array_equal(a, logits[0]) for a in logits)


def test_a_batch_is_bounded_in_candidates(model: Model, tmp_path: Path) -> None:
    model.publish(tmp_path)
    settings = replace(PATIENT, max_batch_candidates=10, max_wait_ms=100)
    with Service(Versions(tmp_path), settings) as service:
        futures = [ask(service, body(n, candidates=c)) for n, c in enumerate([4, 6, 25, 3])]
        assert [len(future.result().logits) for future in futures] == [4, 6, 25, 3]
        assert service.stats()["batches"]["by_requests"] == {"1": 2, "2": 1}


# --- what is kept ---------------------------------------------------------------------------------


def test_another_history_under_the_same_key_is_not_mistaken(service: Service, model: Model) -> None:
    first = body(1)
    ask(service, first).result()
    for column in ("item", "category", "action", "time_s"):
        other = body(1)
        values = other["history"][column]
        values[5] = (values[5] + 1) % 3 if column != "time_s" else (values[4] + values[5]) / 2
        answer = ask(service, other).result()
        assert not answer.cached
        assert np.abs(answer.logits - model.logits(other)).max() < 1e-12
        # It has taken the place of the first one.
        kept = ask(service, first, encoded=True).result()
        assert np.array_equal(kept.logits, answer.logits)


def test_another_request_time_is_another_key(service: Service, model: Model) -> None:
    asked = body(1)
    ask(service, asked).result()
    later = asked | {"request_time_s": asked["request_time_s"] + 86_400.0}
    with pytest.raises(NotEncoded, match=r"user: is not encoded for request time 17000\d+.0 in ve"):
        ask(service, later, encoded=True)
    answer = ask(service, later).result()
    assert not answer.cached
    assert np.abs(answer.logits - model.logits(later)).max() < 1e-12
    assert ask(service, asked, encoded=True).result().cached


def test_the_cache_is_bounded_and_the_least_used_go(model: Model) -> None:
    def entry(seed: int) -> Entry:
        asked = body(seed, events=9)
        events = events_of(history(asked), asked["request_time_s"], CONFIG)
        cache = encode(model.network, torch.tensor(seed), events, model.tables)
        return Entry(cache=cache, digest=Digest(events))

    entries = {n: entry(n) for n in range(6)}
    size = entries[0].cache.held_nbytes
    users = EncodedUsers(max_bytes=3 * size, max_users=10)
    for n in range(3):
        users.put((1, n, 0.0), entries[n])
    assert users.find((1, 0, 0.0)) is entries[0]  # used: now the newest
    users.put((1, 3, 0.0), entries[3])
    assert users.find((1, 1, 0.0)) is None
    users.put((1, 3, 0.0), entries[4])  # in its own place
    assert users.find((1, 3, 0.0), entries[3].digest) is None
    assert users.find((1, 3, 0.0), entries[4].digest) is entries[4]
    assert not users.holds((2, 3, 0.0))
    counts = users.counts()
    assert (counts.users, counts.held_bytes, counts.evicted) == (3, 3 * size, 1)
    assert (counts.hits, counts.misses) == (2, 2)
    few = EncodedUsers(max_bytes=10 * size, max_users=2)
    for n in range(4):
        few.put((1 + n % 2, n, 0.0), entries[n])
    assert few.counts().users == 2
    few.keep_versions({2})
    assert (few.counts().users, few.counts().held_bytes) == (1, size)
    for nothing in ({"max_bytes": size - 1, "max_users": 9}, {"max_bytes": size, "max_users": 0}):
        none = EncodedUsers(**nothing)
        none.put((1, 0, 0.0), entries[0])
        assert none.counts().users == 0
    with pytest.raises(ModelError, match="max_users: no such bound"):
        EncodedUsers(max_bytes=0, max_users=-1)


def test_without_room_everything_is_encoded_anew(model: Model, tmp_path: Path) -> None:
    model.publish(tmp_path)
    asked = body(1)
    with Service(Versions(tmp_path), replace(AT_ONCE, cache_users=0)) as service:
        for _ in range(2):
            answer = ask(service, asked).result()
            assert not answer.cached
            assert np.abs(answer.logits - model.logits(asked)).max() < 1e-12
        with pytest.raises(NotEncoded):
            ask(service, asked, encoded=True)


# --- append ---------------------------------------------------------------------------------------


def test_appended_events_are_those_of_the_longer_history(tmp_path: Path) -> None:
    model = Model(OLDEST)
    model.publish(tmp_path)
    asked = body(2, events=17, candidates=6)
    # As append has it: what comes after the time of encoding has age 0.
    asked["request_time_s"] = asked["history"]["time_s"][10]
    held = asked | {"history": {n: c[:11] for n, c in asked["history"].items()}}
    capped = np.minimum(asked["history"]["time_s"], asked["request_time_s"]).tolist()
    aged = asked | {"history": asked["history"] | {"time_s": capped}}
    with Service(Versions(tmp_path), AT_ONCE) as service:
        assert service.encode(whose(held), history(held)).result().events == 11
        for start, end in ((11, 12), (12, 17)):
            answer = service.append(whose(asked), history(asked, slice(start, end))).result()
            assert (answer.events, answer.cached) == (end, True)
        scored = ask(service, asked, encoded=True).result()
        assert scored.events == 17
        assert np.abs(scored.logits - model.logits(aged)).max() < 1e-12
        assert np.abs(scored.logits - model.logits(held)).max() > 1e-6
        # The same events at the same ages, sent whole, are recognised.
        assert ask(service, aged).result().cached
        with pytest.raises(NotAppendable, match="max_length: the history outgrows the network"):
            service.append(whose(asked), history(asked, slice(13, 17))).result()
        assert ask(service, asked, encoded=True).result().events == 17
        with pytest.raises(ModelError, match="history: is empty"):
            service.append(whose(asked), history(asked, slice(0, 0)))
        nobody = Whose(user=1, request_time_s=1.0)
        with pytest.raises(NotEncoded):
            service.append(nobody, history(asked))


@pytest.mark.parametrize(
    "change", [{"alignment": "newest"}, {"positions": "newest"}, {"sampling": "uniform"}]
)
def test_what_cannot_be_appended_to_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    config = replace(OLDEST, **change)
    Model(config).publish(tmp_path)
    asked = body(1, config=config)
    with Service(Versions(tmp_path), AT_ONCE) as service:
        service.encode(whose(asked), history(asked)).result()
        with pytest.raises(NotAppendable, match=f"{next(iter(change))}: cached tokens would"):
            service.append(whose(asked), history(asked))


# --- versions -------------------------------------------------------------------------------------


def test_encoded_users_stay_with_their_version(tmp_path: Path) -> None:
    models = {1: Model(seed=1), 2: Model(seed=2), 3: Model(seed=3)}
    models[1].publish(tmp_path)
    asked = body(1)
    with Service(Versions(tmp_path, keep=2), AT_ONCE) as service:
        assert ask(service, asked).result().version == 1
        models[2].publish(tmp_path)
        assert service.versions.reload()
        # Encoded for version 1, which is still held; sent whole, version 2 answers.
        answer = ask(service, asked, encoded=True).result()
        assert answer.version == 1
        assert np.abs(answer.logits - models[1].logits(asked)).max() < 1e-12
        named = asked | {"version": 2}
        with pytest.raises(NotEncoded, match="in version 2"):
            ask(service, named, encoded=True)
        answer = ask(service, asked).result()
        assert answer.version == 2
        assert np.abs(answer.logits - models[2].logits(asked)).max() < 1e-12
        assert ask(service, asked, encoded=True).result().version == 2
        assert ask(service, asked | {"version": 1}, encoded=True).result().version == 1
        assert service.users.counts().users == 2
        models[3].publish(tmp_path)
        assert service.versions.reload()
        assert service.users.counts().users == 1  # those of version 1 are forgotten
        with pytest.raises(UnknownVersion, match="one of 3, 2"):
            ask(service, asked | {"version": 1})
        assert service.stats()["answered_by_version"] == {"1": 3, "2": 2}


def test_what_is_in_flight_ends_on_the_version_it_began_with(tmp_path: Path) -> None:
    models = {n: Model(seed=n) for n in (1, 2, 3)}
    models[1].publish(tmp_path)
    asked = body(1)
    settings = Settings(max_wait_ms=300)
    with Service(Versions(tmp_path, keep=1), settings) as service:
        waiting = ask(service, asked)
        for n in (2, 3):
            models[n].publish(tmp_path)
            assert service.versions.reload()
        assert not waiting.done()
        also = ask(service, asked)
        for future, number in ((waiting, 1), (also, 3)):
            answer = future.result()
            assert answer.version == number
            assert np.abs(answer.logits - models[number].logits(asked)).max() < 1e-12
        # Nothing is kept of a version that is gone.
        assert service.users.counts().users == 1
        assert service.stats()["held_versions"] == [3]


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_request_that_fails_fails_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.publish(tmp_path)
    asked = [body(n) for n in range(8)]
    original = kvcache.encode_many

    def failing(network: Any, users: torch.Tensor, *rest: Any) -> Any:
        if asked[3]["user"] in users.tolist():
            raise RuntimeError("a fault of ours")
        return original(network, users, *rest)

    monkeypatch.setattr("models.serve.service.encode_many", failing)
    with Service(Versions(tmp_path), PATIENT) as service:
        futures = [ask(service, a) for a in asked]
        for number, (future, sent) in enumerate(zip(futures, asked, strict=True)):
            if number == 3:
                with pytest.raises(RuntimeError, match="a fault of ours"):
                    future.result()
            else:
                assert np.abs(future.result().logits - model.logits(sent)).max() < 1e-12


def test_a_score_that_is_no_number_is_no_answer(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.publish(tmp_path)
    original = scoring.score_many

    def broken(network: Any, asked: Any, lookup: Any) -> Any:
        scores = original(network, asked, lookup)
        scores[0][2] = float("nan")
        return scores

    with Service(Versions(tmp_path), PATIENT) as service:
        monkeypatch.setattr("models.serve.service.score_many", broken)
        futures = [ask(service, body(n)) for n in range(8)]
        with pytest.raises(NotFinite, match=r"score of candidates\[2\], version 1: is not finite"):
            futures[0].result()
        assert all(np.isfinite(future.result().logits).all() for future in futures[1:])


def test_requests_in_line_are_bounded_and_answered_at_the_end() -> None:
    done: list[int] = []

    def run(jobs: list[Job]) -> None:
        time.sleep(0.05)
        for job in jobs:
            done.append(job.weight)
            job.future.set_result(None)

    batcher: Batcher[Job] = Batcher(run, max_batch=2, max_weight=100, max_wait_s=10, max_waiting=3)
    began = time.monotonic()
    for weight in (1, 2):
        batcher.put(Job(weight=weight))
    time.sleep(0.02)  # both are being done, for 50 ms
    for weight in (3, 4, 5):
        batcher.put(Job(weight=weight))
    with pytest.raises(Busy, match=r"too many requests are waiting \(found 3\); expected try"):
        batcher.put(Job())
    batcher.close()  # answers what waits, without waiting for company
    assert done == [1, 2, 3, 4, 5]
    assert time.monotonic() - began < 5
    with pytest.raises(Closed):
        batcher.put(Job())


def test_a_request_alone_waits_for_company_so_long_and_no_longer() -> None:
    waited: list[float] = []

    def run(jobs: list[Job]) -> None:
        waited.append(time.perf_counter() - jobs[0].arrived_s)
        jobs[0].future.set_result(None)

    batcher: Batcher[Job] = Batcher(run, max_batch=2, max_weight=100, max_wait_s=0.1, max_waiting=3)
    job = Job()
    batcher.put(job)
    job.future.result(5)
    heavy = Job(weight=100)
    batcher.put(heavy)
    heavy.future.result(5)
    batcher.close()
    assert waited[0] >= 0.1
    assert waited[1] < 0.1


def test_a_request_that_was_given_up_is_not_computed(service: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(ask, service, body(n)) for n in range(20)]
        futures = [ask(service, body(100 + n)) for n in range(20)]
        cancelled = sum(future.cancel() for future in futures)
        assert all(f.result().result().version == 1 for f in first)
    service.close()
    assert service.stats()["batches"]["by_requests"]
    assert service.stats()["latency"]["score"]["count"] == 40 - cancelled


@pytest.mark.parametrize(
    ("name", "value"), [("max_batch", 0), ("max_wait_ms", -1.0), ("cache_mib", -1)]
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{name}: bad setting"):
        Settings(**{name: value})


def test_columns_may_be_arrays(service: Service, model: Model) -> None:
    asked = body(1)
    columns = {n: np.array(c) for n, c in asked["history"].items()}
    answer = service.score(whose(asked), candidates(asked), History(**columns)).result()
    assert np.abs(answer.logits - model.logits(asked)).max() < 1e-12
    for name, wrong, words in (
        ("item", columns["item"].astype(float), r"history.item\[0\]: is no id"),
        ("item", columns["item"][None], r"history.item\[0\]: is no id"),
        ("item", -columns["item"] - 1, r"history.item\[0\]: is no id"),
        ("item", [True] * 11, r"history.item\[0\]: is no id"),
        ("time_s", ["soon"] * 11, "history.time_s: is no column of times"),
        ("time_s", columns["time_s"][None], "history.time_s: is no column of times"),
    ):
        with pytest.raises(ModelError, match=words):
            service.encode(whose(asked), History(**(columns | {name: wrong})))


def test_the_example_of_the_page_runs(
    repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (repo / "docs" / "models" / "serving.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    Model().publish(tmp_path / "versions")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "serving.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.startswith("1 [")


def test_without_http_nothing_but_torch_is_needed(repo: Path) -> None:
    names = "{m.split('.')[0] for m in sys.modules}"
    unwanted = "{'fastapi', 'pydantic', 'uvicorn', 'httpx', 'pandas', 'pyarrow', 'simpy'}"
    code = "import sys; sys.path.insert(0, 'benchmarks'); import serving, models.serve.service; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(sorted({names} & {unwanted}))"],
        cwd=repo,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_percentiles_by_nearest_rank() -> None:
    assert [percentile([1, 2, 3, 4], p) for p in (0, 25, 26, 50, 99, 100)] == [1, 1, 2, 2, 4, 4]
    hundred = [n / 1000 for n in range(100, 0, -1)]
    assert summary(hundred) == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0, "max_ms": 100.0}
    assert summary([]) == {"p50_ms": None, "p95_ms": None, "p99_ms": None, "max_ms": None}
