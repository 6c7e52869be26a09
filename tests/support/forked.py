"""Python programs and ranks in processes forked from one that has imported torch, TorchRec and ham_dist.

The imports take several seconds of processor time; the suite needs them in hundreds of processes.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
"""Environment of the process that others are forked from, without what a test sets. It has one OpenMP thread,
because a process of several threads cannot be forked safely."""


@functools.cache
def forking() -> ForkServerContext:
    """The context of multiprocessing whose processes are forked. Its first use does the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    before = dict(os.environ)
    try:
        _set_environment(ENVIRONMENT)
        forkserver.ensure_running()
    finally:
        _set_environment(before)
    return context


def run_python(
    arguments: Sequence[str | Path],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` as `subprocess.run` would, in a forked process.

    Args:
        arguments: `-m MODULE ...` or `-c CODE ...`.
        folder: The working directory.
        environment: All environment variables; those that Python or OpenMP read when they start have no
            effect.
        timeout: Seconds until the process is killed.
    Returns:
        Exit status and output.
    Raises:
        subprocess.TimeoutExpired: The process was killed.
    """
    words = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory(prefix="python-") as place:
        printed = Path(place)
        for name in ("1", "2"):
            (printed / name).touch()
        process = forking().Process(
            target=_python,
            args=(words, folder or Path.cwd(), dict(environment or os.environ), printed),
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        output, errors = (printed.joinpath(name).read_text(encoding="utf-8") for name in ("1", "2"))
    return subprocess.CompletedProcess(words, process.exitcode or 0, output, errors)


def _python(words: list[str], folder: Path, environment: dict[str, str], printed: Path) -> None:
    _set_environment(environment)
    os.chdir(folder)
    for number in (1, 2):
        file = os.open(printed / str(number), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(folder))
    kind, program, *rest = words
    sys.argv = [program if kind == "-m" else kind, *rest]
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        else:
            raise ValueError(f"python {kind} is not run in a forked process")
    finally:
        atexit._run_exitfuncs()


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ |= environment
