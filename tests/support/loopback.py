"""A web server on this machine that fails in chosen ways."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Server:
    """Serves `content` under any path."""

    content: bytes
    ranges: bool = True
    """True if it supports Range requests."""
    heeds_if_range: bool = True
    """True if it sends the whole content if that of If-Range is another one."""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    """Sent with each answer, for example the ETag or the date of the content."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes that each of the first answers sends before the connection breaks."""
    statuses: list[int] = field(default_factory=list)
    """Error statuses of the first answers."""
    asked: list[str | None] = field(default_factory=list)
    """The Range header of each request so far."""
    url: str = ""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """`server` with its url, answering while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            ranges = server.ranges
            if server.heeds_if_range and (version := self.headers.get("If-Range")):
                ranges = ranges and version in server.headers.values()
            found = re.fullmatch(r"bytes=(\d+)-", asked or "")
            start = int(found[1]) if ranges and found else 0
            size = len(server.content)
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            end = start + server.cut_after.pop(0) if server.cut_after else size
            self.wfile.write(server.content[start:end])

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/ml-1m.zip"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
