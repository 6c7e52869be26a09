"""SIGTERM from a scheduler: the run saves a checkpoint and ends."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Preemption:
    """Context in which SIGTERM does not end the process but sets a flag.

    The training loop reads the flag after each step.

    Attributes:
        requested: True once SIGTERM was received.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers in its main thread only; a run in another thread does not handle
        # SIGTERM.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
