"""Writing a bundle's files: their sizes and hashes, and errors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham_dist.errors import BundleError
from ham_dist.export.manifest import FORMAT, MANIFEST, FileEntry
from ham_dist.io.hashing import sha256_of
from ham_dist.io.untrusted import read_json, relative_name


@contextmanager
def new_bundle_file(root: Path, name: str, files: dict[str, FileEntry]) -> Iterator[Path]:
    """Yields the path of a file to write; its size and sha256 are added to `files` when it is written.

    Args:
        root: Folder of the bundle that is being written.
        name: Path of the file in the bundle.
        files: The `files` of the bundle's manifest.
    Raises:
        BundleError: The file cannot be written.
    """
    path = root / relative_name(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        files[name] = FileEntry(size=path.stat().st_size, sha256=sha256_of(path))


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


def require_outside_bundles(out: Path) -> None:
    """Check that a new folder is not inside a bundle, whose files are mapped and counted.

    Raises:
        BundleError: It would be.
    """
    for folder in out.resolve().parents:
        if _is_bundle(folder):
            raise BundleError(f"{out}: is inside the bundle {folder}. Give a folder outside of it.")


def _is_bundle(folder: Path) -> bool:
    """Returns True if manifest.json of a folder is that of a bundle, also of a damaged or newer one."""
    try:
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
