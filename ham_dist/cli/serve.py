"""Commands for serving: serve and activate."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from ham_dist.cli.printing import say
from ham_dist.errors import BackendError

_NEEDED = ("uvicorn", "uvloop", "httptools", "orjson", "prometheus_client")
_NEEDED_BY_GRPC = ("grpc", "grpc_health")


def serve(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Folder of a bundle, or of several versions of one with a file `current` (see `activate`).",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of gRPC; 0 takes a free one (default: no gRPC)."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve.")] = 1,
    runtime: Annotated[
        Literal["auto", "aot", "eager"],
        typer.Option(
            help="How the model runs: compiled at its first use on a machine, which takes a minute (aot), "
            "operation by operation (eager), or compiled where that is possible (auto)."
        ),
    ] = "auto",
    name: Annotated[
        str, typer.Option(help="Name of the model in requests (default: that of the folder).")
    ] = "",
    max_rows: Annotated[
        int, typer.Option(min=1, help="Most records of a request, and of a batch of several requests.")
    ] = 4096,
    queue_rows: Annotated[
        int, typer.Option(min=1, help="Most records that wait or run in a worker; above, requests get 429.")
    ] = 65_536,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, max=1 << 30, help="Largest body of a request; above, requests get 413.")
    ] = 16 << 20,
    read_seconds: Annotated[
        float, typer.Option(min=0.1, help="Longest time to receive a request; after it, 408.")
    ] = 10.0,
    drain_seconds: Annotated[
        float, typer.Option(min=1, help="Longest time to answer accepted requests after SIGTERM.")
    ] = 25.0,
    warmup: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Recorded requests that a version answers before it serves "
            "(default: warmup.jsonl in a folder of versions).",
        ),
    ] = None,
    record_warmup: Annotated[
        int, typer.Option(min=0, max=10_000, help="Record this many requests into that file.")
    ] = 0,
) -> None:
    """Serve a bundle over HTTP and gRPC.

    Raw records or ids as JSON to /score, the Open Inference Protocol (version 2) under /v2, metrics for
    Prometheus at /metrics, and a page for a person at /. SIGTERM answers what was accepted, then ends.

    \b
    Example:
      ham-dist serve bundles/movielens --grpc-port 8001
      ham-dist serve versions/movielens --host 0.0.0.0 --port 8080 --workers 4
    """
    _require(_NEEDED if grpc_port is None else (*_NEEDED, *_NEEDED_BY_GRPC))
    from ham_dist.serving.server.options import ServerOptions
    from ham_dist.serving.server.supervisor import Supervisor

    options = ServerOptions(
        bundle=bundle,
        name=name,
        host=host,
        port=port,
        grpc_port=grpc_port,
        workers=workers,
        runtime=runtime,
        max_rows=max_rows,
        queue_rows=queue_rows,
        max_body_bytes=max_body_bytes,
        read_seconds=read_seconds,
        drain_seconds=drain_seconds,
        warmup=warmup,
        record_warmup=record_warmup,
    )

    def ready(urls: Sequence[str]) -> None:
        say(f"serving {options.model} at {' and '.join(urls)}")

    Supervisor(options, ready).run()


def activate(
    versions: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of versions, each a bundle.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Name of a bundle in it.")],
) -> None:
    """Make a version the active one, also an earlier one.

    Writes the file `current` in one atomic step. Servers of the folder read it each second, verify the
    bundle, and serve it in place of the one before without a pause; if it is damaged, they keep serving that.

    \b
    Example:
      ham-dist activate versions/movielens v2
    """
    from ham_dist.serving.server.versions import activate as activate_version

    before = activate_version(versions, version)
    say(f"{versions}: {version} is active" + (f"; before it, {before}" if before else ""))


def _require(modules: tuple[str, ...]) -> None:
    """Checks that the libraries of the extra `serve` are installed."""
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    if lacking:
        raise BackendError(
            f"serve: {', '.join(lacking)} cannot be imported; expected the libraries of the extra `serve`\n"
            "  pip install 'ham-dist[serve]'"
        )
