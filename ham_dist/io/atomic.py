"""Atomic writes: files and folders appear completely or not at all, even after a power failure.

Content is written to a temporary path in the same folder, synced to disk (fsync) and renamed; then the folder
is synced. A temporary path has a random part and ends in `.ham-partial`: two writers never share one, and no
file of a user looks like it.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

SUFFIX = ".ham-partial"
_NAME_BYTES = 255
"""Maximum length of a file name in bytes (NAME_MAX of Linux)."""


def temporary_path(path: Path) -> Path:
    """A hidden path in the folder of `path` that no other call returns; `is_temporary` recognizes it."""
    tail = f".{secrets.token_hex(8)}{SUFFIX}"
    name = os.fsencode(path.name)[: _NAME_BYTES - len(tail) - 1]
    return path.with_name(f".{os.fsdecode(name)}{tail}")


def is_temporary(path: Path, of: Path | None = None) -> bool:
    """True for a path made by `temporary_path`; with `of`, only for one made for that path.

    A killed process leaves such paths behind. Nothing else may be deleted as a leftover.
    """
    if not (path.name.startswith(".") and path.name.endswith(SUFFIX)):
        return False
    stem, _, token = path.name.removesuffix(SUFFIX)[1:].rpartition(".")
    if len(token) != 16 or not set(token) <= set("0123456789abcdef"):
        return False
    return of is None or temporary_path(of).name[: len(stem) + 2] == f".{stem}."


@contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write a file to.

    It is renamed to `path` when the block ends without an error, and deleted otherwise.

    Args:
        path: The final path; its folder must exist.
        replace: Allow to replace an existing file at `path`.
    Raises:
        FileExistsError: `path` exists and `replace` is false; checked before and after the block.
        OSError: Writing or renaming failed.
    """
    if not replace:
        _require_free(path)
    temporary = temporary_path(path)
    try:
        with _disk_full_names(path):
            yield temporary
            publish_file(temporary, path, replace=replace)
    finally:
        temporary.unlink(missing_ok=True)


def publish_file(temporary: Path, path: Path, *, replace: bool = True) -> None:
    """Syncs the file `temporary` to disk and renames it to `path`.

    Raises:
        FileExistsError: `path` exists and `replace` is false. Of several writers of one path, in any
            processes, one succeeds and the others get this error.
        OSError: Syncing or renaming failed.
    """
    sync(temporary)
    if replace:
        os.replace(temporary, path)
    else:
        _rename_to_free(temporary, path)
    sync(path.parent)


_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Renames a file to a path that nothing has. Unlike a rename, a hard link never replaces a file."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # An empty file takes the name first: that fails if the path exists.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)
    else:
        temporary.unlink()


def publish_folder(temporary: Path, path: Path) -> None:
    """Syncs the folder `temporary` with all its files to disk and renames it to `path`.

    Raises:
        FileExistsError: `path` exists and is not an empty folder. A rename never replaces such a path, so of
            several writers one succeeds.
    """
    for folder, _, files in os.walk(temporary):
        for file in files:
            sync(Path(folder, file))
        sync(Path(folder))
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _exists(path) from None
        raise
    sync(path.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder for the output `path`, which is deleted at the end unless it was published.

    It is locked while the block lasts. Unlocked ones for the same `path`, which killed processes left, are
    deleted first; on a file system without locks they stay.

    Raises:
        OSError: It cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        if is_temporary(left, of=path) and left.is_dir() and not left.is_symlink():
            with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as lock:
        while True:
            temporary = temporary_path(path)
            temporary.mkdir()
            with suppress(OSError):
                lock.enter_context(_locked(temporary, fcntl.LOCK_EX))
            if temporary.exists():  # else another process took it for a leftover before it was locked
                break
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Locks the folder itself, which filelock cannot: no lock file ends up in the output."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _disk_full_names(path: Path) -> Iterator[None]:
    """Set the file name of disk-full errors to `path`: a failed write names no file or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL and (error.filename is None or is_temporary(Path(str(error.filename)))):
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Writes `content` to the file `path` atomically: readers see the old file or the complete new one."""
    with new_file(path, replace=replace) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Writes text in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), replace=replace)


def write_json(path: Path, value: Any, *, replace: bool = True) -> None:
    """Writes a JSON value; see `write_bytes`.

    Raises:
        ValueError: The value holds NaN or infinity.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", replace=replace)


def sync(path: Path) -> None:
    """Syncs a file's content, or a folder's entries, to disk (fsync).

    Raises:
        OSError: Syncing a file failed. Errors of syncing a folder are ignored: some file systems cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if path.is_dir():
            with suppress(OSError):
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise _exists(path)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
