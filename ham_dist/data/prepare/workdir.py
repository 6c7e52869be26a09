"""Writing so that a killed process leaves nothing half done under a final name, and the next one goes on with what is finished."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ham_dist.data.format.folder import refuse_occupied
from ham_dist.errors import DataError

log = logging.getLogger(__name__)


class Work:
    """A folder `.NAME.partial` beside the output. A piece of work writes its files, each beside its name and renamed, and then its record.

    data:  what becomes the output. Names in it that begin with a dot are of files that are being written.
    stage: what lies between the input and the output; gone in the end.
    spill: where an engine puts what it cannot hold.
    """

    def __init__(self, folder: Path, spill: Path | None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.stage = folder / "stage"
        self.spill = (
            folder / "spill" if spill is None else spill / f"ham_dist-{key_of(str(folder.absolute()))[:12]}"
        )
        self._records = folder / "records"

    def record(self, name: str) -> Any:
        """What `done` was told of a finished piece, or None."""
        try:
            return json.loads((self._records / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def done(self, name: str, record: Any) -> None:
        """Say that the piece `name` is finished: all its files have their names."""
        with beside(self._records / f"{name}.json") as hidden:
            hidden.write_text(json.dumps(record), encoding="utf-8")

    def keep_only(self, files: Iterable[str]) -> None:
        """Delete from `data` what is none of `files`: shards of a raw file that was longer before it was replaced, say."""
        wanted = {self.data / file for file in files}
        for path in [path for path in self.data.rglob("*") if path.is_file() and path not in wanted]:
            path.unlink()

    def require(self, name: str, key: Any) -> None:
        """Forget every finished piece under the folder `name` of records if it was made from another `key`, or from none."""
        if self.record(f"{name}/key") != key:
            shutil.rmtree(self._records / name, ignore_errors=True)
            self.done(f"{name}/key", key)


def key_of(content: Any) -> str:
    """A word for what JSON can hold: the same for the same, another for anything else."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def work_on(out: Path, plan: Any, spill: Path | None = None) -> Iterator[Work]:
    """The work folder of `out`; its `data` becomes `out` when the block ends well. When it does not, what is finished is kept for the next time.

    plan:   all that the output depends on, as JSON can hold it; a folder that was left by work with another plan is cleared first.
    raises: DataError if `out` is in the way, another process works on it, or the place cannot be written to.
    """
    refuse_occupied(out)
    out, key = out.absolute(), key_of(plan)
    folder = _folder_of(out)
    _make(folder)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{out}: another process is writing it\n  Wait for it, or give another name."
            ) from None
        work = Work(folder, spill)
        if work.record("key") != key:
            if work.record("key") is not None:
                log.info("%s: left by other work; it starts afresh", folder)
            for child in folder.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
            work.done("key", key)
        else:
            log.info("%s: goes on with what is finished there", folder)
        try:
            work.data.mkdir(exist_ok=True)
            work.stage.mkdir(exist_ok=True)
            for cut_short in work.data.rglob(".*"):
                cut_short.unlink()
            shutil.rmtree(work.spill, ignore_errors=True)  # What a killed process left.
            _make(work.spill)
            yield work
        except BaseException:
            log.info("%s: keeps what is finished; the same command goes on from there", folder)
            raise
        finally:
            shutil.rmtree(work.spill, ignore_errors=True)
        refuse_occupied(out)
        os.replace(work.data, out)
        shutil.rmtree(folder)


def clear_leftovers(out: Path) -> None:
    """Delete the work folder of a finished `out`, which a process that was killed in its last moment left; not while another works in it."""
    folder = _folder_of(out)
    if not folder.exists():
        return
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        shutil.rmtree(folder)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well; its name begins with a dot.

    raises: DataError if its folder cannot be made.
    """
    _make(path.parent)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield hidden
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror})\n  Give a folder in a place that you can write to."
        ) from None


def _folder_of(out: Path) -> Path:
    place = out.absolute()  # `.` alone has no name
    return place.parent / f".{place.name}.partial"
