"""The workers of a study on this machine: started, watched, and stopped together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ham_dist.errors import HamError, Preempted
from ham_dist.io.progress import progress
from ham_dist.study.folder import StudyFolder

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_SIGNALS = 5.0
"""Time after which a worker that still runs gets another SIGTERM: one that comes between two runs' training
steps has an effect at the next step only."""


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_workers(
    folder: StudyFolder, command: Sequence[str], workers: int, say: Callable[[str], None]
) -> None:
    """Runs the branches that are not finished in worker processes, and shows the progress.

    Args:
        folder: The study and its folder.
        command: Command of one worker, which ends when its standard input is closed.
        workers: Number of worker processes.
        say: Prints a line.
    Raises:
        Preempted: SIGTERM was received; the workers have saved their state.
        HamError: A worker ended, and branches are left.
    """
    total = sum(folder.part.has(keyed.group, keyed.branch) for keyed in folder.branches())
    left = len(folder.missing())
    say(f"study {folder.study.settings.name}: {total:,} branches, {total - left:,} finished, {left:,} to run")
    if not left:
        return
    logs = folder.path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with _terminated() as stopped, ExitStack() as stack:
        started = [
            stack.enter_context(_worker(command, logs / f"worker-{number}.log", cores() // workers))
            for number in range(workers)
        ]
        with progress(folder.study.settings.name, total, say, rows="branches") as advance:
            advance(total - left, 0)
            seen = folder.results.size()
            while any(worker.poll() is None for worker in started) and not stopped.is_set():
                if (size := folder.results.size()) != seen:  # reading thousands of lines takes a second
                    seen, now = size, len(folder.missing())
                    advance(left - now, left - now)
                    left = now
                stopped.wait(SECONDS_BETWEEN_LOOKS)
            if stopped.is_set():
                _stop(started)
                raise Preempted("ended by SIGTERM. The same command resumes the study")
            if left := len(folder.missing()):
                codes = ", ".join(str(worker.returncode) for worker in started)
                raise HamError(
                    f"{folder.path}: the workers ended (exit codes {codes}) with {left:,} branches left.\n"
                    f"  {logs} holds what they printed. The same command resumes the study."
                )


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell all workers to save their state and end, before the end of the first is waited for."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets."""
    stopped = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _worker(command: Sequence[str], log: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process; at the end of the block its standard input is closed, and its end is waited for.

    It has a session of its own, so that Ctrl-C reaches this process only.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(max(1, threads))},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def end_with_parent() -> None:
    """In a worker: sends SIGTERM to this process once its standard input is closed.

    That happens when the parent wants it to stop, and also when the parent was killed.
    """

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS_BETWEEN_SIGNALS)

    threading.Thread(target=watch, daemon=True).start()
