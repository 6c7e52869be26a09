"""Checks of the output folder of prepared data; existing content is never overwritten."""

import logging
import re
from pathlib import Path
from typing import Any

from ham_dist.data.format.manifest import FILE_NAME, Manifest
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

# Path collapses the two slashes of a URL into one.
_REMOTE = re.compile(r"[a-z][a-z0-9]+:/")


def already_there(out: Path, planned: dict[str, Any]) -> Manifest | None:
    """Checks whether `out` holds the planned data already.

    Args:
        out: Output folder.
        planned: Entries of the manifest that must be equal.
    Returns:
        The manifest of `out` if it holds complete data with the entries `planned`; None if `out` is free.
    Raises:
        DataError: `out` holds anything else.
    """
    if not (out / FILE_NAME).is_file():
        refuse_occupied(out)
        return None
    manifest = Manifest.load(out)
    differ = [name for name, value in planned.items() if getattr(manifest, name) != value]
    if differ:
        raise DataError(
            f"{out}: holds {manifest.name} with seed {manifest.seed}, which differs in"
            f" {', '.join(differ)}; nothing was written\n"
            "  Choose another folder, or delete this one."
        )
    manifest.check(out, deep=False)
    log.info("%s: already holds this data; nothing to do", out)
    return manifest


def refuse_occupied(out: Path) -> None:
    """Checks that `out` is a local path that does not exist or is an empty folder.

    Raises:
        DataError: `out` exists and is not an empty folder, or is a URL.
    """
    if _REMOTE.match(str(out)):
        raise DataError(
            f"{out}: is not a local path; data is written to local folders only\n"
            "  Choose a local folder, and copy it from there."
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise DataError(
            f"{out}: already exists; nothing was written\n  Choose a name that does not exist, or delete it."
        )
