"""The folder that prepared data goes to: all of it or nothing, and never over something else."""

import logging
import re
from pathlib import Path
from typing import Any

from ham_dist.data.format.manifest import FILE_NAME, Manifest
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

# A Path has one slash of the two.
_ELSEWHERE = re.compile(r"[a-z][a-z0-9]+:/")


def already_there(out: Path, planned: dict[str, Any]) -> Manifest | None:
    """The manifest of `out` if it holds whole data with just the entries in `planned`; None where `out` is free.

    raises: DataError if it holds anything else.
    """
    if not (out / FILE_NAME).is_file():
        refuse_occupied(out)
        return None
    manifest = Manifest.load(out)
    differ = [name for name, value in planned.items() if getattr(manifest, name) != value]
    if differ:
        raise DataError(
            f"{out}: holds {manifest.name} with seed {manifest.seed}, which differs in {', '.join(differ)}; nothing was written\n"
            "  Give another folder, or delete this one."
        )
    manifest.check(out, deep=False)
    log.info("%s already holds this data; nothing to do", out)
    return manifest


def refuse_occupied(out: Path) -> None:
    """raises: DataError if `out` exists with something in it, or is not on this machine."""
    if _ELSEWHERE.match(str(out)):
        raise DataError(
            f"{out}: data is written to a folder of this machine\n  Give one, and copy it from there."
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise DataError(
            f"{out}: is there already; nothing was written\n  Give a name that does not exist yet, or delete it."
        )
