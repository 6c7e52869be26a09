"""Load on an HTTP server: clients that ask as soon as they have an answer, or at times of their own.

In a closed loop, the server sets the pace. In an open loop, requests come at random times whatever the
server does, and a latency counts from the time at which its request was due, so waiting for a free connection
counts.
"""

import asyncio
import itertools
import random
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

_TIMING = re.compile(rb"server-timing: queue;dur=([\d.]+), model;dur=([\d.]+), total;dur=([\d.]+)")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"x-model-version: (\S+)")


def request_of(path: str, body: bytes) -> bytes:
    """Bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Result:
    """Answers to the requests of a run.

    Attributes:
        seconds: Length of the run.
        latencies: Seconds of each answer.
        statuses: Number of answers by status; `broken` for a connection that ended before its answer.
        overheads: Seconds of the server without the model, by its own clock, where it reports them.
        versions: Number of answers by version and body, where the server names a version.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    overheads: list[float] = field(default_factory=list)
    versions: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers came."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self._left = b""
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._left += data
        end = self._left.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._left, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._left) >= whole and self._answer is not None and not self._answer.done():
            self._answer.set_result((self._left[:end], self._left[end + 4 : whole]))
            self._left = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed before the answer"))

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


class _Client:
    """Asks on one connection, and connects again where the server has closed it."""

    def __init__(self, address: tuple[str, int], result: Result) -> None:
        self._address, self._result = address, result
        self._connection: _Connection | None = None

    async def ask(self, request: bytes, since: float) -> None:
        """Asks once, and counts the answer."""
        result = self._result
        try:
            if (
                self._connection is None
                or self._connection.transport is None
                or self._connection.transport.is_closing()
            ):
                loop = asyncio.get_running_loop()
                _, self._connection = await loop.create_connection(_Connection, *self._address)
            head, body = await self._connection.ask(request)
        except ConnectionRefusedError:
            result.statuses["refused"] += 1
            await asyncio.sleep(0.01)
            return
        except OSError:
            result.statuses["broken"] += 1
            self._connection = None
            return
        result.latencies.append(perf_counter() - since)
        result.statuses[head[9:12].decode()] += 1
        if (timing := _TIMING.search(head)) is not None:
            result.overheads.append((float(timing[3]) - float(timing[2])) / 1e3)
        if (version := _VERSION.search(head)) is not None:
            result.versions[version[1].decode(), body] += 1
        if b"connection: close" in head.lower():
            self.close()

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.close()
        self._connection = None


async def closed_loop(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float
) -> Result:
    """Asks by several clients, each as soon as it has its answer."""
    result = Result()
    end = perf_counter() + seconds

    async def keep_asking(own: Iterator[bytes]) -> None:
        client = _Client(address, result)
        while perf_counter() < end:
            await client.ask(next(own), perf_counter())
        client.close()

    started = perf_counter()
    shifted = [
        itertools.cycle([*requests[place % len(requests) :], *requests[: place % len(requests)]])
        for place in range(clients)
    ]
    await asyncio.gather(*map(keep_asking, shifted))
    result.seconds = perf_counter() - started
    return result


async def open_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    connections: int = 64,
    seed: int = 0,
) -> Result:
    """Asks at random times, `rate` times a second on average."""
    result = Result()
    draw = random.Random(seed)
    free = deque(_Client(address, result) for _ in range(connections))
    all_clients = list(free)
    waiting: deque[float] = deque()
    own = itertools.cycle(requests)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(client: _Client, due: float) -> None:
        await client.ask(next(own), due)
        while waiting:
            await client.ask(next(own), waiting.popleft())
        free.append(client)

    started = due = perf_counter()
    while due < started + seconds:
        due += draw.expovariate(rate)
        if (pause := due - perf_counter()) > 0:
            await asyncio.sleep(pause)
        if free:
            task = asyncio.create_task(serve(free.popleft(), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            waiting.append(due)
    while tasks:
        await asyncio.gather(*tasks)
    result.seconds = perf_counter() - started
    for client in all_clients:
        client.close()
    return result
