"""The ASGI application: paths, answers and errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import orjson

from ham_dist import __version__
from ham_dist.serving.server import infer, score
from ham_dist.serving.server.batcher import Scored
from ham_dist.serving.server.body import Disconnected, read_body
from ham_dist.serving.server.model import Values
from ham_dist.serving.server.refusal import Refused
from ham_dist.serving.server.service import LARGE_BYTES, Service
from ham_dist.serving.server.status import page, status_of
from ham_dist.serving.server.tensors import PLATFORM, model_metadata

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
_PARSERS: Mapping[str, Callable[[bytes], Values]] = {
    "/score": score.values_of,
    "/rank": score.candidates_of,
}
_JSON = {"content-type": "application/json"}


class _Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]


class App:
    """Answers HTTP requests by a service.

    Args:
        service: The model in service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pages: dict[str, Callable[[], _Answer]] = {
            "/": lambda: _Answer(200, *page()),
            "/status.json": lambda: _json(200, status_of(service)),
            "/metrics": self._metrics,
            "/health/live": lambda: _json(200, {"live": True}),
            "/health/ready": self._ready,
            "/v2": lambda: _json(
                200, {"name": PLATFORM, "version": __version__, "extensions": ["binary_tensor_data"]}
            ),
            "/v2/health/live": lambda: _json(200, {"live": True}),
            "/v2/health/ready": self._ready,
        }

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request, as ASGI defines."""
        started = perf_counter()
        protocol = ""
        try:
            path = scope["path"]
            if (parse := _PARSERS.get(path)) is not None:
                protocol = path[1:]
                _require(scope, "POST")
                answer = await self._score(parse, scope, receive, started)
            elif (found := self._pages.get(path)) is not None:
                _require(scope, "GET", "HEAD")
                answer = found()
            else:
                name, version, action = _model_path(path)
                if action == "infer":
                    protocol = "infer"
                    _require(scope, "POST")
                    answer = await self._infer(name, version, scope, receive, started)
                else:
                    _require(scope, "GET", "HEAD")
                    answer = self._of_model(name, version, action)
        except Refused as refused:
            answer = _Answer(
                refused.status, orjson.dumps({"error": refused.message}), _JSON | dict(refused.headers)
            )
        except Disconnected:
            return
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = _json(500, {"error": "internal error; the server's log has its traceback"})
        if protocol:
            self._service.metrics.request(protocol, answer.status, perf_counter() - started)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        if self._service.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        options = self._service.options
        return await read_body(receive, headers, options.max_body_bytes, options.read_seconds)

    async def _score(
        self, parse: Callable[[bytes], Values], scope: Mapping[str, Any], receive: Receive, started: float
    ) -> _Answer:
        body = await self._body(dict(scope["headers"]), receive)
        service = self._service
        values = parse(body) if len(body) <= LARGE_BYTES else await asyncio.to_thread(parse, body)
        scored = await service.score(service.model, values, len(body))
        return _Answer(200, score.answer_of(scored, service.options.model), _JSON | _timing(scored, started))

    async def _infer(
        self, name: str, version: str | None, scope: Mapping[str, Any], receive: Receive, started: float
    ) -> _Answer:
        headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        service = self._service
        model = service.require_served(name, version)
        rows = service.options.max_rows
        request = (
            infer.parse_infer(body, headers, model, rows)
            if len(body) <= LARGE_BYTES
            else await asyncio.to_thread(infer.parse_infer, body, headers, model, rows)
        )
        scored = await service.score(model, request.values, len(body))
        content, kind = infer.answer_of(scored, request, name)
        return _Answer(200, content, kind | _timing(scored, started))

    def _of_model(self, name: str, version: str | None, action: str) -> _Answer:
        model = self._service.require_served(name, version)
        if action == "ready":
            return self._ready()
        return _json(200, model_metadata(model, name))

    def _ready(self) -> _Answer:
        service = self._service
        found: dict[str, Any] = {
            "ready": not service.draining, "name": service.options.model, "version": service.model.version
        }  # fmt: skip
        if service.swapper.failure is not None:
            version, reason = service.swapper.failure
            found["failed"] = {"version": version, "reason": reason}
        return _json(503 if service.draining else 200, found)

    def _metrics(self) -> _Answer:
        self._service.tick()
        return _Answer(
            200, self._service.metrics.text(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def _json(status: int, value: Any) -> _Answer:
    return _Answer(status, orjson.dumps(value), _JSON)


def _timing(scored: Scored, started: float) -> dict[str, str]:
    """Headers with the version, and where the time went in milliseconds (W3C Server Timing)."""
    total = perf_counter() - started
    return {
        "x-model-version": scored.version,
        "server-timing": f"queue;dur={scored.waited * 1e3:.3f}, model;dur={scored.ran * 1e3:.3f}, "
        f"total;dur={total * 1e3:.3f}",
    }


def _require(scope: Mapping[str, Any], *methods: str) -> None:
    if scope["method"] not in methods:
        raise Refused(
            405,
            f"{scope['method']} {scope['path'][:80]}: expected {' or '.join(methods)}",
            {"allow": ", ".join(methods)},
        )


def _model_path(path: str) -> tuple[str, str | None, str]:
    """Name of the model, version and action in `/v2/models/NAME[/versions/VERSION][/ready|/infer]`."""
    parts = path.split("/")
    if path.startswith("/v2/models/"):
        match parts[3:]:
            case [name] | [name, ("ready" | "infer")]:
                return name, None, parts[4] if len(parts) == 5 else ""
            case [name, "versions", version] | [name, "versions", version, ("ready" | "infer")]:
                return name, version, parts[6] if len(parts) == 7 else ""
    raise _no_such_path(path)


def _no_such_path(path: str) -> Refused:
    return Refused(
        404,
        f"{path[:80]}: no such path; expected /score, /rank, /v2/models/NAME/infer, /metrics or /",
    )
