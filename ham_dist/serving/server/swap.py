"""The serving version, and its replacement without a pause.

The next version is opened, checked and warmed on another thread. Then it replaces the serving one in one
assignment: each request is encoded, batched and scored by the version that it began with, and the old one is
freed with its last request. If the next one fails, the serving one stays.
"""

import asyncio
import logging
from pathlib import Path

from ham_dist.errors import HamError
from ham_dist.io.untrusted import read_json
from ham_dist.serving.server.metrics import Metrics
from ham_dist.serving.server.model import ServedModel
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.versions import Active, active_version
from ham_dist.serving.server.warmup import read_warmup, warmup_path

log = logging.getLogger(__name__)


class Swapper:
    """Holds the serving version and watches for the next.

    Args:
        options: Settings of the server.
        metrics: Metrics of this process.
        approved: File in which a supervisor names the version that it has verified; None in a process
            without one, which reads the pointer file and verifies by itself.
        leads: True in the one worker that counts what the supervisor could not verify.
    """

    def __init__(
        self, options: ServerOptions, metrics: Metrics, approved: Path | None = None, *, leads: bool = True
    ) -> None:
        self._options, self._metrics, self._approved, self._leads = options, metrics, approved, leads
        self.failure: tuple[str, str] | None = None
        """The version that was activated last and could not be served, with the reason."""
        self._reported: tuple[str, str] | None = None
        """The failure that the supervisor has reported last."""
        self._seen = self._next()
        self.serving = self._open(self._seen)
        """The version that serves."""
        metrics.serves(self.serving, None)

    def _next(self) -> Active:
        """The version to serve.

        Raises:
            BundleError: There is none.
        """
        if self._approved is None:
            return active_version(self._options.bundle)
        state = read_json(self._approved)
        failed = None if state["failed"] is None else (state["failed"][0], state["failed"][1])
        if failed != self._reported:
            self._reported = self.failure = failed
            if failed is not None and self._leads:
                self._metrics.failed(failed[0])
        return Active(state["version"], Path(state["root"]), (state["written"][0], state["written"][1]))

    def _open(self, active: Active) -> ServedModel:
        runtime = self._options.runtime
        model = ServedModel(active.root, active.version, runtime, verify=self._approved is None)
        recorded = read_warmup(warmup_path(self._options.bundle, self._options.warmup))
        model.warm(recorded)
        log.info(
            "%s: version %s is ready (%s)",
            active.root, active.version, f"{len(recorded)} recorded requests" if recorded else "warmed up",
        )  # fmt: skip
        return model

    async def watch(self) -> None:
        """Swaps whenever another version becomes the active one."""
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            await self.look()

    async def look(self) -> None:
        """Looks once for another version, and swaps to it."""
        try:
            active = await asyncio.to_thread(self._next)
        except (HamError, OSError, ValueError) as error:
            if self.failure is None or self.failure[1] != str(error):
                self._fail("", error)
            return
        if active == self._seen:
            if self._approved is None and self.failure is not None and not self.failure[0]:
                self.failure = None  # the pointer file is readable again
            return
        self._seen = active
        if active.version == self.serving.version and active.root == self.serving.root:
            self.failure = None
            return
        try:
            model = await asyncio.to_thread(self._open, active)
        except Exception as error:
            self._fail(active.version, error)
            return
        before, self.serving, self.failure = self.serving, model, None
        self._metrics.serves(model, before)
        log.info("version %s serves in place of %s", model.version, before.version)

    def _fail(self, version: str, error: Exception) -> None:
        self.failure = version, str(error) or type(error).__name__
        self._metrics.failed(version)
        known = isinstance(error, HamError | OSError | ValueError)
        log.error(
            "%s cannot be served, and %s keeps serving: %s",
            f"version {version}" if version else "the active version", self.serving.version, error,
            exc_info=not known,
        )  # fmt: skip
