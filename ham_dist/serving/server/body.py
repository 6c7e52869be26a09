"""Reads the body of a request within limits of size and time."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ham_dist.serving.server.refusal import Refused

_DISCARDED = 4
"""A body of up to this many times the limit is received and dropped, so that the client sees the answer: it
sends all before it reads."""


class Disconnected(Exception):
    """Raised if the client has gone."""


async def read_body(
    receive: Callable[[], Awaitable[Any]], headers: Mapping[bytes, bytes], max_bytes: int, seconds: float
) -> bytes:
    """Returns the body.

    Raises:
        Refused: It is too large, too slow, or compressed.
        Disconnected: The client has gone.
    """
    if (encoding := headers.get(b"content-encoding", b"identity")) != b"identity":
        raise Refused(
            415,
            f"Content-Encoding: {encoding.decode('latin-1')}: expected none. Send the body uncompressed",
            {"connection": "close"},
        )
    length = headers.get(b"content-length", b"0")
    declared = int(length) if length.isdigit() else 0
    if declared > _DISCARDED * max_bytes:
        raise _too_large(declared, max_bytes)
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                size += len(part)
                more = message.get("more_body", False)
                if size <= max_bytes:
                    parts.append(part)
                else:
                    parts.clear()
                    if size > _DISCARDED * max_bytes:
                        raise _too_large(size, max_bytes)
    except TimeoutError:
        raise Refused(
            408,
            f"body: {size:,} bytes came in {seconds:g} seconds; expected all of it. Send it faster",
            {"connection": "close"},
        ) from None
    if size > max_bytes:
        raise _too_large(size, max_bytes)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(size: int, max_bytes: int) -> Refused:
    return Refused(
        413,
        f"body: has {size:,} bytes or more; expected at most {max_bytes:,}\n"
        "  Send fewer records in a request, or start the server with a larger --max-body-bytes.",
        {"connection": "close"},
    )
