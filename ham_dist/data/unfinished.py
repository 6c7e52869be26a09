"""Writing so that a killed process leaves nothing half done under a final name, and the next one goes on."""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ham_dist.errors import DataError

log = logging.getLogger(__name__)

_PLAN = "plan.json"


@contextmanager
def unfinished(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `out` that outlives a killed process, renamed to `out` when the block ends well.

    What it holds from an earlier process is kept where that one had the same `plan` (anything that JSON can hold), and deleted where it had another.
    raises: DataError if `out` exists with something in it, its parent cannot be written to, or another process is writing it.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: is there already; nothing was written\n  Give a name that does not exist yet, or delete it.")
    place = out.absolute()  # `.` alone has no name
    folder = place.parent / f".{place.name}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror})\n  Give a folder in a place that you can write to.") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another process is writing it\n  Wait for it, or give another name.") from None
        _keep_what_fits(folder, json.dumps(plan, sort_keys=True))
        yield folder
        (folder / _PLAN).unlink()
        os.replace(folder, place)
    finally:
        os.close(lock)


def _keep_what_fits(folder: Path, plan: str) -> None:
    if (folder / _PLAN).is_file() and (folder / _PLAN).read_text(encoding="utf-8") == plan:
        log.info("%s: going on with what an earlier call has finished", folder)
        for cut_short in folder.rglob(".*"):
            cut_short.unlink()
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with beside(folder / _PLAN) as hidden:
        hidden.write_text(plan, encoding="utf-8")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well; its name begins with a dot.

    raises: DataError if its folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made ({error.strerror})\n  Give a folder in a place that you can write to.") from None
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield hidden
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
