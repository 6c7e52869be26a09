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

    ranges:   whether it answers range requests.
    failures: how many of the next requests it answers with 503; without `Content-Range` being looked at.
    asked:    path and range of each request that it answered with a file.
    """

    url: str
    ranges: bool = True
    failures: int = 0
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
                super().do_GET()
                return
            state.asked.append((self.path, wanted))
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            content = path.read_bytes()
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

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
