"""A server in a thread of the test's process, on a free port."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from ham_dist.serving.server.http import HttpServer
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.run import bind
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.swap import Swapper


@contextmanager
def served(bundle: Path, **options: Any) -> Iterator[str]:
    """`HOST:PORT` of a server of `bundle`, which is called `films`, while the block runs."""
    settings = ServerOptions(bundle=bundle, **{"name": "films", **options})
    metrics = Metrics(settings.model)
    swapper = Swapper(settings, metrics)
    bound = bind("127.0.0.1", 0)
    ready = threading.Event()
    server: list[HttpServer] = []

    async def serve() -> None:
        service = Service(settings, swapper, metrics)
        server.append(HttpServer(service))
        running = asyncio.create_task(server[0].serve(sockets=[bound]))
        while not server[0].started:
            await asyncio.sleep(0.01)
        ready.set()
        await running
        await service.close()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server[0].should_exit = True
        thread.join()
