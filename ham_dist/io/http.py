"""HTTP requests with headers, timeouts and byte ranges; all failures raise one error."""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import ham_dist

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each retry of a request that failed with a temporary error."""
TIMEOUT_SECONDS = 60.0
_TEMPORARY_STATUS = (429, 500, 502, 503, 504)
# Errors of the network. A full disk also raises OSError, but retrying does not help then.
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class HttpError(OSError):
    """Raised when a server refuses a request, does not answer, or the connection breaks.

    Attributes:
        status: Status code; None without an answer.
        temporary: True if the same request may succeed later.
        total: Bytes of the whole file, if the answer to a refused range request states them.
    """

    def __init__(
        self, text: str, *, status: int | None = None, temporary: bool = False, total: int | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.temporary = temporary
        self.total = total


@dataclass(frozen=True)
class Response:
    """An answer of the server; its content can be read within the block of `get`.

    Attributes:
        first: Position of its first byte in the file; 0 unless the answer is a range.
        ranged: True if the answer is the requested range.
        length: Bytes of the content; None if unknown.
        total: Bytes of the whole file; None if unknown.
        version: Changes with the content: the ETag, or time and size; None if the server sends neither.
        validator: Value of `if_range` for later requests; None if the server sends none that is strong.
        changed: True if the answer is a range of other content than `if_range` stands for: not all servers
            heed it.
        content: The content, to be read.
    """

    first: int
    ranged: bool
    length: int | None
    total: int | None
    version: str | None
    validator: str | None
    changed: bool
    content: http.client.HTTPResponse


@contextmanager
def get(
    url: str, *, first: int | None = None, last: int | None = None, if_range: str | None = None
) -> Iterator[Response]:
    """Sends a GET request.

    Args:
        url: The URL.
        first: First byte of the requested range; None for the whole file.
        last: Last byte of the range, inclusive; None for the end of the file.
        if_range: The `validator` of an earlier answer: if the file has changed since, the server sends the
            whole file instead of the range.
    Raises:
        HttpError: The server refuses, does not answer, or the connection breaks; also while the content is
            read within the block.
    """
    headers = {"User-Agent": f"ham-dist/{ham_dist.__version__}", "Accept-Encoding": "identity"}
    if first is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    if if_range is not None:
        headers["If-Range"] = if_range
    try:
        with _open(url, headers) as answer:
            yield _response(answer, first, if_range)
    except urllib.error.HTTPError as error:
        error.close()  # the error object holds the connection
        total = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""))
        raise HttpError(
            f"the server answered {error.code} {error.reason}",
            status=error.code,
            temporary=error.code in _TEMPORARY_STATUS,
            total=int(total[1]) if total else None,
        ) from None
    except _NETWORK_ERRORS as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise HttpError(f"the server does not answer: {reason}", temporary=True) from None


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except (ValueError, http.client.InvalidURL) as error:
        raise HttpError(f"is not a valid URL: {error}") from None
    return answer


def _response(answer: http.client.HTTPResponse, first: int | None, if_range: str | None) -> Response:
    length = _number(answer.headers.get("Content-Length"))
    header = answer.headers.get("Content-Range", "")
    sent = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", header)
    ranged = answer.status == HTTPStatus.PARTIAL_CONTENT and sent is not None and int(sent[1]) == (first or 0)
    total = length
    if ranged:
        assert sent is not None
        total = None if sent[2] == "*" else int(sent[2])
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    version = etag or (f"{modified}, {total} bytes" if modified and total is not None else None)
    now = etag if if_range is None or if_range.startswith('"') else modified
    changed = ranged and if_range is not None and now is not None and now != if_range
    first = first or 0 if ranged else 0
    return Response(first, ranged, length, total, version, _validator(answer), changed, answer)


def _validator(answer: http.client.HTTPResponse) -> str | None:
    """The strong validator of an answer: its ETag, or without one its date.

    A date is strong if the file was not changed within the second in which it was sent. Source: RFC 9110,
    sections 8.8.2.2 and 13.1.5.
    """
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    if etag is not None:
        return etag if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else None
    try:
        age = parsedate_to_datetime(answer.headers.get("Date", "")) - parsedate_to_datetime(modified or "")
    except (TypeError, ValueError):  # missing, or not dates
        return None
    return modified if age >= timedelta(seconds=1) else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text) else None
