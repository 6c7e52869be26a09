"""Workers: processes that are forked from one that has imported everything.

The supervisor loads no model and serves nothing. It verifies each version once, names the verified one to the
workers in a file, replaces workers that have ended, and ends all of them on SIGTERM. It stays at one thread,
because a process of several threads cannot be forked safely.
"""

import gc
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ham_dist.errors import BundleError, HamError
from ham_dist.export.bundle import verify_files
from ham_dist.io.atomic import write_text
from ham_dist.serving.runtimes.runtime import RuntimeName
from ham_dist.serving.scorer import Scorer
from ham_dist.serving.server.listen import bind, urls_of
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.versions import Active, active_version
from ham_dist.serving.server.worker import Place, run_worker

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
"""Time between two looks at the workers."""
_SHORT_LIFE = 10.0
"""A worker that ends sooner than this (in seconds) is replaced later and later."""
_LONGEST_WAIT = 30.0
_MORE_SECONDS = 5.0
"""Time after `drain_seconds` until a worker that has not ended is killed."""


class _Slot:
    """The place of a worker, which others take after it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        self.started = 0.0
        self.due = 0.0
        """When to start the next worker."""
        self.short_lives = 0


class Supervisor:
    """Runs workers until SIGTERM or SIGINT.

    Args:
        options: Settings of the server.
        ready: Called with the server's URLs as soon as all workers answer.
    """

    def __init__(self, options: ServerOptions, ready: Callable[[Sequence[str]], None]) -> None:
        self._options, self._ready = options, ready
        self._fork = multiprocessing.get_context("fork")
        self._stopped = False
        self._slots = [_Slot(number) for number in range(options.workers)]
        self._verifying: tuple[BaseProcess, Active] | None = None
        self._seen: Active | str | None = None
        """The version in the pointer file when it was last read, or the message of the error."""
        self._approved: Active | None = None
        self._looked = 0.0

    def run(self) -> None:
        """Serves until it is stopped.

        Raises:
            HamError: The bundle or an address cannot be used.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        options = self._options
        with ExitStack() as stack:
            # Bound, so that the ports stay ours, and not listening: the workers' sockets share them.
            bound = [stack.enter_context(bind(options.host, options.port, shared=True))]
            if options.grpc_port is not None:
                bound.append(stack.enter_context(bind(options.host, options.grpc_port, shared=True)))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ham-dist-serve-")))
            self._place = Place(folder, os.getpid(), [each.getsockname()[1] for each in bound])
            self._place.metrics.mkdir()
            # The garbage collector would write to the pages of these objects, and so copy them into each
            # worker.
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            self._verify_first()
            try:
                self._start_all()
                if not self._stopped:
                    self._ready(urls_of(bound))
                while self._waits():
                    self._replace_ended()
                    self._look_at_versions()
            finally:
                self._end_all(bound)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _waits(self) -> bool:
        """Waits a little; False if the supervisor was stopped."""
        time.sleep(_LOOK_SECONDS)
        return not self._stopped

    # Versions

    def _verify_first(self) -> None:
        active = active_version(self._options.bundle)
        self._seen = active
        process = self._start_verifying(active)
        while process.is_alive() and not self._stopped:
            process.join(_LOOK_SECONDS)
        if self._stopped:
            process.kill()
        elif (failure := self._end_verifying()) is not None:
            raise BundleError(failure)
        self._approve(active, None)

    def _look_at_versions(self) -> None:
        if self._verifying is not None:
            process, active = self._verifying
            if not process.is_alive():
                failure = self._end_verifying()
                if failure is None:
                    self._approve(active, None)
                else:
                    self._refuse(active.version, failure)
            return
        if time.monotonic() < self._looked + self._options.poll_seconds:
            return
        self._looked = time.monotonic()
        try:
            active = active_version(self._options.bundle)
        except HamError as error:
            if self._seen != str(error):
                self._seen = str(error)
                self._refuse("", str(error))
            return
        if active != self._seen:
            self._seen = active
            self._start_verifying(active)

    def _start_verifying(self, active: Active) -> BaseProcess:
        process = self._started(_verify, active.root, self._options.runtime, self._place.message)
        self._verifying = process, active
        return process

    def _end_verifying(self) -> str | None:
        """The reason why the version is not verified; None if it is."""
        assert self._verifying is not None, "it has been started"
        process, active = self._verifying
        self._verifying = None
        process.join()
        if not process.exitcode:
            return None
        try:
            return self._place.message.read_text(encoding="utf-8")
        except OSError:
            return f"{active.root}: verifying ended with status {process.exitcode}. Run `ham-dist verify`"

    def _approve(self, active: Active, failure: tuple[str, str] | None) -> None:
        self._approved = active
        state = {"version": active.version, "root": str(active.root), "written": active.written}
        write_text(self._place.approved, json.dumps(state | {"failed": failure}))

    def _refuse(self, version: str, reason: str) -> None:
        log.error("version %s cannot be served: %s", version or "(unknown)", reason)
        assert self._approved is not None, "the first one was"
        self._approve(self._approved, (version, reason))

    # Workers

    def _started(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        """A forked process, which gets signals only after it has its own handlers."""
        process = self._fork.Process(target=target, args=arguments)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        return process

    def _start(self, slot: _Slot) -> None:
        self._place.clear(slot.number)
        slot.started = time.monotonic()
        slot.process = self._started(run_worker, self._options, self._place, slot.number)

    def _start_all(self) -> None:
        """Starts all workers and waits until they answer.

        Raises:
            BundleError: One of them ended.
        """
        for slot in self._slots:
            if self._stopped:
                return
            self._start(slot)
        while self._waits():
            if all(self._place.ready(slot.number).exists() for slot in self._slots):
                return
            for slot in self._slots:
                assert slot.process is not None, "it has been started"
                if not slot.process.is_alive():
                    raise BundleError(self._place.reason(slot.number, slot.process.exitcode))

    def _replace_ended(self) -> None:
        for slot in self._slots:
            if slot.process is not None and not slot.process.is_alive():
                code, life = slot.process.exitcode, time.monotonic() - slot.started
                slot.process.close()
                slot.process = None
                slot.short_lives = slot.short_lives + 1 if life < _SHORT_LIFE else 0
                wait = min(_LONGEST_WAIT, 2.0 ** (slot.short_lives - 1)) if slot.short_lives else 0
                slot.due = time.monotonic() + wait
                log.error("%s\n  Starting another one.", self._place.reason(slot.number, code))
            if slot.process is None and time.monotonic() >= slot.due:
                self._start(slot)

    def _end_all(self, bound: Sequence[socket.socket]) -> None:
        """Ends all workers; each answers what it has accepted."""
        for each in bound:
            each.close()
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._options.drain_seconds + _MORE_SECONDS
        for process in running:
            process.join(max(0, deadline - time.monotonic()))
            if process.is_alive():
                log.error("worker %s has not ended after SIGTERM and is killed", process.pid)
                process.kill()
                process.join()
        if self._verifying is not None:
            self._verifying[0].kill()


def _verify(root: Path, runtime: RuntimeName, message: Path) -> None:
    """Body of the process that verifies a bundle, and compiles its model for the workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    message.unlink(missing_ok=True)
    try:
        Scorer(verify_files(root), runtime)
    except HamError as error:
        message.write_text(str(error), encoding="utf-8")
        sys.exit(2)
