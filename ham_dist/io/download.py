"""One file over HTTP, resumed where an earlier download of it ended."""

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
    """Fetch `url` into `path`, which may hold its beginning from an earlier call; only the length of what comes is checked.

    A connection that breaks is made again, and asks for the rest (HTTP Range); a server that cannot do that sends all of it again.

    Args:
        url: The file's address.
        path: Local file; keeps what has come when this fails.
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
            if not error.passing:
                raise DataError(f"{url}: {error}\n  {hint}") from None
            problem = str(error)
        size = path.stat().st_size if path.exists() else 0
        tries = 0 if size > before else tries + 1
        if tries > len(http.PAUSES):
            kept = f"; {size:,} bytes have come, and the same command resumes from there" if size else ""
            raise DataError(f"{url}: cannot be fetched ({problem}){kept}\n  {hint}")
        log.info("%s: %s after %s bytes; trying again", url, problem, f"{size:,}")
        time.sleep(http.PAUSES[max(tries - 1, 0)])


def _fetch_rest(url: str, path: Path, start: int) -> bool:
    """Append what comes to `path`, of which `start` bytes are there; False where less came than was promised."""
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
            return True  # all of it had come before
    path.unlink()
    return _fetch_rest(url, path, 0)


def _copy(response: http.Response, file: IO[bytes], total: int | None, url: str) -> int:
    """Append the content to `file`; returns the size of the file then."""
    size, last_line = response.first, time.monotonic()
    while block := response.content.read(_BLOCK_BYTES):
        file.write(block)
        size += len(block)
        if time.monotonic() - last_line > _SECONDS_PER_LINE:
            last_line = time.monotonic()
            log.info("%s: %s%s MB", url, f"{size / 1e6:,.1f}", f" of {total / 1e6:,.1f}" if total else "")
    return size
