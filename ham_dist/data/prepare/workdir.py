"""The work folder of an output: a killed process leaves no partial output, and the next one resumes."""

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
"""Name of the file that marks a folder as a work folder; it is locked while a process works in it."""
_PARTS = ("data", "stage", "spill", "records")


class Work:
    """The work folder of one output: a hidden folder in the same parent folder.

    Each part of the work writes files under `data` or `stage` with `atomic.new_file`, and then its record.

    Attributes:
        folder: The work folder.
        data: Becomes the output.
        stage: Holds intermediate files; deleted at the end.
        spill: Holds temporary files of the engine for data that does not fit in memory.
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
        """Record of the finished part `name`; None if there is none or it is damaged (by a power failure)."""
        try:
            return read_json(self._records / f"{name}.json")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.info("%s: is damaged (%s); repeating this part", self._records / f"{name}.json", error)
            return None

    def done(self, name: str, record: Any) -> None:
        """Records that the part `name` is finished: all its files have their final names."""
        path = self._records / f"{name}.json"
        make_folder(path.parent)
        atomic.write_json(path, record)

    def keep_only(self, files: Iterable[str]) -> None:
        """Deletes all other files from `data`, such as shards of a raw file before it was replaced."""
        wanted = {self.data / file for file in files}
        for path in [path for path in self.data.rglob("*") if path.is_file() and path not in wanted]:
            path.unlink()

    def require(self, name: str, key: Any) -> None:
        """Deletes the records in the folder `name` unless they belong to the same `key`."""
        if self.record(f"{name}/key") != key:
            shutil.rmtree(self._records / name, ignore_errors=True)
            self.done(f"{name}/key", key)


@contextmanager
def work_on(out: Path, plan: Any, spill: Path | None = None) -> Iterator[Work]:
    """Opens the work folder of `out`, and locks it while the block lasts.

    Its `data` becomes `out` when the block ends without an error. Otherwise it is kept for the next call.

    Args:
        out: The output folder, which must not exist or be empty.
        plan: Everything that the output depends on, as JSON; partial output of another plan is deleted first.
        spill: Folder for `Work.spill`; None for a folder within the work folder.
    Raises:
        DataError: `out` is occupied or locked by another process, or its parent folder is not writable.
    """
    refuse_occupied(out)
    out, key = out.absolute(), sha256_of_json(plan)
    folder = work_folder(out)
    _claim(folder)
    try:
        lock = FileLock(folder / _LOCK, timeout=0).acquire()
    except Timeout:
        raise DataError(
            f"{out}: is being written by another process\n  Wait until it ends, or choose another name."
        ) from None
    with lock:
        work = Work(folder, spill)
        _prepare(work, key)
        try:
            yield work
        except BaseException:
            log.info("%s: finished parts are kept; the same command resumes from them", folder)
            raise
        finally:
            shutil.rmtree(work.spill, ignore_errors=True)
        refuse_occupied(out)
        atomic.publish_folder(work.data, out)
        _delete(folder)


def _prepare(work: Work, key: str) -> None:
    """Delete what another plan or a killed process left, and make the folders."""
    if work.record("key") != key:
        if work.record("key") is not None:
            log.info("%s: discarding partial output of a different job", work.folder)
        _clear(work.folder)
        work.done("key", key)
    else:
        log.info("%s: resuming from finished parts", work.folder)
    make_folder(work.data)
    make_folder(work.stage)
    for folder in (work.data, work.stage):
        for path in [path for path in folder.rglob("*") if atomic.is_temporary(path)]:
            path.unlink()
    shutil.rmtree(work.spill, ignore_errors=True)  # left by a killed process
    make_folder(work.spill)


def clear_leftovers(out: Path) -> None:
    """Deletes the work folder of a finished `out`, left by a process that was killed just before its end.

    Does nothing while another process has it locked.
    """
    folder = work_folder(out)
    if not _is_ours(folder):
        return
    with suppress(Timeout), FileLock(folder / _LOCK, timeout=0):
        _delete(folder)


def work_folder(out: Path) -> Path:
    """The path of the work folder of `out`."""
    place = out.absolute()  # the relative path `.` has no name
    return place.parent / f".{place.name}.ham-work"


def make_folder(folder: Path) -> None:
    """Creates `folder` with its parents.

    Raises:
        DataError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be created ({error.strerror})\n  Choose a folder that you can write to."
        ) from None


def _claim(folder: Path) -> None:
    """Create the work folder, or accept one that an earlier process created.

    Raises:
        DataError: Its path is used by something else, or it cannot be created.
    """
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    if not _is_ours(folder):
        raise DataError(
            f"{folder}: is needed as a work folder, but holds other files; nothing was written\n"
            "  Move it, or set --out to another name."
        )


def _is_ours(folder: Path) -> bool:
    """True for an empty folder and for one with our lock file, but never for a symbolic link."""
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
    """Delete a work folder. Other files in it are kept, and the folder with them."""
    _clear(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        os.rmdir(folder)
