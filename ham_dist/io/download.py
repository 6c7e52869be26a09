"""One file over HTTP, going on where an earlier download of it ended."""

import http.client
import io
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import ham_dist
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

# Tries without a new byte before it gives up, and the pauses between them in seconds.
PAUSES = (1.0, 2.0, 4.0, 8.0)
TIMEOUT = 30.0
# What the network does; a full disk is another OSError, and no reason to try again.
BROKEN = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError)
_PIECE = 1 << 20
_SECONDS_PER_LINE = 5.0


def download(url: str, path: Path, mend: str) -> None:
    """Fetch `url` into `path`, which may hold its beginning from an earlier call; what comes is not checked but for its length.

    A connection that breaks is made again, and asks for the rest (HTTP Range); a server that cannot do that gives all of it again.
    raises: DataError ending in `mend` if the server refuses or cannot be reached; `path` keeps what has come.
    """
    tries = 0
    while True:
        before = path.stat().st_size if path.exists() else 0
        try:
            if _take(url, path, before):
                return
            problem = "the connection broke"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DataError(f"{url}: the server says {error.code} {error.reason}\n  {mend}") from None
            problem = f"the server says {error.code} {error.reason}"
        except (*BROKEN, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        size = path.stat().st_size if path.exists() else 0
        tries = 0 if size > before else tries + 1
        if tries > len(PAUSES):
            kept = f"; {size:,} bytes have come, and the same command goes on from there" if size else ""
            raise DataError(f"{url}: cannot be fetched ({problem}){kept}\n  {mend}")
        log.info("%s: %s after %s bytes; trying again", url, problem, f"{size:,}")
        time.sleep(PAUSES[max(tries - 1, 0)])


def _take(url: str, path: Path, start: int) -> bool:
    """Append what comes to `path`, of which `start` bytes are there; False where less came than was promised."""
    headers = {"User-Agent": f"ham-dist/{ham_dist.__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            error.close()
            if total and int(total[1]) == start:
                return True  # all of it had come before
            path.unlink()
            return _take(url, path, 0)
        raise
    with response:
        answered = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if start and (
            response.status != http.HTTPStatus.PARTIAL_CONTENT or not answered or int(answered[1]) != start
        ):
            start = 0
        length = response.headers.get("Content-Length")
        total_bytes = start + int(length) if length is not None else None
        with path.open("ab" if start else "wb") as file:
            size = _copy(response, file, start, total_bytes, url)
    return total_bytes is None or size == total_bytes


def _copy(
    response: http.client.HTTPResponse, file: io.BufferedWriter, size: int, total: int | None, url: str
) -> int:
    """Returns the size of the file then, from `size` before."""
    told = time.monotonic()
    while piece := response.read(_PIECE):
        file.write(piece)
        size += len(piece)
        if time.monotonic() - told > _SECONDS_PER_LINE:
            told = time.monotonic()
            log.info("%s: %s%s MB", url, f"{size / 1e6:,.1f}", f" of {total / 1e6:,.1f}" if total else "")
    return size
