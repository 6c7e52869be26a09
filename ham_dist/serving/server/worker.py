"""A worker: one of several processes that serve the same ports."""

import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ham_dist.errors import HamError
from ham_dist.serving.server.listen import bind
from ham_dist.serving.server.metrics import Metrics, share_by_slot
from ham_dist.serving.server.options import ServerOptions
from ham_dist.serving.server.run import limit_threads, serve_until_stopped
from ham_dist.serving.server.swap import Swapper

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h"""


@dataclass(frozen=True)
class Place:
    """Files that a supervisor and its workers share.

    Attributes:
        folder: Their folder.
        supervisor: The supervisor's process id.
        ports: Ports of HTTP and, if there is one, of gRPC.
    """

    folder: Path
    supervisor: int
    ports: Sequence[int]

    @property
    def metrics(self) -> Path:
        """Folder of all workers' metrics."""
        return self.folder / "metrics"

    @property
    def approved(self) -> Path:
        """The version to serve, verified, and the one that could not be verified."""
        return self.folder / "approved.json"

    @property
    def message(self) -> Path:
        """The reason why a version is not verified."""
        return self.folder / "verify.txt"

    def ready(self, slot: int) -> Path:
        """The file that exists while the worker answers."""
        return self.folder / f"ready-{slot}"

    def failure(self, slot: int) -> Path:
        """The error that ended the worker."""
        return self.folder / f"failure-{slot}.txt"

    def reason(self, slot: int, status: int | None) -> str:
        """Why the worker has ended."""
        try:
            return self.failure(slot).read_text(encoding="utf-8")
        except OSError:
            return f"worker {slot} ended with status {status}; its output is above"

    def clear(self, slot: int) -> None:
        """Removes what an ended worker has left, except its counters, which the next one continues."""
        for left in (self.ready(slot), self.failure(slot), *self.metrics.glob(f"gauge_*_{slot}.db")):
            left.unlink(missing_ok=True)


def run_worker(options: ServerOptions, place: Place, slot: int) -> None:
    """Body of a worker's process.

    Args:
        options: Settings of the server.
        place: What it shares with its supervisor.
        slot: Its number, from 0.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ctrl-C reaches all processes of a terminal; the supervisor passes SIGTERM on.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else _leave)
    _end_with(place.supervisor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(place.metrics)
    share_by_slot(slot)
    limit_threads(options.workers)
    try:
        with ExitStack() as stack:
            bound = [stack.enter_context(bind(options.host, port, shared=True)) for port in place.ports]
            metrics = Metrics(options.model, place.metrics)
            swapper = Swapper(options, metrics, place.approved, leads=slot == 0)
            serve_until_stopped(options, swapper, metrics, bound, place.ready(slot).touch, records=slot == 0)
    except HamError as error:
        place.failure(slot).write_text(str(error), encoding="utf-8")
        sys.exit(2)
    finally:
        if os.getppid() != place.supervisor:  # which would have removed it
            shutil.rmtree(place.folder, ignore_errors=True)


def _leave(*_: object) -> None:
    """Ends a worker that does not serve yet."""
    sys.exit(0)


def _end_with(supervisor: int) -> None:
    """Makes Linux send SIGTERM to this process when its supervisor ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it ended before
        sys.exit(0)
