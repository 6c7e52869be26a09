"""A web server on this machine, for tests of what is read from one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FileServer:
    """Serves a folder.

    Attributes:
        ranges: Whether it answers range requests.
        failures: How many of the next requests it answers with 503.
        etag: Sent with each answer.
        dated: Whether answers hold `Last-Modified`.
        total: Sent as the size of the whole file in place of the true one.
        asked: Path and range of each request that it answered with a part of a file.
        whole: Number of requests that it answered with a whole file.
    """

    url: str
    ranges: bool = True
    failures: int = 0
    etag: str | None = None
    dated: bool = True
    total: str | None = None
    whole: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def served(folder: Path) -> Iterator[FileServer]:
    """A server of `folder` that is gone with the block."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if state.failures:
                state.failures -= 1
                self.send_error(503)
                return
            wanted = self.headers.get("Range")
            path = Path(self.translate_path(self.path))
            if not state.ranges or wanted is None or not path.is_file():
                state.whole += 1
                super().do_GET()
                return
            state.asked.append((self.path, wanted))
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            content = path.read_bytes()
            part = content[first : last + 1]
            if not part:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            total = len(content) if state.total is None else state.total
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{total}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
            self.end_headers()
            self.wfile.write(part)

        def send_header(self, keyword: str, value: str) -> None:
            if keyword != "Last-Modified" or state.dated:
                super().send_header(keyword, value)

        def end_headers(self) -> None:
            if state.etag is not None:
                super().send_header("ETag", state.etag)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = FileServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
