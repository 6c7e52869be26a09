"""Files and folders that appear whole or not at all, also after a power failure.

Content goes to a temporary path in the same folder, reaches the disk (fsync), and is renamed; the folder's own entry
reaches the disk after that. A temporary path has a random part and ends in `.ham-partial`: two writers never share
one, and nothing that a user has made looks like it.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SUFFIX = ".ham-partial"
_NAME_BYTES = 255
"""Longest file name, in bytes, of the file systems in use (NAME_MAX of Linux)."""


def temporary_path(path: Path) -> Path:
    """A path beside `path` that no other call returns, hidden and recognizable by `is_temporary`."""
    tail = f".{secrets.token_hex(8)}{SUFFIX}"
    name = os.fsencode(path.name)[: _NAME_BYTES - len(tail) - 1]
    return path.with_name(f".{os.fsdecode(name)}{tail}")


def is_temporary(path: Path, of: Path | None = None) -> bool:
    """True for a path that `temporary_path` made; with `of`, one that it made for that path.

    A process that was killed leaves such paths behind; nothing else may be deleted as a leftover.
    """
    if not (path.name.startswith(".") and path.name.endswith(SUFFIX)):
        return False
    stem, _, token = path.name.removesuffix(SUFFIX)[1:].rpartition(".")
    if len(token) != 16 or not set(token) <= set("0123456789abcdef"):
        return False
    return of is None or temporary_path(of).name[: len(stem) + 2] == f".{stem}."


@contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary path to write a file to; it becomes `path` when the block ends without an error, and is deleted otherwise.

    Args:
        path: The final path; its folder must exist.
        replace: Whether an existing file at `path` may be replaced.
    Raises:
        FileExistsError: `path` exists and `replace` is false, found before or after the block.
        OSError: The disk refuses.
    """
    if not replace:
        _require_free(path)
    temporary = temporary_path(path)
    try:
        with _named(path):
            yield temporary
            publish_file(temporary, path, replace=replace)
    finally:
        temporary.unlink(missing_ok=True)


def publish_file(temporary: Path, path: Path, *, replace: bool = True) -> None:
    """Rename the file `temporary` to `path`, after its content has reached the disk.

    Raises:
        FileExistsError: `path` exists and `replace` is false.
        OSError: The disk refuses.
    """
    sync(temporary)
    if not replace:
        _require_free(path)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error, and is deleted otherwise.

    Raises:
        FileExistsError: `path` exists, found before or after the block. An empty folder counts as free.
        OSError: The disk refuses.
    """
    _require_free(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        with _named(path):
            yield temporary
            publish_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path) -> None:
    """Rename the folder `temporary` to `path`, after all that it holds has reached the disk.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
        OSError: The disk refuses.
    """
    for folder, _, files in os.walk(temporary):
        for file in files:
            sync(Path(folder, file))
        sync(Path(folder))
    _require_free(path)
    os.replace(temporary, path)
    sync(path.parent)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give errors of a disk without room the name of the file or folder: a failing write carries none, or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM and (error.filename is None or is_temporary(Path(str(error.filename)))):
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` as the file `path`: a reader, or a process killed half-way, finds the old file or the whole new one."""
    with new_file(path, replace=replace) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Like `write_bytes`, for text in UTF-8."""
    write_bytes(path, text.encode("utf-8"), replace=replace)


def write_json(path: Path, value: Any, *, replace: bool = True) -> None:
    """Like `write_bytes`, for a JSON value; NaN and infinity are refused with a ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", replace=replace)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power failure.

    Raises:
        OSError: The disk refuses. A file system that cannot sync a folder is no error.
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
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
