"""The event loop of a process that serves."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import uvloop

from ham_dist.serving.server.http import HttpServer
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.options import ServerOptions, cores
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.swap import Swapper


def limit_threads(workers: int) -> None:
    """Gives each worker its share of the cores, unless the environment sets the number of threads."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // workers))


def serve_until_stopped(
    options: ServerOptions,
    swapper: Swapper,
    metrics: Metrics,
    bound: Sequence[socket.socket],
    ready: Callable[[], object],
    *,
    records: bool = True,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        options: Settings of the server.
        swapper: Holds the serving version.
        metrics: Metrics of this process.
        bound: Socket of HTTP and, if there is one, of gRPC.
        ready: Called as soon as the server answers.
        records: Record requests, if the options ask for it.
    """
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    # uvicorn has its own handlers while it runs, and raises what stopped it again at the end: an ordinary
    # stop has exit status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)

    def started(server: HttpServer) -> None:
        if stopped:  # before uvicorn had its handlers
            server.should_exit = True
        ready()

    uvloop.run(serve(options, swapper, metrics, bound, started, records=records))


async def serve(
    options: ServerOptions,
    swapper: Swapper,
    metrics: Metrics,
    bound: Sequence[socket.socket],
    started: Callable[[HttpServer], None],
    *,
    records: bool,
) -> None:
    """Serves until `should_exit` of the HTTP server is true.

    Args:
        options, swapper, metrics, bound, records: As for `serve_until_stopped`.
        started: Called with the HTTP server as soon as it answers.
    """
    service = Service(options, swapper, metrics, records=records)
    server = HttpServer(service)
    grpc_server = None
    if len(bound) > 1:
        from ham_dist.serving.server.grpc_service import GrpcServer

        grpc_server = GrpcServer(service, bound[1])
        await grpc_server.start()
    tasks = [asyncio.create_task(service.run_ticks()), asyncio.create_task(_when_started(server, started))]
    try:
        await server.serve(sockets=[bound[0]])
    finally:
        if grpc_server is not None:
            await grpc_server.stop()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.close()


async def _when_started(server: HttpServer, started: Callable[[HttpServer], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    started(server)
