"""A server in a thread of the test's process, on a free port."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from ham_dist.serving.server.http import HttpServer
from ham_dist.serving.server.listen import bind
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.run import serve
from ham_dist.serving.server.swap import Swapper


@contextmanager
def served(bundle: Path, **options: Any) -> Iterator[str]:
    """`HOST:PORT` of a server of `bundle`, which is called `films`, while the block runs."""
    with _serving(bundle, options) as addresses:
        yield addresses[0]


@contextmanager
def served_by_grpc(bundle: Path, **options: Any) -> Iterator[str]:
    """As `served`, of gRPC."""
    with _serving(bundle, {"grpc_port": 0} | options) as addresses:
        yield addresses[1]


@contextmanager
def _serving(bundle: Path, options: Mapping[str, Any]) -> Iterator[list[str]]:
    settings = ServerOptions(bundle=bundle, **{"name": "films", **options})
    metrics = Metrics(settings.model)
    swapper = Swapper(settings, metrics)
    with ExitStack() as stack:
        ports = [0] if settings.grpc_port is None else [0, settings.grpc_port]
        bound = [stack.enter_context(bind("127.0.0.1", port, shared=True)) for port in ports]
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in bound]
        ready = threading.Event()
        stop: list[Callable[[], None]] = []

        def started(server: HttpServer) -> None:
            stop.append(lambda: setattr(server, "should_exit", True))
            ready.set()

        thread = threading.Thread(
            target=lambda: uvloop.run(serve(settings, swapper, metrics, bound, started, records=True))
        )
        thread.start()
        try:
            assert ready.wait(120)
            yield addresses
        finally:
            stop[0]()
            thread.join()
