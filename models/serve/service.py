"""The service without a port: requests in, answers as futures.

A request is checked against the version it will be answered by before it waits; so one that cannot
be answered costs nobody else anything, and a batch holds good requests only. It keeps that version
until it is answered. The batcher's thread is the only one that computes: it encodes the histories
of a batch at once (equal ones once), then scores all candidates at once, version by version.

    with Service(Versions("versions")) as service:
        service.score(whose, candidates, history).result().logits

Source of the idea that a history is encoded once and scored many times: LONGER (arXiv 2505.04421),
serving with a key-value cache. Everything about requests, batches and swaps is ours.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from models.config import LongerConfig
from models.errors import ModelError
from models.longer.kvcache import Events, append, check_appendable, encode_many
from models.longer.scoring import Candidates, score_many
from models.serve.answer import Encoded, Scored
from models.serve.batcher import Batcher, Job
from models.serve.figures import Figures
from models.serve.refusal import NotAppendable, NotEncoded, NotFinite
from models.serve.request import (
    CandidateColumns,
    Digest,
    History,
    Whose,
    candidates_of,
    check_whose,
    events_of,
    later_events_of,
)
from models.serve.users import EncodedUsers, Entry, Key
from models.serve.version import Version
from models.serve.versions import Versions

Kind = Literal["encode", "append", "score"]
NO_EVENTS = History(item=(), category=(), action=(), time_s=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Bounds of a service.

    ``max_batch`` requests and ``max_batch_candidates`` candidates a batch, ``max_wait_ms`` for
    company, ``max_waiting`` requests in line, ``max_candidates`` of one request; ``cache_mib``,
    ``cache_users``: encoded users that are kept. Raises ModelError for a value out of range.
    """

    max_batch: int = 32
    max_batch_candidates: int = 4096
    max_wait_ms: float = 1.0
    max_waiting: int = 1024
    max_candidates: int = 10_000
    cache_mib: int = 256
    cache_users: int = 100_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in {"max_wait_ms", "cache_mib", "cache_users"} else 1
            if not least <= value < float("inf"):
                raise ModelError(
                    "bad setting", where=field.name, value=value, expected=f"{least} or more"
                )


@dataclass(slots=True, kw_only=True)
class _Ask(Job):
    """A request that has been checked. ``entry``: the encoded history, if it was there."""

    kind: Kind
    version: Version
    key: Key
    events: Events | None = None
    digest: Digest | None = None
    entry: Entry | None = None
    candidates: Candidates | None = None


