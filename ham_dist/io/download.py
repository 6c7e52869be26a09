"""Downloads a file over HTTP, and resumes interrupted downloads."""

import logging
import time
from http import HTTPStatus
from pathlib import Path
from typing import IO

from ham_dist.errors import DataError
from ham_dist.io import http
from ham_dist.io.atomic import write_text

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_SECONDS_PER_LINE = 5.0


def download(url: str, path: Path, hint: str, version: Path | None = None) -> None:
    """Downloads `url` to `path`, which may hold its beginning from an earlier call with the same `version`.

    After a broken connection, only the rest is requested (HTTP Range), and only if the file on the server is
    still the same (If-Range). The whole file is downloaded again if it has changed, or if the server supports
    no ranges or sends neither a strong ETag nor a date. Only the length of the content is checked.

    Args:
        url: URL of the file.
        path: Local file; if the download fails, it keeps the bytes received.
        hint: Last line of the error message: another way to get the file.
        version: Local file for the ETag or date of the bytes in `path`, which a later call needs to resume;
            None if there is none.
    Raises:
        DataError: The server refuses or cannot be reached.
    """
    part = _Part(path, version)
    tries = 0
    while True:
        before = part.size
        try:
            if _fetch_rest(url, part):
                return
            problem = "the connection broke"
        except http.HttpError as error:
            if not error.temporary:
                raise DataError(f"{url}: {error}\n  {hint}") from None
            problem = str(error)
        tries = 0 if part.size > before else tries + 1
        if tries > len(http.PAUSES):
            resumed = version is not None and part.validator is not None and part.size
            kept = (
                f"; {part.size:,} bytes are kept, and the same command resumes from there" if resumed else ""
            )
            raise DataError(f"{url}: cannot be downloaded ({problem}){kept}\n  {hint}")
        log.info("%s: %s after %s bytes; retrying", url, problem, f"{part.size:,}")
        time.sleep(http.PAUSES[max(tries - 1, 0)])


class _Part:
    """The beginning of a file, and the version of the file that it belongs to.

    Attributes:
        path: File with the bytes received.
        validator: `http.Response.validator` of the version; None if unknown.
    """

    def __init__(self, path: Path, record: Path | None) -> None:
        self.path = path
        self._record = record
        self.validator = (
            record.read_text(encoding="ascii") if record is not None and record.exists() else None
        )

    @property
    def size(self) -> int:
        """Bytes received."""
        return self.path.stat().st_size if self.path.exists() else 0

    def clear(self, validator: str | None) -> None:
        """Removes the bytes; those that follow belong to the version of `validator`."""
        self.path.unlink(missing_ok=True)
        self.validator = validator
        if self._record is not None:
            self._record.unlink(missing_ok=True)
            if validator is not None:
                write_text(self._record, validator)


def _fetch_rest(url: str, part: _Part) -> bool:
    """Append the rest to `part`; False if the server sent less than it announced."""
    start = 0 if part.validator is None else part.size
    try:
        with http.get(url, first=start or None, if_range=part.validator if start else None) as response:
            if not response.changed:
                if response.first == 0:
                    part.clear(response.validator)
                total = None if response.length is None else response.first + response.length
                with part.path.open("ab") as file:
                    size = _copy(response, file, total, url)
                return total is None or size == total
    except http.HttpError as error:
        if not start or error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.total == start:
            return True  # the file is complete already
    part.clear(None)
    return _fetch_rest(url, part)


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
