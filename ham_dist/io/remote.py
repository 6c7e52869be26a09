"""PathManager handlers that open remote files in place and request only the bytes that are read.

iopath's own handler of http:// and https:// downloads the whole file first; its s3:// handler needs boto3.
"""

import errno
import io
import re
import time
from functools import cache
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from iopath.common.file_io import PathHandler, get_cache_dir

from ham_dist.errors import DataError
from ham_dist.io import http
from ham_dist.io.atomic import new_file
from ham_dist.io.download import download
from ham_dist.io.hashing import copy_and_hash, sha256_of_json

_BUFFER = 1 << 20
_DOWNLOADS = 3
"""Maximum number of downloads of a file that changes on the server meanwhile."""


class HttpHandler(PathHandler):
    """Opens http:// and https:// with range requests; downloads the whole file if the server has none."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        found = _probe(path)
        if not found.ranged or found.size is None:
            return open(self._get_local_path(path), mode, buffering, **options)
        return _in_mode(_RangeFile(path, found.size, found.version), mode, options)

    def _exists(self, path: str) -> bool:
        try:
            _probe(path)
        except FileNotFoundError:
            return False
        return True

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        found = _probe(path)
        for _ in range(_DOWNLOADS):
            cached = _cached(path, [found.version, found.size])
            if not force and found.version is not None and cached.is_file():
                return str(cached)
            with new_file(cached) as temporary:
                try:
                    download(path, temporary, "")
                except DataError as error:
                    raise OSError(errno.EIO, str(error).strip().removeprefix(f"{path}: ")) from None
            before, found = found, _probe(path)
            if before.version == found.version:
                return str(cached)
        raise OSError(errno.EIO, "the file changes on the server during the download")


class ArrowHandler(PathHandler):
    """Opens s3:// and gs:// with Arrow's file systems, which find credentials in the usual places of each."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["s3://", "gs://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        system, inside = _arrow(path)
        return _in_mode(system.open_input_file(inside), mode, options)

    def _exists(self, path: str) -> bool:
        system, inside = _arrow(path)
        return bool(system.get_file_info(inside).type)  # NotFound is 0

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        system, inside = _arrow(path)
        found = system.get_file_info(inside)
        cached = _cached(path, [found.size, found.mtime_ns])
        if force or found.mtime_ns is None or not cached.is_file():
            with (
                self._open(path, "rb") as source,
                new_file(cached) as temporary,
                temporary.open("wb") as target,
            ):
                copy_and_hash(source, target)
        return str(cached)


def _cached(url: str, version: Any) -> Path:
    """Path for the local copy of one version of `url`; creates its folder.

    The copy keeps the file's name, because readers use the suffix. Copies of other versions stay in the
    cache, because other processes may be reading them.
    """
    parts = urlsplit(url)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(parts.path).name)[-100:].lstrip(".") or "file"
    cached = Path(get_cache_dir(), "ham_dist", parts.scheme, sha256_of_json([url, version])[:32], name)
    cached.parent.mkdir(parents=True, exist_ok=True)
    return cached


class _RangeFile(io.RawIOBase):
    """A file of `size` bytes at `url`; each read sends one request."""

    def __init__(self, url: str, size: int, version: str | None) -> None:
        self._url = url
        self._size = size
        self._version = version
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
        """The rest of the file, in one request."""
        return self.read(self._size - self._place) or b""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        last = min(self._place + len(view), self._size)
        wanted = last - self._place
        if wanted <= 0:
            return 0
        found = _request(self._url, self._place, last - 1)
        if (found.size, found.version) != (self._size, self._version):
            raise OSError(errno.EIO, "the file has changed on the server since it was opened")
        if len(found.content) != wanted:
            raise OSError(errno.EIO, f"received {len(found.content):,} bytes; expected {wanted:,}")
        view[:wanted] = found.content
        self._place = last
        return wanted


class _Answer:
    """Size and version of a file, and the requested bytes if the server supports range requests."""

    def __init__(self, ranged: bool, size: int | None, version: str | None, content: bytes) -> None:
        self.ranged = ranged
        self.size = size
        self.version = version
        self.content = content


def _probe(url: str) -> _Answer:
    """Request the first byte of `url`, for its size and version.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The server refuses or does not answer.
    """
    return _request(url, 0, 0)


def _request(url: str, first: int, last: int) -> _Answer:
    for pause in (*http.PAUSES, None):
        try:
            with http.get(url, first=first, last=last) as response:
                content = response.content.read(last - first + 2) if response.ranged else b""
                return _Answer(response.ranged, response.total, response.version, content)
        except http.HttpError as error:
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and error.total == 0:
                return _Answer(True, 0, None, b"")  # an empty file has no first byte
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise FileNotFoundError(errno.ENOENT, str(error), url) from None
            if pause is None or not error.temporary:
                raise OSError(errno.EIO, str(error)) from None
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _arrow(path: str) -> tuple[Any, str]:
    parts = urlsplit(path)
    return _file_system(parts.scheme, parts.netloc), parts.netloc + parts.path


@cache
def _file_system(scheme: str, netloc: str) -> Any:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}://{netloc}/")[0]


def _in_mode(raw: Any, mode: str, options: dict[str, Any]) -> IO[Any]:
    if mode == "rb":
        return raw
    if mode != "r":
        raise OSError(errno.EROFS, f"remote files can only be read; mode is {mode!r}")
    return io.TextIOWrapper(io.BufferedReader(raw, _BUFFER), **options)
