"""Scores requests of every protocol: checks and encodes them, and waits for their batch."""

import asyncio

import numpy as np

from ham_dist.serving.server.batcher import Batcher, Scored
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.model import ServedModel, Values
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.refusal import Refused
from ham_dist.serving.server.swap import Swapper
from ham_dist.serving.server.warmup import Recorder, warmup_path

LARGE_BYTES = 1 << 16
"""Requests above this size are parsed and encoded on another thread, so that small ones do not wait."""


class Service:
    """A model in service. It is made and used on the thread of an event loop.

    Args:
        options: Settings of the server.
        swapper: Holds the serving version; it has one.
        metrics: Metrics of this process.
        records: True in the one process that records requests.
    """

    def __init__(
        self, options: ServerOptions, swapper: Swapper, metrics: Metrics, *, records: bool = True
    ) -> None:
        self.options, self.swapper, self.metrics = options, swapper, metrics
        self.batcher = Batcher(options.max_rows, options.queue_rows, metrics.batch, metrics.count)
        self.recorder = Recorder(
            warmup_path(options.bundle, options.warmup), options.record_warmup if records else 0
        )
        self.draining = False
        """True after SIGTERM: nothing new is accepted, and connections are closed after their answer."""

    @property
    def model(self) -> ServedModel:
        """The serving version."""
        return self.swapper.serving

    async def score(self, model: ServedModel, values: Values, size: int) -> Scored:
        """Returns the probabilities of a request.

        Args:
            model: The version to score it with.
            values: Its records.
            size: Bytes of the request.
        Raises:
            Refused: Its records cannot be scored, or the queue is full.
        """
        if size > LARGE_BYTES:
            batch = await asyncio.to_thread(model.encode, values, self.options.max_rows)
        else:
            batch = model.encode(values, self.options.max_rows)
        if not batch.rows:
            return Scored(np.zeros(0, np.float32), model.version, 0.0, 0.0)
        scored = await self.batcher.submit(model, batch)
        if self.recorder.wanted:
            self.recorder.add(values)
        return scored

    def require_served(self, name: str, version: str | None) -> ServedModel:
        """Returns the serving version, if it is the one that a request names.

        Raises:
            Refused: It is another one.
        """
        model = self.model
        if name != self.options.model:
            raise Refused(404, f"model {name[:80]!r}: is not served; expected {self.options.model!r}")
        if version and version != model.version:
            raise Refused(
                404,
                f"version {version[:80]!r} of {name}: is not served; expected {model.version!r}, or none for "
                "the active one",
            )
        return model

    def tick(self) -> None:
        """Updates the metrics that are not updated for each request."""
        self.metrics.tick(self.batcher.rows)

    async def run_ticks(self) -> None:
        """Calls `tick` each second, and looks for another version to serve."""
        watching = asyncio.create_task(self.swapper.watch())
        try:
            while True:
                await asyncio.sleep(1)
                self.tick()
        finally:
            watching.cancel()

    async def close(self) -> None:
        """Ends the model's thread, after the last answer."""
        await self.batcher.close()
        self.recorder.write()
        self.tick()
