"""Downloads a file over HTTP, and resumes interrupted downloads."""

import logging
import time
from http import HTTPStatus
from pathlib import Path
from typing import IO

from ham_dist.errors import DataError
from ham_dist.io import http

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_SECONDS_PER_LINE = 5.0


def download(url: str, path: Path, hint: str) -> None:
    """Downloads `url` to `path`, which may hold its beginning from an earlier call.

    After a broken connection, only the rest is requested (HTTP Range); from a server without range support,
    the whole file is downloaded again. Only the length of the content is checked.

    Args:
        url: URL of the file.
        path: Local file; if the download fails, it keeps the bytes received.
        hint: Last line of the error message: another way to get the file.
    Raises:
        DataError: The server refuses or cannot be reached.
    """
    tries = 0
    while True:
        before = path.stat().st_size if path.exists() else 0
        try:
            if _fetch_rest(url, path, before):
                return
            problem = "the connection broke"
        except http.HttpError as error:
            if not error.temporary:
                raise DataError(f"{url}: {error}\n  {hint}") from None
            problem = str(error)
        size = path.stat().st_size if path.exists() else 0
        tries = 0 if size > before else tries + 1
        if tries > len(http.PAUSES):
            kept = f"; {size:,} bytes are kept, and the same command resumes from there" if size else ""
            raise DataError(f"{url}: cannot be downloaded ({problem}){kept}\n  {hint}")
        log.info("%s: %s after %s bytes; retrying", url, problem, f"{size:,}")
        time.sleep(http.PAUSES[max(tries - 1, 0)])


def _fetch_rest(url: str, path: Path, start: int) -> bool:
    """Append the rest to `path`, which has `start` bytes; False if the server sent less than it announced."""
    try:
        with http.get(url, first=start or None) as response:
            total = None if response.length is None else response.first + response.length
            with path.open("ab" if response.first else "wb") as file:
                size = _copy(response, file, total, url)
            return total is None or size == total
    except http.HttpError as error:
        if not start or error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.total == start:
            return True  # the file is complete already
    path.unlink()
    return _fetch_rest(url, path, 0)


def _copy(response: http.Response, file: IO[bytes], total: int | None, url: str) -> int:
    """Append the content to `file`; returns the resulting file size."""
    size, last_line = response.first, time.monotonic()
    while block := response.content.read(_BLOCK_BYTES):
        file.write(block)
        size += len(block)
        if time.monotonic() - last_line > _SECONDS_PER_LINE:
            last_line = time.monotonic()
            log.info("%s: %s%s MB", url, f"{size / 1e6:,.1f}", f" of {total / 1e6:,.1f}" if total else "")
    return size
