"""uvicorn with two changes: limits on the head of a request, and a stop that loses no request."""

import asyncio
import re
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ham_dist.serving.server.app import App
from ham_dist.serving.server.service import Service

HEAD_BYTES = 1 << 16
"""Longest head of a request: its line and headers."""
KEEP_ALIVE_SECONDS = 75
"""Idle connections are kept longer than most proxies (60 s) keep them, so that the proxy closes first."""
LINGER_SECONDS = 0.5
"""After SIGTERM, open connections are served this long: a client may have sent a request that has not
arrived."""

_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections whose next request has a head that is too long, or takes too long."""

    head_seconds = 10.0
    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Starts the time of the first head."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time of a head."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts the bytes of a head."""
        if self.cycle is not None and self.cycle.response_complete and self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._too_slow)
        super().data_received(data if self._head is None else _without_upgrade(data))
        if self._head is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large", f"expected at most {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Ends the time of a head."""
        self._end_head()
        super().on_headers_complete()

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        if self._head_bytes:
            self._refuse("408 Request Timeout", f"expected all of it in {self.head_seconds:g} seconds")
        else:
            self.transport.close()

    def _refuse(self, status: str, expected: str) -> None:
        self._end_head()
        body = f'{{"error":"head of the request: {expected}"}}'
        if not self.transport.is_closing():
            self.transport.write(
                f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"connection: close\r\n\r\n{body}".encode()
            )
            self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Bytes that start in a head, with another name in place of the header Upgrade.

    Some clients, such as Java's HttpClient, offer HTTP/2 in it. One that is ignored stays with HTTP/1.1, but
    the parser takes the body for bytes of the other protocol.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        end = len(data)
    if _UPGRADE.search(data, 0, end) is None:
        return data
    return _UPGRADE.sub(b"\r\nx-upgrade", data[:end]) + data[end:]


class HttpServer(uvicorn.Server):
    """Serves a service over HTTP.

    Args:
        service: The model in service.
    """

    def __init__(self, service: Service) -> None:
        protocol = type("Protocol", (LimitedProtocol,), {"head_seconds": service.options.read_seconds})
        super().__init__(
            uvicorn.Config(
                App(service),
                http=protocol,
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(service.options.drain_seconds),
            )
        )
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers everything that was accepted, then ends."""
        self._service.draining = True
        await self._stop_listening(sockets or [])
        for _ in range(int(LINGER_SECONDS / 0.05)):
            if not self.server_state.connections:
                break
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Stops listening, and takes over connections that the kernel has accepted: a closed socket resets
        them."""
        copies = [each.dup() for each in sockets]
        for server in self.servers:
            server.close()
        for copy in copies:
            with copy:
                copy.setblocking(False)
                while True:
                    try:
                        connection, _ = copy.accept()
                    except OSError:  # BlockingIOError: there are no more
                        break
                    connection.setblocking(False)
                    await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state={})
        return protocol
