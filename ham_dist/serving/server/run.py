"""One process that serves."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import torch

from ham_dist.errors import ConfigError
from ham_dist.serving.server.http import HttpServer
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.options import ServerOptions, cores
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.swap import Swapper

log = logging.getLogger(__name__)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Returns a socket that is bound and does not listen yet.

    Args:
        host: Name or address.
        port: TCP port; 0 for a free one.
        shared: Other sockets of this user may be bound to the same port.
    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; expected an address of this machine "
            "and a free port.\n  Stop what listens there, or give another port (0 takes a free one)."
        ) from None


def url_of(bound: socket.socket) -> str:
    """The URL of a socket of HTTP."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve_alone(options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, in this process.

    Args:
        options: Settings of the server.
        ready: Called with the server's URL as soon as it answers.
    Raises:
        HamError: The bundle or an address cannot be used.
    """
    with bind(options.host, options.port) as bound:
        torch.set_num_threads(cores())
        metrics = Metrics(options.model)
        swapper = Swapper(options, metrics)
        _until_stopped(options, swapper, metrics, bound, lambda: ready(url_of(bound)))


def _until_stopped(
    options: ServerOptions,
    swapper: Swapper,
    metrics: Metrics,
    bound: socket.socket,
    ready: Callable[[], None],
    *,
    records: bool = True,
) -> None:
    # uvicorn raises the signal that stopped it again at the end; a normal stop has exit status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    async def serve() -> None:
        service = Service(options, swapper, metrics, records=records)
        server = HttpServer(service)
        ticks = asyncio.create_task(service.run_ticks())
        started = asyncio.create_task(_when_started(server, ready))
        try:
            await server.serve(sockets=[bound])
        finally:
            for task in (ticks, started):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await service.close()

    import uvloop

    uvloop.run(serve())


async def _when_started(server: HttpServer, ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready()
