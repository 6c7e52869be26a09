"""What all that write or check a bundle's files share."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham_dist.errors import BundleError


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """raises: BundleError for whatever the disk refuses inside."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written: {error.strerror or error}. Make room there, or give another place."
        ) from error
