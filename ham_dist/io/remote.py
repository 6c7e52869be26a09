"""Files that are not on this machine, opened where they lie: only what is read of them is fetched.

The PathManager's own handler of http:// and https:// fetches a file whole before it opens it, and its handler of s3:// needs boto3.
"""

import errno
import io
import os
import shutil
import time
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from iopath.common.file_io import HTTPURLHandler, PathHandler, get_cache_dir

TIMEOUT_SECONDS = 60
# How often a request is made again, and after how long: 1, 2 and 4 seconds.
_RETRIES, _FIRST_WAIT = 3, 1.0
# What a server says that may be over soon.
_PASSING = (429, 500, 502, 503, 504)
_BUFFER = 1 << 20


class HttpHandler(HTTPURLHandler):
    """Opens http:// and https:// by range requests; a server that does not answer these has the file fetched whole, as iopath does."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int | None] = {}

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        if path not in self._sizes:
            self._sizes[path] = _size(path)
        size = self._sizes[path]
        if size is None:
            return open(self._get_local_path(path), mode, buffering, **options)
        return _as_asked(_RangeFile(path, size), mode, options)

    def _exists(self, path: str) -> bool:
        try:
            _size(path)
        except FileNotFoundError:
            return False
        return True


class ArrowHandler(PathHandler):
    """Opens s3:// and gs:// by Arrow's file systems, which take credentials and regions from the places that are usual for each."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["s3://", "gs://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        system, inside = _arrow(path)
        return _as_asked(system.open_input_file(inside), mode, options)

    def _exists(self, path: str) -> bool:
        system, inside = _arrow(path)
        return bool(system.get_file_info(inside).type)  # NotFound is 0

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        parts = urlsplit(path)
        cached = Path(get_cache_dir(), parts.scheme, parts.netloc + parts.path)
        if force or not cached.is_file():  # it may be a folder, of some other files that were fetched
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{cached.name}.{os.getpid()}.partial")  # ranks may fetch it at once
            with self._open(path, "rb") as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, _BUFFER)
            partial.replace(cached)
        return str(cached)


class _RangeFile(io.RawIOBase):
    """A file of `size` bytes at `url`; each read is one request."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(
            0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        )
        return self._place

    def tell(self) -> int:
        return self._place

    def readall(self) -> bytes:
        """The rest, in one request rather than many small ones."""
        return self.read(self._size - self._place) or b""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        last = min(self._place + len(view), self._size)
        wanted = last - self._place
        if wanted <= 0:
            return 0
        content = _get(self._url, f"bytes={self._place}-{last - 1}").content
        if len(content) != wanted:
            raise OSError(errno.EIO, f"{len(content):,} bytes came where {wanted:,} were asked for")
        view[:wanted] = content
        self._place = last
        return wanted


class _Answer:
    def __init__(self, ranged: bool, headers: Any, content: bytes) -> None:
        self.ranged = ranged
        self.headers = headers
        self.content = content


def _size(url: str) -> int | None:
    """Bytes of the file, asked for with its first byte; None where the server does not answer range requests.

    raises: FileNotFoundError where there is none.
    """
    answer = _get(url, "bytes=0-0")
    return int(answer.headers["Content-Range"].rpartition("/")[2]) if answer.ranged else None


def _get(url: str, wanted: str) -> _Answer:
    """raises: OSError that says what the server said, the last time that it was asked."""
    wait = _FIRST_WAIT
    for left in reversed(range(_RETRIES + 1)):
        try:
            with urlopen(Request(url, headers={"Range": wanted}), timeout=TIMEOUT_SECONDS) as answer:
                ranged = answer.status == 206
                return _Answer(ranged, answer.headers, answer.read() if ranged else b"")
        except HTTPError as error:
            error.close()  # it is the answer, with its connection
            if error.code in (404, 410):
                raise FileNotFoundError(
                    errno.ENOENT, f"the server says {error.code} {error.reason}", url
                ) from None
            failure = OSError(errno.EIO, f"the server says {error.code} {error.reason}")
            if left == 0 or error.code not in _PASSING:
                raise failure from None
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if left == 0:
                raise OSError(
                    errno.EIO, f"the server does not answer ({getattr(error, 'reason', error)})"
                ) from None
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last try returns or raises")


def _arrow(path: str) -> tuple[Any, str]:
    parts = urlsplit(path)
    return _file_system(parts.scheme, parts.netloc), parts.netloc + parts.path


@cache
def _file_system(scheme: str, netloc: str) -> Any:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}://{netloc}/")[0]


def _as_asked(raw: Any, mode: str, options: dict[str, Any]) -> IO[Any]:
    if mode == "rb":
        return raw
    if mode != "r":
        raise OSError(errno.EROFS, f"is opened for reading only, not as {mode!r}")
    return io.TextIOWrapper(io.BufferedReader(raw, _BUFFER), **options)
