"""Errors of writing a bundle's files."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham_dist.errors import BundleError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context that turns an OSError into a BundleError that names `path` and how to fix it.

    Raises:
        BundleError: Writing failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason:
            advice = "Make room there, or give another path"
        elif error.errno == errno.ENOENT:
            advice = f"Create the folder {path.parent} first"
        else:
            advice = "Give another path"
        raise BundleError(f"{path}: cannot be written: {reason}. {advice}.") from error
