"""A folder of versions of a bundle, and the pointer file that names the active one.

DIR/v1/  DIR/v2/     bundles
DIR/current          the name of the active one, and a new line
DIR/warmup.jsonl     recorded requests (optional)
"""

import re
from pathlib import Path
from typing import NamedTuple

from ham_dist.errors import BundleError
from ham_dist.export.manifest import MANIFEST
from ham_dist.io.atomic import write_text
from ham_dist.io.untrusted import read_bytes

POINTER = "current"
WARMUP = "warmup.jsonl"
ONLY = "1"
"""Version of a bundle that is not in a folder of versions."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Active(NamedTuple):
    """The version that a pointer file names.

    Attributes:
        version: Its name.
        root: Folder of its bundle.
        written: Changes whenever the pointer file is written, also with the same name.
    """

    version: str
    root: Path
    written: tuple[int, int] = (0, 0)


def is_bundle(path: Path) -> bool:
    """True for a folder that is one bundle and not several versions."""
    return (path / MANIFEST).is_file()


def versions_in(path: Path) -> list[str]:
    """Names of the versions in a folder, in order."""
    if is_bundle(path):
        return [ONLY]
    try:
        found = [each.name for each in path.iterdir() if _NAME.fullmatch(each.name) and is_bundle(each)]
    except OSError:
        return []
    return sorted(found)


def active_version(path: Path) -> Active:
    """Returns the version to serve.

    Args:
        path: Folder of a bundle, or of versions.
    Raises:
        BundleError: It is neither, or its pointer file is missing or does not name a version in it.
    """
    if is_bundle(path):
        return Active(ONLY, path)
    pointer = path / POINTER
    try:
        status = pointer.stat()
        text = read_bytes(pointer, limit=256).decode("ascii", "replace")
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: is neither a bundle nor a folder of versions with a file {POINTER} ({error}).\n"
            "  Give the folder of a bundle, or name the version to serve: "
            f"`ham-dist activate {path} VERSION`."
        ) from None
    version = text.strip()
    _require_version(path, version, str(pointer))
    return Active(version, path / version, (status.st_mtime_ns, status.st_ino))


def activate(path: Path, version: str) -> str | None:
    """Makes a version the active one, in one atomic step.

    Returns:
        The version that was active before; None if there was none.
    Raises:
        BundleError: There is no such version in `path`, or its files are incomplete.
    """
    from ham_dist.export.bundle import open_bundle

    if is_bundle(path):
        raise BundleError(
            f"{path}: is a bundle; expected a folder of versions, each of which is a bundle.\n"
            f"  Move it into a folder: {path}/{version}."
        )
    _require_version(path, version, f"activate {path}")
    open_bundle(path / version)
    try:
        before = active_version(path).version
    except BundleError:
        before = None
    write_text(path / POINTER, f"{version}\n")
    return before


def _require_version(path: Path, version: str, where: str) -> None:
    if not _NAME.fullmatch(version):
        raise BundleError(
            f"{where}: {version[:80]!r} is no name of a version; expected 1 to 64 letters, digits, `.`, `_` "
            "or `-`, the first a letter or digit. Rename its folder"
        )
    if not is_bundle(path / version):
        found = ", ".join(versions_in(path)) or "none"
        raise BundleError(
            f"{where}: {version} is not a bundle in {path}; the versions there are: {found}.\n"
            "  Copy the bundle there first, or name another version."
        )
