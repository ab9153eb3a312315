"""The service over HTTP: paths, bodies, and how a refusal looks.

Bodies are checked twice: their form here (fields, types, by pydantic), their meaning by
``models.serve.request`` against the version that answers. Either way a refusal is
``{"errors": [{"where", "problem", "found", "expected"}, ...]}`` with a status that says its kind
(``models.serve.refusal``). Fields that are not known are refused, so a misspelt one is noticed.

Needs the extra ``serve``. Leaves out: who may ask (keep it behind something that knows), and
encryption.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from models.errors import ModelError
from models.longer.kvcache import check_appendable
from models.serve.answer import Encoded
from models.serve.figures import Figures
from models.serve.prometheus import as_text
from models.serve.refusal import status_of
from models.serve.request import CandidateColumns, History, Whose
from models.serve.service import Service
from models.serve.version import Version

MAX_BODY_BYTES = 32 * 2**20
_MOST_ERRORS = 20

Id = Annotated[int, Field(strict=True, description="0 to 2^63 - 1")]
Seconds = Annotated[float, Field(strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HistoryBody(_Body):
    """Events of a user as columns of one length, oldest first."""

    item: list[Id]
    category: list[Id]
    action: list[Id] = Field(description="kind of behaviour, 0 to num_actions - 1")
    time_s: list[Seconds] = Field(description="seconds, on the clock of request_time_s")

    def values(self) -> History:
        """Return the columns."""
        return History(
            item=self.item, category=self.category, action=self.action, time_s=self.time_s
        )


class CandidatesBody(_Body):
    """Candidates as columns of one length; one list of ``num_cross`` ids each in ``cross``."""

    item: list[Id]
    category: list[Id]
    cross: list[list[Id]] = []

    def values(self) -> CandidateColumns:
        """Return the columns."""
        return CandidateColumns(item=self.item, category=self.category, cross=self.cross)


class _WhoseBody(_Body):
    user: Id
    request_time_s: Seconds = Field(description="ages of events are measured from this time")
    version: Id | None = Field(default=None, description="none: the one that serves")

    def whose(self) -> Whose:
        """Return whose request it is."""
        return Whose(user=self.user, request_time_s=self.request_time_s, version=self.version)


class EncodeBody(_WhoseBody):
    """A history to encode and keep."""

    history: HistoryBody
    cold_start: bool = Field(default=False, description="the history may be empty")


class AppendBody(_WhoseBody):
    """Later events of a history that was encoded."""

    history: HistoryBody


class ScoreBody(_WhoseBody):
    """Candidates, for a history that comes with them or was encoded before."""

    candidates: CandidatesBody
    history: HistoryBody | None = None
    cold_start: bool = Field(default=False, description="the user has no events")


class EncodeAnswer(BaseModel):
    """A history is encoded."""

    version: int
    events: int
    held_bytes: int
    cached: bool


class ScoreAnswer(BaseModel):
    """Scores, in the order of the candidates."""

    version: int
    events: int
    cached: bool
    logits: list[float]
    probabilities: list[float]


def build_app(service: Service, *, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """Return the application over a service; it closes nothing."""
    app = FastAPI(title="tandem serve", docs_url="/docs", redoc_url=None)
    app.add_middleware(_Gate, figures=service.figures, max_body_bytes=max_body_bytes)
    _add_questions(app, service)
    _add_views(app, service)
    _add_refusals(app, service)
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/encode", response_model=EncodeAnswer)
    async def encode(body: EncodeBody) -> JSONResponse:
        """Encode a history, once, for many candidates."""
        future = service.encode(body.whose(), body.history.values(), cold_start=body.cold_start)
        return _encoded(await asyncio.wrap_future(future))

    @app.post("/v1/append", response_model=EncodeAnswer)
    async def append(body: AppendBody) -> JSONResponse:
        """Append events to an encoded history, where the network allows it."""
        future = service.append(body.whose(), body.history.values())
        return _encoded(await asyncio.wrap_future(future))

    @app.post("/v1/score", response_model=ScoreAnswer)
    async def score(body: ScoreBody) -> JSONResponse:
        """Score candidates."""
        history = None if body.history is None else body.history.values()
        future = service.score(
            body.whose(), body.candidates.values(), history, cold_start=body.cold_start
        )
        scored = await asyncio.wrap_future(future)
        return JSONResponse(
            {
                "version": scored.version,
                "events": scored.events,
                "cached": scored.cached,
                "logits": scored.logits.tolist(),
                "probabilities": scored.probabilities.tolist(),
            }
        )


def _encoded(encoded: Encoded) -> JSONResponse:
    return JSONResponse(
        {
            "version": encoded.version,
            "events": encoded.events,
            "held_bytes": encoded.held_bytes,
            "cached": encoded.cached,
        }
    )


def _add_views(app: FastAPI, service: Service) -> None:
    versions = service.versions

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that requests are answered, and by which version."""
        return {"status": "ok", "version": versions.current.number}

    @app.get("/v1/versions")
    async def held() -> dict[str, Any]:
        """List the versions that may be named, newest first, and those that could not be used."""
        return _versions(service)

    @app.post("/v1/reload")
    def reload() -> dict[str, Any]:
        """Look for a newer version now."""
        return {"changed": versions.reload()} | _versions(service)

    @app.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        """Latencies, batches, cache, versions."""
        return service.stats()

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Return the same for Prometheus."""
        return PlainTextResponse(as_text(service.stats()), media_type="text/plain; version=0.0.4")


def _versions(service: Service) -> dict[str, Any]:
    return {
        "current": service.versions.current.number,
        "held": [_version(version) for version in service.versions.held],
        "failed": [
            {"version": failure.version, "problem": failure.problem}
            for failure in service.versions.failures
        ],
    }


def _version(version: Version) -> dict[str, Any]:
    config = version.config
    try:
        check_appendable(config, 0)
        why_not = None
    except ModelError as error:
        why_not = str(error)
    return {
        "version": version.number,
        "step": version.step,
        "max_length": config.max_length,
        "num_actions": config.num_actions,
        "num_cross": config.num_cross,
        "append": why_not is None,
        "append_problem": why_not,
        "precision": str(version.network.dtype).removeprefix("torch."),
        "rows": version.tables.num_rows,
    }


# --- refusals -------------------------------------------------------------------------------------


def _add_refusals(app: FastAPI, service: Service) -> None:
    @app.exception_handler(ModelError)
    async def refused(request: Request, error: ModelError) -> JSONResponse:
        status = status_of(error)
        retry = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"errors": [_as_json(error)]}, status, retry)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        errors = [_of_pydantic(one) for one in found[:_MOST_ERRORS]]
        if len(found) > _MOST_ERRORS:
            errors.append(_error("body", f"{len(found) - _MOST_ERRORS} more errors"))
        return JSONResponse({"errors": errors}, 422)

    @app.exception_handler(AnyHTTPException)
    async def elsewhere(request: Request, error: AnyHTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        return JSONResponse(
            {"errors": [_error(where, error.detail)]}, error.status_code, error.headers
        )


def _error(
    where: object, problem: str, found: object = None, expected: str | None = None
) -> dict[str, Any]:
    return {
        "where": None if where is None else str(where),
        "problem": problem,
        "found": None if found is None else _shown(found),
        "expected": expected,
    }


def _as_json(error: ModelError) -> dict[str, Any]:
    return _error(error.where, error.problem, error.value, error.expected)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_PROBLEMS = {
    "missing": ("is missing", "a value"),
    "extra_forbidden": ("is no field that is known", "no such field"),
    "json_invalid": ("is no JSON", "one JSON object"),
}


def _of_pydantic(error: MutableMapping[str, Any]) -> dict[str, Any]:
    """What pydantic found, in the words of the other refusals."""
    place = ""
    for part in error["loc"][1:]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    kind, said = error["type"], str(error["msg"])
    expected = said.removeprefix("Input should be ")
    if not place:
        expected = "one JSON object, sent as application/json"
    problem, right = _PROBLEMS.get(kind, ("has another type", expected))
    found = None if kind in _PROBLEMS else error.get("input")
    return _error("body" if kind == "json_invalid" else place[1:] or "body", problem, found, right)


# --- what comes before and after every request ----------------------------------------------------

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Gate:
    """Bounds bodies, and notes how long answers take and what was refused.

    Times are from the first byte of a request that this process sees to the last one of the answer
    that it hands over, so they include reading and writing JSON.
    """

    def __init__(
        self,
        app: Callable[[_Scope, _Receive, _Send], Awaitable[None]],
        figures: Figures,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._figures = figures
        self._most = max_body_bytes

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        read = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, f"body: is too large; expected {self._most} bytes at most")
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, counted, noted)
        if status == 200:
            route = scope.get("route")
            path = str(getattr(route, "path", scope["path"]))
            self._figures.http.add(path, time.perf_counter() - began)
        else:
            self._figures.refused(str(status))
