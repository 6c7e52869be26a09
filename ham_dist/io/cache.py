"""Folder of files that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder for files that can be deleted at any time: ham_dist in $XDG_CACHE_HOME or ~/.cache.

    It may not exist.
    Source: XDG Base Directory Specification, which ignores a relative path.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "ham_dist"
