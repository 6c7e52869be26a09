"""SIGTERM: whoever runs the machine wants it back, and gives a little time to save."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Preemption:
    """Inside, SIGTERM no longer ends the process but is noted; the training loop asks after each step.

    requested: whether SIGTERM has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers in its main thread only; a run in another thread leaves signals to whoever has that one.
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
