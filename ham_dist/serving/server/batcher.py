"""Batches without a timer: all requests that wait when the model is free run together.

A request that finds the model idle starts at once, so an idle server adds no delay. Under load, requests
collect while a batch runs, so batches grow as far as they must.
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
    """Runs requests on one thread. All methods are called on the thread of the event loop.

    Args:
        max_rows: Most records of a batch of several requests.
        queue_rows: Most records that are waiting or running.
        observe: Called on the event loop after each batch with its records and seconds.
        count: Called on the batcher's thread after each batch with each part of it.
    """

    def __init__(
        self,
        max_rows: int,
        queue_rows: int,
        observe: Callable[[int, float], None],
        count: Callable[[ServedModel, IdBatch], None],
    ) -> None:
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
        self._queue.put(_Waiting(model, batch, answer, perf_counter()))
        return answer

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
            self._loop.call_soon_threadsafe(self._deliver, taken, scored, started, ended)
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