class Service:
    """Answers from the versions of a folder, which it closes with itself."""

    def __init__(self, versions: Versions, settings: Settings | None = None) -> None:
        settings = Settings() if settings is None else settings
        self.versions = versions
        self.settings = settings
        self.users = EncodedUsers(
            max_bytes=settings.cache_mib * 2**20, max_users=settings.cache_users
        )
        versions.changed = self.users.keep_versions
        self.figures = Figures()
        self._batcher = Batcher(
            self._run,
            max_batch=settings.max_batch,
            max_weight=settings.max_batch_candidates,
            max_wait_s=settings.max_wait_ms / 1e3,
            max_waiting=settings.max_waiting,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer what waits, then end all threads; later requests are refused."""
        self.versions.close()
        self._batcher.close()

    # --- what may be asked ------------------------------------------------------------------------

    def encode(
        self, whose: Whose, history: History, *, cold_start: bool = False
    ) -> Future[Encoded]:
        """Encode a history and keep it. Raises ModelError; the future may raise one, too."""
        version, key = self._version_for(whose)
        events = events_of(history, whose.request_time_s, version.config, cold_start=cold_start)
        digest = Digest(events)
        entry = self.users.find(key, digest)
        return self._put(
            _Ask(kind="encode", version=version, key=key, events=events, digest=digest, entry=entry)
        )

    def append(self, whose: Whose, later: History) -> Future[Encoded]:
        """Append later events to a history that was encoded for the same user and request time.

        Raises NotEncoded, NotAppendable where the network's groups would shift, and ModelError.
        """
        version, key = self._holder_of(whose)
        _check_appendable(version.config, 0)
        events = later_events_of(later, whose.request_time_s, version.config)
        return self._put(_Ask(kind="append", version=version, key=key, events=events))

    def score(
        self,
        whose: Whose,
        candidates: CandidateColumns,
        history: History | None = None,
        *,
        cold_start: bool = False,
    ) -> Future[Scored]:
        """Score candidates for a user with this history, or with the one encoded before.

        Without a history and without a version, the newest version answers that has this user at
        this request time. ``cold_start``: a user without events. Raises NotEncoded and ModelError.
        """
        if history is None and cold_start:
            history = NO_EVENTS
        if history is None:
            version, key = self._holder_of(whose)
            events = digest = None
        else:
            version, key = self._version_for(whose)
            events = events_of(history, whose.request_time_s, version.config, cold_start=cold_start)
            digest = Digest(events)
        columns = candidates_of(candidates, version.config, most=self.settings.max_candidates)
        entry = self.users.find(key, digest)
        if entry is None and events is None:
            raise _not_encoded(key)
        return self._put(
            _Ask(
                kind="score",
                version=version,
                key=key,
                events=events,
                digest=digest,
                entry=entry,
                candidates=columns,
                weight=len(columns.item),
            )
        )

    def stats(self) -> dict[str, Any]:
        """Return latencies, batches, the cache and the versions, as JSON values."""
        counts = self.users.counts()
        looked = counts.hits + counts.misses
        return self.figures.as_json() | {
            "in_line": len(self._batcher),
            "cache": {
                "users": counts.users,
                "held_bytes": counts.held_bytes,
                "max_bytes": self.users.max_bytes,
                "hits": counts.hits,
                "misses": counts.misses,
                "hit_share": counts.hits / looked if looked else None,
                "evicted": counts.evicted,
            },
            "current_version": self.versions.current.number,
            "held_versions": [version.number for version in self.versions.held],
            "failed_versions": [failure.version for failure in self.versions.failures],
        }

    # --- before waiting ---------------------------------------------------------------------------

    def _version_for(self, whose: Whose) -> tuple[Version, Key]:
        check_whose(whose)
        version = self.versions.named(whose.version)
        return version, (version.number, whose.user, whose.request_time_s)

    def _holder_of(self, whose: Whose) -> tuple[Version, Key]:
        """The version that has this user at this time: the named one, or the newest."""
        named, key = self._version_for(whose)
        if whose.version is not None:
            if not self.users.holds(key):
                raise _not_encoded(key)
            return named, key
        for version in self.versions.held:
            key = (version.number, whose.user, whose.request_time_s)
            if self.users.holds(key):
                return version, key
        raise _not_encoded((named.number, whose.user, whose.request_time_s))

    def _put(self, ask: _Ask) -> Future[Any]:
        self._batcher.put(ask)
        return ask.future

    # --- in the batcher's thread ------------------------------------------------------------------

    def _run(self, batch: list[_Ask]) -> None:
        began = time.perf_counter()
        groups: dict[int, list[_Ask]] = {}
        for ask in batch:
            if ask.future.set_running_or_notify_cancel():
                groups.setdefault(ask.version.number, []).append(ask)
                self.figures.waiting.add(ask.kind, began - ask.arrived_s)
        for asks in groups.values():
            self._run_version(asks[0].version, asks)

    def _run_version(self, version: Version, asks: list[_Ask]) -> None:
        try:
            answers = self._answers(version, asks)
        except Exception as error:  # noqa: BLE001  whatever it is, it is somebody's answer
            if len(asks) == 1:
                asks[0].future.set_exception(error)
                return
            for ask in asks:  # one at a time, so that it meets only those it is about
                self._run_version(version, [ask])
            return
        for ask, answer in zip(asks, answers, strict=True):
            if isinstance(answer, ModelError):
                ask.future.set_exception(answer)
                continue
            self.figures.latency.add(ask.kind, time.perf_counter() - ask.arrived_s)
            self.figures.answered(version.number)
            ask.future.set_result(answer)

    def _answers(self, version: Version, asks: list[_Ask]) -> list[Encoded | Scored | ModelError]:
        began = time.perf_counter()
        made = self._encode(version, asks)
        answers: dict[int, Encoded | Scored | ModelError] = {}
        scoring: list[tuple[int, _Ask, Entry]] = []
        for number, ask in enumerate(asks):
            if ask.kind == "append":
                answers[number] = self._append(version, ask)
                continue
            entry = ask.entry or made[_content(ask)]
            if ask.kind == "encode":
                answers[number] = _encoded(version, entry, cached=ask.entry is not None)
            else:
                scoring.append((number, ask, entry))
        answers |= self._score(version, scoring)
        self.figures.batch(
            requests=len(asks),
            encoded=len(made),
            candidates=sum(ask.weight for _, ask, _ in scoring),
            seconds=time.perf_counter() - began,
        )
        return [answers[number] for number in range(len(asks))]

    def _encode(self, version: Version, asks: list[_Ask]) -> dict[tuple[Key, bytes], Entry]:
        """Encode what is needed and not there, equal histories once, and keep it."""
        wanted: dict[tuple[Key, bytes], _Ask] = {}
        for ask in asks:
            if ask.kind != "append" and ask.entry is None:
                # A batch before this one may have encoded it meanwhile.
                ask.entry = self.users.find(ask.key, ask.digest, counts=False)
                if ask.entry is None:
                    wanted.setdefault(_content(ask), ask)
        device = version.device
        caches = encode_many(
            version.network,
            torch.tensor([key[1] for key, _ in wanted], dtype=torch.int64, device=device),
            [_events_on(ask.events, device) for ask in wanted.values()],
            version.tables,
        )
        made = {}
        for (content, ask), cache in zip(wanted.items(), caches, strict=True):
            assert ask.digest is not None
            made[content] = Entry(cache=cache, digest=ask.digest)
            self._keep(version, ask.key, made[content])
        return made

    def _append(self, version: Version, ask: _Ask) -> Encoded | ModelError:
        entry = self.users.find(ask.key)  # now, because another append may have been before
        assert ask.events is not None
        if entry is None:
            return _not_encoded(ask.key)
        try:
            _check_appendable(version.config, entry.cache.events + len(ask.events))
        except NotAppendable as error:
            return error
        later = _events_on(ask.events, version.device)
        longer = Entry(
            cache=append(version.network, entry.cache, later, version.tables),
            digest=entry.digest.followed_by(ask.events),
        )
        self._keep(version, ask.key, longer)
        return _encoded(version, longer, cached=True)

    def _score(
        self, version: Version, scoring: list[tuple[int, _Ask, Entry]]
    ) -> dict[int, Encoded | Scored | ModelError]:
        asked = []
        for _, ask, entry in scoring:
            assert ask.candidates is not None
            columns = (getattr(ask.candidates, f.name) for f in fields(Candidates))
            item, category, cross = (column.to(version.device) for column in columns)
            asked.append((entry.cache, Candidates(item=item, category=category, cross=cross)))
        if not asked:
            return {}
        logits = torch.cat(score_many(version.network, asked, version.tables)).cpu().numpy()
        ends = np.cumsum([ask.weight for _, ask, _ in scoring])
        answers: dict[int, Encoded | Scored | ModelError] = {}
        for (number, ask, entry), end in zip(scoring, ends, strict=True):
            own = logits[end - ask.weight : end]
            answers[number] = (
                Scored(
                    version=version.number,
                    events=entry.cache.events,
                    logits=own,
                    cached=ask.entry is not None,
                )
                if np.isfinite(own).all()
                else _not_finite(version, own)
            )
        return answers

    def _keep(self, version: Version, key: Key, entry: Entry) -> None:
        self.users.put(key, entry)
        if version not in self.versions.held:  # swapped out while this was being encoded
            self.users.keep_versions({held.number for held in self.versions.held})


def _content(ask: _Ask) -> tuple[Key, bytes]:
    assert ask.digest is not None
    return ask.key, ask.digest.value


def _events_on(events: Events | None, device: torch.device) -> Events:
    assert events is not None
    return Events(**{f.name: getattr(events, f.name).to(device) for f in fields(Events)})


def _encoded(version: Version, entry: Entry, *, cached: bool) -> Encoded:
    return Encoded(
        version=version.number,
        events=entry.cache.events,
        held_bytes=entry.cache.held_nbytes,
        cached=cached,
    )


def _check_appendable(config: LongerConfig, events: int) -> None:
    try:
        check_appendable(config, events)
    except ModelError as error:
        raise NotAppendable(
            error.problem, where=error.where, value=error.value, expected=error.expected
        ) from None


def _not_encoded(key: Key) -> NotEncoded:
    version, user, request_time_s = key
    return NotEncoded(
        f"is not encoded for request time {request_time_s} in version {version}",
        where="user",
        value=user,
        expected="an encode request before, or the history in this one",
    )


def _not_finite(version: Version, logits: NDArray[np.floating[Any]]) -> NotFinite:
    row = int((~np.isfinite(logits)).argmax())
    return NotFinite(
        "is not finite",
        where=f"score of candidates[{row}], version {version.number}",
        value=float(logits[row]),
    )
