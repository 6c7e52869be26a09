"""Errors of writing a bundle's files."""

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
        raise BundleError(
            f"{path}: cannot be written: {error.strerror or error}. Make room there, or give another place."
        ) from error
