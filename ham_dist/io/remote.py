"""Remote files, opened in place: only what is read of them is fetched.

The PathManager's own handler of http:// and https:// fetches a whole file before it opens it, and its handler of s3:// needs boto3.
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
_FETCHES = 3
"""How often a file is fetched that changes while it is fetched."""


class HttpHandler(PathHandler):
    """Opens http:// and https:// by range requests; from a server that does not answer these a file is fetched whole."""

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
        for _ in range(_FETCHES):
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
        raise OSError(errno.EIO, "it changes on the server while it is fetched")


class ArrowHandler(PathHandler):
    """Opens s3:// and gs:// by Arrow's file systems, which take credentials and regions from the usual places of each."""

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
    """The local copy of one version of `url`, with the file's own name, which readers look at; its folder is made.

    Copies of other versions stay in the cache, since other processes may be reading them.
    """
    parts = urlsplit(url)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(parts.path).name)[-100:].lstrip(".") or "file"
    cached = Path(get_cache_dir(), "ham_dist", parts.scheme, sha256_of_json([url, version])[:32], name)
    cached.parent.mkdir(parents=True, exist_ok=True)
    return cached


class _RangeFile(io.RawIOBase):
    """A file of `size` bytes at `url`; each read is one request."""

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
        """The rest, in one request rather than many small ones."""
        return self.read(self._size - self._place) or b""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        last = min(self._place + len(view), self._size)
        wanted = last - self._place
        if wanted <= 0:
            return 0
        found = _ask(self._url, self._place, last - 1)
        if (found.size, found.version) != (self._size, self._version):
            raise OSError(errno.EIO, "it has changed on the server since it was opened")
        if len(found.content) != wanted:
            raise OSError(errno.EIO, f"{len(found.content):,} bytes came where {wanted:,} were asked for")
        view[:wanted] = found.content
        self._place = last
        return wanted


class _Found:
    """What a server tells of a file, with the bytes that were asked for where it answers range requests."""

    def __init__(self, ranged: bool, size: int | None, version: str | None, content: bytes) -> None:
        self.ranged = ranged
        self.size = size
        self.version = version
        self.content = content


def _probe(url: str) -> _Found:
    """Size and version of the file at `url`, by asking for its first byte.

    Raises:
        FileNotFoundError: There is none.
        OSError: The server refuses or does not answer.
    """
    return _ask(url, 0, 0)


def _ask(url: str, first: int, last: int) -> _Found:
    for pause in (*http.PAUSES, None):
        try:
            with http.get(url, first=first, last=last) as response:
                content = response.content.read(last - first + 2) if response.ranged else b""
                return _Found(response.ranged, response.total, response.version, content)
        except http.HttpError as error:
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and error.total == 0:
                return _Found(True, 0, None, b"")  # an empty file has no first byte
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise FileNotFoundError(errno.ENOENT, str(error), url) from None
            if pause is None or not error.passing:
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
        raise OSError(errno.EROFS, f"is opened for reading only, not as {mode!r}")
    return io.TextIOWrapper(io.BufferedReader(raw, _BUFFER), **options)
