"""Kills the process (SIGKILL) at a chosen change to its files, independent of the machine's speed."""

import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.forked import run_python

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def kill_at_change(number: int, folder: Path, delay: float = 0.0) -> None:
    """Kills this process right before change number `number` (from 1) to the files below `folder`.

    Args:
        number: Counts what Python opens for writing, renames, makes and deletes; files written by a library
            count when Python renames them.
        folder: Changes elsewhere do not count.
        delay: Seconds to wait after that change instead of preventing it: the kill then happens at any later
            point, or not at all if the process has ended.
    """
    changes = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | Path) and str(path).startswith(str(folder)) and next(changes) == number:
            if delay:
                timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at_change(program: str, number: int, folder: Path, delay: float = 0.0) -> bool:
    """Runs `program` in a new process that `kill_at_change` kills; returns true if it was killed."""
    watched = (
        "from pathlib import Path\nfrom tests.support.kill_at import kill_at_change\n"
        f"kill_at_change({number}, Path({str(folder)!r}), {delay})\n{program}"
    )
    done = run_python(["-c", watched])
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
