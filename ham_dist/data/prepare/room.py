"""Estimates the text size of raw files and the disk space that preparing them takes."""

import logging
import shutil
from pathlib import Path

from ham_dist.data.prepare.workdir import Work
from ham_dist.data.raw.blocks import text_size
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

# Bytes of staged rows per byte of text; measured on Criteo's format (perf/bench_prepare.py), rounded up.
_STAGED_SHARE = 0.5


def text_sizes(recipe: Recipe, files: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """Estimated bytes of text and number of lines of each sample file."""
    found = {name: text_size(files[name], recipe.format) for name in recipe.samples.files}
    return {name: (text, text / max(line, 1)) for name, (text, line) in found.items()}


def require_room(work: Work, recipe: Recipe, sizes: dict[str, tuple[float, float]]) -> None:
    """Checks that the disk has enough free space for staged rows and shards.

    Raises:
        DataError: It has not.
    """
    text, lines = (sum(column) for column in zip(*sizes.values(), strict=True))
    need = text * _STAGED_SHARE + lines * 4 * len(recipe.fields)
    used = sum(path.stat().st_size for path in work.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(work.folder).free
    log.info(
        "%s: about %s lines; needs up to %.2f GB of disk space (%.2f GB free)",
        recipe.name,
        f"{lines:,.0f}",
        need / 1e9,
        (free + used) / 1e9,
    )
    if need > free + used:
        raise DataError(
            f"{work.folder.parent}: preparing {recipe.name} needs about {need / 1e9:.2f} GB of disk space,"
            f" but {(free + used) / 1e9:.2f} GB are free\n"
            "  Free some space, or set --out to another disk."
        )
