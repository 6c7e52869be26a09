"""Requests to a server's ASGI application without a socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ham_dist.serving.server.app import App
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.swap import Swapper

Result = TypeVar("Result")


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


class Client:
    """Sends requests to an application.

    Args:
        service: The model in service.
    """

    def __init__(self, service: Service) -> None:
        self.service, self._app = service, App(service)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] | Any = b"",
        headers: dict[str, str] | None = None,
        *,
        ends: bool = True,
    ) -> Answer:
        """Sends a request.

        Args:
            body: Bytes, in one piece or several; any other value is sent as JSON.
            ends: False for a body whose end never comes.
        """
        if not isinstance(body, bytes | tuple):
            body = json.dumps(body).encode()
        pieces = [body] if isinstance(body, bytes) else list(body)
        sent: list[Any] = []

        async def receive() -> Any:
            if not pieces:
                await asyncio.Event().wait()
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or not ends}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
        await self._app(scope, receive, send)
        start, content = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        assert found["content-length"] == str(len(content["body"]))
        return Answer(start["status"], found, content["body"])

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return await self.ask("POST", path, body, headers)

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)


@asynccontextmanager
async def client(bundle: Path, **options: Any) -> AsyncIterator[Client]:
    """A client of a service of `bundle`, which is called `films`."""
    settings = ServerOptions(bundle=bundle, **{"name": "films", **options})
    metrics = Metrics(settings.model)
    service = Service(settings, Swapper(settings, metrics), metrics)
    try:
        yield Client(service)
    finally:
        await service.close()


def ask(bundle: Path, questions: Callable[[Client], Coroutine[Any, Any, Result]], **options: Any) -> Result:
    """Runs `questions` with a client of a service of `bundle`."""

    async def run() -> Result:
        async with client(bundle, **options) as one:
            return await questions(one)

    return asyncio.run(run())
