"""Reads files of any URL scheme through one iopath PathManager: settings, data and bundles.

A handler registered once (for example for hdfs://) works for all of them. http://, https://, s3:// and gs://
are supported from the start, and read in place only the bytes that are needed (remote.py).

All output (data, run folders, bundles) is written to the local file system.
"""

from functools import cache
from pathlib import Path
from typing import IO, Any

from ham_dist.errors import DataError
from ham_dist.io.untrusted import JSON_BYTES, read_bytes, read_stream


@cache
def path_manager() -> Any:
    """The PathManager of this process. Add a handler with `path_manager().register_handler(MyHandler())`."""
    from iopath.common.file_io import PathManager

    from ham_dist.io.remote import ArrowHandler, HttpHandler

    manager = PathManager()
    manager.register_handler(HttpHandler())
    manager.register_handler(ArrowHandler())
    return manager


def open_file(path: str | Path, mode: str = "r", **options: Any) -> IO[Any]:
    """Opens `path` (any scheme that the PathManager supports); text files are UTF-8."""
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    return path_manager().open(str(path), mode, **options)


def read_content(path: str | Path, *, limit: int = JSON_BYTES) -> bytes:
    """The content of a small file of any scheme that the PathManager supports.

    Args:
        path: Path or URL.
        limit: Maximum size in bytes.
    Raises:
        ValueError: The file is larger than `limit`.
        OSError: It cannot be read, or is a local path that is not a regular file.
    """
    if is_local(path):
        return read_bytes(Path(path), limit=limit)
    with open_file(path, "rb") as file:
        return read_stream(file, limit=limit)


def local_path(path: str | Path) -> Path:
    """A local copy of `path`: a local path is returned as is, a remote file is downloaded (and cached).

    Raises:
        DataError: It cannot be downloaded: it does not exist, the server refuses, or it is a folder.
    """
    try:
        return Path(path_manager().get_local_path(str(path)))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be downloaded ({error.strerror or error})\n"
            "  Check the URL. If it is a folder, copy it to this machine and give the local folder instead."
        ) from None


def exists(path: str | Path) -> bool:
    """True if `path` exists.

    Raises:
        DataError: A server does not answer or refuses, so this is unknown.
    """
    try:
        return bool(path_manager().exists(str(path)))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be accessed ({error.strerror or error})\n"
            "  Check the URL, the network and your credentials."
        ) from None


def is_local(path: str | Path) -> bool:
    """True if `path` is a path of the local file system, not a URL."""
    return "://" not in str(path)


def absolute(path: str | Path) -> str:
    """`path` as an absolute path; a URL is returned unchanged."""
    return str(Path(path).resolve()) if is_local(path) else str(path)
