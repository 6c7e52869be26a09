"""Requests by HTTP: headers, time limits, byte ranges, and one error for all that goes wrong."""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import ham_dist

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of a request that failed for a reason that may pass."""
TIMEOUT_SECONDS = 60.0
_PASSING = (429, 500, 502, 503, 504)
# What the network does. A full disk is another OSError, and no reason to try again.
_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class HttpError(OSError):
    """A server that refuses, does not answer, or breaks off.

    Attributes:
        status: Status code; None where no answer came.
        passing: Whether the same request may succeed later.
        total: Bytes of the whole file, where a refused range request tells them.
    """

    def __init__(
        self, text: str, *, status: int | None = None, passing: bool = False, total: int | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.passing = passing
        self.total = total


@dataclass(frozen=True)
class Response:
    """An answer whose content can be read, within the block of `get`.

    Attributes:
        first: Place of its first byte in the file; 0 unless the server answers with a range.
        ranged: Whether it is the range that was asked for.
        length: Bytes of the content; None where the server does not tell.
        total: Bytes of the whole file; None where the server does not tell.
        version: Changes with the content: the ETag, or time and size; None where the server gives none of them.
    """

    first: int
    ranged: bool
    length: int | None
    total: int | None
    version: str | None
    content: http.client.HTTPResponse


@contextmanager
def get(url: str, *, first: int | None = None, last: int | None = None) -> Iterator[Response]:
    """Ask for `url`, or for its bytes `first` to `last` (included; None for the end).

    Raises:
        HttpError: The server refuses, does not answer, or breaks off, also while the content is read within the block.
    """
    headers = {"User-Agent": f"ham-dist/{ham_dist.__version__}", "Accept-Encoding": "identity"}
    if first is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    try:
        with _open(url, headers) as answer:
            yield _response(answer, first)
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer, with its connection
        total = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""))
        raise HttpError(
            f"the server answered {error.code} {error.reason}",
            status=error.code,
            passing=error.code in _PASSING,
            total=int(total[1]) if total else None,
        ) from None
    except _BROKEN as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise HttpError(f"the server does not answer: {reason}", passing=True) from None


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except (ValueError, http.client.InvalidURL) as error:
        raise HttpError(f"is not a valid address: {error}") from None
    return answer


def _response(answer: http.client.HTTPResponse, asked: int | None) -> Response:
    length = _number(answer.headers.get("Content-Length"))
    told = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", answer.headers.get("Content-Range", ""))
    ranged = answer.status == HTTPStatus.PARTIAL_CONTENT and told is not None and int(told[1]) == (asked or 0)
    total = length
    if ranged:
        assert told is not None
        total = None if told[2] == "*" else int(told[2])
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    version = etag or (f"{modified}, {total} bytes" if modified and total is not None else None)
    return Response(asked or 0 if ranged else 0, ranged, length, total, version, answer)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text) else None
