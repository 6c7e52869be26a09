"""The size of raw files as text, and the room on disk that preparing them takes."""

import logging
import shutil
from pathlib import Path

from ham_dist.data.prepare.workdir import Work
from ham_dist.data.raw.blocks import text_size
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

# Bytes of staged rows for each byte of text; measured on Criteo's format (perf/bench_prepare.py), rounded up.
_STAGED_SHARE = 0.5


def text_sizes(recipe: Recipe, files: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """About how many bytes of text and lines each file of the samples has."""
    found = {name: text_size(files[name], recipe.format) for name in recipe.samples.files}
    return {name: (text, text / max(line, 1)) for name, (text, line) in found.items()}


def require_room(work: Work, recipe: Recipe, sizes: dict[str, tuple[float, float]]) -> None:
    """Raises DataError if the disk has too little room for staged rows and shards."""
    text, lines = (sum(column) for column in zip(*sizes.values(), strict=True))
    need = text * _STAGED_SHARE + lines * 4 * len(recipe.fields)
    used = sum(path.stat().st_size for path in work.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(work.folder).free
    log.info(
        "%s: about %s lines; takes up to %.2f GB while it works (%.2f GB free)",
        recipe.name,
        f"{lines:,.0f}",
        need / 1e9,
        (free + used) / 1e9,
    )
    if need > free + used:
        raise DataError(
            f"{work.folder.parent}: preparing {recipe.name} takes about {need / 1e9:.2f} GB, and {(free + used) / 1e9:.2f} GB are free\n"
            "  Make room, or give --out on another disk."
        )
