"""Errors of writing a bundle's files."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham_dist.errors import BundleError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """raises: BundleError for whatever the disk refuses inside."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason:
            advice = "Make room there, or give another place"
        elif error.errno == errno.ENOENT:
            advice = f"Make the folder {path.parent} first"
        else:
            advice = "Give another place"
        raise BundleError(f"{path}: cannot be written: {reason}. {advice}.") from error
