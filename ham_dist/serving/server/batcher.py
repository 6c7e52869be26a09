"""Batches without a timer: all requests that wait when the model is free run together.

A request that finds the model idle starts at once, so an idle server adds no delay. Under load, requests
collect while a batch runs, so batches grow as far as they must.

Small batches run on the event loop: compiled code holds Python's global lock, so a thread would only add two
switches to another thread. Large ones run on a thread, so that the server answers its probes meanwhile.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from ham_dist.serving.id_batch import IdBatch, concatenated
from ham_dist.serving.server.model import ServedModel
from ham_dist.serving.server.refusal import Refused

log = logging.getLogger(__name__)

LOOP_ROWS = 64
"""Most records of a batch that runs on the event loop."""


class Scored(NamedTuple):
    """The answer to a request.

    Attributes:
        probabilities: (n,) float32.
        version: Version of the model that computed all of them.
        waited: Seconds in the queue.
        ran: Seconds that the model took for the batch.
    """

    probabilities: np.ndarray[Any, Any]
    version: str
    waited: float
    ran: float


class _Waiting(NamedTuple):
    model: ServedModel
    batch: IdBatch
    answer: "asyncio.Future[Scored]"
    since: float


class Batcher:
    """Runs requests, one batch at a time. All methods are called on the thread of the event loop.

    Args:
        max_rows: Most records of a batch of several requests.
        queue_rows: Most records that are waiting or running.
        observe: Called on the event loop after each batch with its records and seconds.
        count: Called with each request after its batch, on any thread.
        loop_rows: Most records of a batch that runs on the event loop.
    """

    def __init__(
        self,
        max_rows: int,
        queue_rows: int,
        observe: Callable[[int, float], None],
        count: Callable[[ServedModel, IdBatch], None],
        loop_rows: int = LOOP_ROWS,
    ) -> None:
        self._loop_rows = loop_rows
        self._soon: list[_Waiting] = []
        """Requests that run when all that have arrived with them are read."""
        self._on_thread = 0
        """Requests that the thread has."""
        self._max_rows, self._queue_rows, self._observe, self._count = max_rows, queue_rows, observe, count
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._rows_per_second = 0.0
        self.rows = 0
        """Records that are waiting or running."""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, model: ServedModel, batch: IdBatch) -> "asyncio.Future[Scored]":
        """Queues a request.

        Args:
            model: The version that encoded it, which will score it.
            batch: Its records, at least one.
        Raises:
            Refused: The queue is full.
        """
        if self.rows + batch.rows > self._queue_rows:
            raise Refused(
                429,
                f"queue: {self.rows:,} records are waiting, and {batch.rows:,} more would exceed its "
                f"{self._queue_rows:,}\n  Send the request again after the seconds of Retry-After.",
                {"retry-after": str(self._retry_after())},
            )
        answer: asyncio.Future[Scored] = self._loop.create_future()
        self.rows += batch.rows
        waiting = _Waiting(model, batch, answer, perf_counter())
        if self._on_thread or batch.rows > self._loop_rows:
            self._give([waiting])
        else:
            if not self._soon:
                self._loop.call_soon(self._run_soon)
            self._soon.append(waiting)
        return answer

    def _give(self, requests: Sequence[_Waiting]) -> None:
        """Queues requests for the thread."""
        self._on_thread += len(requests)
        for waiting in requests:
            self._queue.put(waiting)

    def _run_soon(self) -> None:
        taken, self._soon = self._soon, []
        rows = sum(waiting.batch.rows for waiting in taken)
        if (
            self._on_thread
            or rows > self._loop_rows
            or any(each.model is not taken[0].model for each in taken)
        ):
            self._give(taken)
            return
        started = perf_counter()
        scored = _run(taken)
        self._deliver(taken, scored, started, perf_counter())
        for waiting in taken:
            self._count(waiting.model, waiting.batch)

    def _retry_after(self) -> int:
        return max(1, math.ceil(self.rows / self._rows_per_second)) if self._rows_per_second else 1

    async def close(self) -> None:
        """Ends the thread after everything that was queued."""
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        held = self._queue.get()
        while held is not None:
            taken, held = self._take(held)
            started = perf_counter()
            scored = _run(taken)
            ended = perf_counter()
            self._loop.call_soon_threadsafe(self._deliver_from_thread, taken, scored, started, ended)
            for waiting in taken:
                self._count(waiting.model, waiting.batch)
            if held is _NOTHING:
                # An idle thread must not keep the last version in memory.
                del taken, scored, waiting
                held = self._queue.get()

    def _take(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """Everything that waits and fits into one batch, and the first request that does not."""
        taken, rows = [first], first.batch.rows
        while True:
            try:
                held = self._queue.get_nowait()
            except Empty:
                return taken, _NOTHING
            if held is None or held.model is not first.model or rows + held.batch.rows > self._max_rows:
                return taken, held
            taken.append(held)
            rows += held.batch.rows

    def _deliver_from_thread(
        self, taken: Sequence[_Waiting], scored: Sequence[Any], started: float, ended: float
    ) -> None:
        self._on_thread -= len(taken)
        self._deliver(taken, scored, started, ended)

    def _deliver(
        self, taken: Sequence[_Waiting], scored: Sequence[Any], started: float, ended: float
    ) -> None:
        rows = sum(waiting.batch.rows for waiting in taken)
        self.rows -= rows
        self._rows_per_second = rows / max(ended - started, 1e-6)
        for waiting, result in zip(taken, scored, strict=True):
            if waiting.answer.done():  # its request was cancelled
                continue
            if isinstance(result, Exception):
                waiting.answer.set_exception(result)
                continue
            version = waiting.model.version
            waiting.answer.set_result(Scored(result, version, started - waiting.since, ended - started))
        self._observe(rows, ended - started)


_NOTHING: Any = object()
"""In place of a request: the queue was empty."""


def _run(taken: Sequence[_Waiting]) -> list[Any]:
    """Probabilities of each request, or the exception that it raised."""
    try:
        probabilities = taken[0].model.run(concatenated([waiting.batch for waiting in taken]))
        ends = np.cumsum([waiting.batch.rows for waiting in taken])
        return np.split(probabilities, ends[:-1])
    except Exception as error:
        log.exception("the model failed on %s requests", len(taken))
        # One request must not take the others with it.
        return [error] if len(taken) == 1 else [_run([waiting])[0] for waiting in taken]
