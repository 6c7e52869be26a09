"""Settings, data and bundles are read through one iopath PathManager, so that a handler registered once (hdfs://) works for all of them.

http://, https://, s3:// and gs:// are there from the start, and read what is asked for where it lies (remote.py).

What is written (data, run folders, bundles) goes to the local file system.
"""

from functools import cache
from pathlib import Path
from typing import IO, Any

from ham_dist.errors import DataError
from ham_dist.io.untrusted import JSON_BYTES, read_bytes, read_stream


@cache
def path_manager() -> Any:
    """The one PathManager of this process. Register further handlers on it: `path_manager().register_handler(MyHandler())`."""
    from iopath.common.file_io import PathManager

    from ham_dist.io.remote import ArrowHandler, HttpHandler

    manager = PathManager()
    manager.register_handler(HttpHandler())
    manager.register_handler(ArrowHandler())
    return manager


def open_file(path: str | Path, mode: str = "r", **options: Any) -> IO[Any]:
    """Open `path` (any scheme that the PathManager knows); text files are UTF-8."""
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    return path_manager().open(str(path), mode, **options)


def read_content(path: str | Path, *, limit: int = JSON_BYTES) -> bytes:
    """The content of a small file, by any scheme that the PathManager knows.

    Raises:
        ValueError: It is larger than `limit`.
        OSError: It cannot be read, or is a local path that is not a regular file.
    """
    if is_local(path):
        return read_bytes(Path(path), limit=limit)
    with open_file(path, "rb") as file:
        return read_stream(file, limit=limit)


def local_path(path: str | Path) -> Path:
    """A local file or folder that holds `path`; a remote file is fetched first (cached by its handler).

    raises: DataError where it cannot be fetched: it is not there, the server refuses, or it is a folder.
    """
    try:
        return Path(path_manager().get_local_path(str(path)))
    except OSError as error:
        mend = "A folder never can be: copy it to this machine, and give that one."
        raise DataError(f"{path}: cannot be fetched ({error.strerror or error})\n  {mend}") from None


def exists(path: str | Path) -> bool:
    """Whether `path` is there.

    raises: DataError where that cannot be found out, because a server does not answer or refuses.
    """
    try:
        return bool(path_manager().exists(str(path)))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be looked for ({error.strerror or error})\n  Check the address, the network and your credentials."
        ) from None


def is_local(path: str | Path) -> bool:
    """Whether `path` is one of the local file system, which needs no handler."""
    return "://" not in str(path)


def absolute(path: str | Path) -> str:
    """`path` as it is called from any folder."""
    return str(Path(path).resolve()) if is_local(path) else str(path)
