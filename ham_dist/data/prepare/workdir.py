"""The work folder of an output: a killed process leaves nothing half done under a final name, and the next one keeps what is finished."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ham_dist.data.format.folder import refuse_occupied
from ham_dist.errors import DataError
from ham_dist.io import atomic
from ham_dist.io.hashing import sha256_of_json
from ham_dist.io.untrusted import read_json

log = logging.getLogger(__name__)

_LOCK = "ham-dist.lock"
"""Marks a work folder as ours, and is locked while a process works in it."""
_PARTS = ("data", "stage", "spill", "records")


class Work:
    """The work folder of one output, a hidden folder in the same place.

    A piece of work writes its files under `data` or `stage`, each by `atomic.new_file`, and then its record.

    Attributes:
        data: Becomes the output.
        stage: Holds what lies between the input and the output; deleted in the end.
        spill: Holds what an engine cannot keep in memory.
    """

    def __init__(self, folder: Path, spill: Path | None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.stage = folder / "stage"
        self.spill = (
            folder / "spill"
            if spill is None
            else spill / f"ham_dist-{sha256_of_json(str(folder.absolute()))[:12]}"
        )
        self._records = folder / "records"

    def record(self, name: str) -> Any:
        """The record of a finished piece; None without one, or where it is damaged, as after a power failure."""
        try:
            return read_json(self._records / f"{name}.json")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.info("%s: is damaged (%s); that piece is done again", self._records / f"{name}.json", error)
            return None

    def done(self, name: str, record: Any) -> None:
        """Record that the piece `name` is finished: all its files have their names."""
        path = self._records / f"{name}.json"
        make_folder(path.parent)
        atomic.write_json(path, record)

    def keep_only(self, files: Iterable[str]) -> None:
        """Delete every other file from `data`, such as shards of a raw file that was longer before it was replaced."""
        wanted = {self.data / file for file in files}
        for path in [path for path in self.data.rglob("*") if path.is_file() and path not in wanted]:
            path.unlink()

    def require(self, name: str, key: Any) -> None:
        """Forget the finished pieces under the folder `name` of records unless they were made from the same `key`."""
        if self.record(f"{name}/key") != key:
            shutil.rmtree(self._records / name, ignore_errors=True)
            self.done(f"{name}/key", key)


@contextmanager
def work_on(out: Path, plan: Any, spill: Path | None = None) -> Iterator[Work]:
    """The work folder of `out`; its `data` becomes `out` when the block ends without an error. Otherwise it is kept for the next call.

    Args:
        out: The output folder, which must not exist or be empty.
        plan: All that the output depends on, as JSON; what work with another plan left is cleared first.
        spill: Folder for `Work.spill`; None for a place in the work folder.
    Raises:
        DataError: `out` is occupied, another process works on it, or the place cannot be written to.
    """
    refuse_occupied(out)
    out, key = out.absolute(), sha256_of_json(plan)
    folder = work_folder(out)
    _claim(folder)
    try:
        lock = FileLock(folder / _LOCK, timeout=0).acquire()
    except Timeout:
        raise DataError(
            f"{out}: another process is writing it\n  Wait until it has ended, or give another name."
        ) from None
    with lock:
        work = Work(folder, spill)
        _prepare(work, key)
        try:
            yield work
        except BaseException:
            log.info("%s: keeps what is finished; the same command resumes from it", folder)
            raise
        finally:
            shutil.rmtree(work.spill, ignore_errors=True)
        refuse_occupied(out)
        atomic.publish_folder(work.data, out)
        _delete(folder)


def _prepare(work: Work, key: str) -> None:
    """Clear what another plan or a killed process left, and make the folders."""
    if work.record("key") != key:
        if work.record("key") is not None:
            log.info("%s: discarding partial output of a different job", work.folder)
        _clear(work.folder)
        work.done("key", key)
    else:
        log.info("%s: resuming from what is finished there", work.folder)
    make_folder(work.data)
    make_folder(work.stage)
    for folder in (work.data, work.stage):
        for path in [path for path in folder.rglob("*") if atomic.is_temporary(path)]:
            path.unlink()
    shutil.rmtree(work.spill, ignore_errors=True)  # left by a killed process
    make_folder(work.spill)


def clear_leftovers(out: Path) -> None:
    """Delete the work folder of a finished `out`, left by a process that was killed in its last moment, unless a process works in it."""
    folder = work_folder(out)
    if not _is_ours(folder):
        return
    with suppress(Timeout), FileLock(folder / _LOCK, timeout=0):
        _delete(folder)


def work_folder(out: Path) -> Path:
    """The path of the work folder of `out`."""
    place = out.absolute()  # `.` alone has no name
    return place.parent / f".{place.name}.ham-work"


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents.

    Raises:
        DataError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror})\n  Give a folder in a place that you can write to."
        ) from None


def _claim(folder: Path) -> None:
    """Make the work folder, or recognize it as one that an earlier process made.

    Raises:
        DataError: Something that is not ours has its name, or it cannot be made.
    """
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    if not _is_ours(folder):
        raise DataError(
            f"{folder}: is needed for unfinished work, and holds files of something else; nothing was written\n"
            "  Move it away, or give --out another name."
        )


def _is_ours(folder: Path) -> bool:
    """True for an empty folder, and for one that holds our mark; a symbolic link is never ours."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    lock = folder / _LOCK
    return (lock.is_file() and not lock.is_symlink()) or not any(folder.iterdir())


def _clear(folder: Path) -> None:
    for part in _PARTS:
        if (folder / part).is_symlink():
            (folder / part).unlink()
        elif (folder / part).exists():
            shutil.rmtree(folder / part)


def _delete(folder: Path) -> None:
    """Delete a work folder; what is in it and not ours stays, with the folder."""
    _clear(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        os.rmdir(folder)
