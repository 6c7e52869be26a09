"""The vocabularies of a bundle: copies of the data's, and the hashed one that serving reads."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ham_dist.errors import BundleError, DataError
from ham_dist.export.files import new_bundle_file, writing
from ham_dist.export.manifest import FieldEntry, FileEntry
from ham_dist.io.hashing import copy_and_hash
from ham_dist.io.paths import exists, open_file
from ham_dist.io.untrusted import relative_name
from ham_dist.serving.build import Source, build_vocabulary

HASHED = "vocabulary/hashed.safetensors"
"""Path of the hashed vocabulary in a bundle."""


class VocabularySource(NamedTuple):
    """Source of the vocabularies.

    Attributes:
        folder: Folder with `<field>.parquet`; None without vocabularies.
        sha256: sha256 of each file, by field; None if not known.
    """

    folder: str | Path | None
    sha256: Mapping[str, str] | None


def copy_vocabulary(
    partial: Path, fields: Iterable[str], vocabulary: VocabularySource, files: dict[str, FileEntry]
) -> dict[str, str]:
    """Copy the vocabulary of each field that the model reads.

    Args:
        files: The bundle's files; the copies are added.
    Returns:
        Paths of the copies in the bundle, by field.
    Raises:
        BundleError: A file is missing, or its sha256 is not that in the data's manifest.
    """
    copies: dict[str, str] = {}
    if vocabulary.folder is None:
        return copies
    for field in fields:
        source, path = f"{vocabulary.folder}/{field}.parquet", relative_name(f"vocabulary/{field}.parquet")
        if not exists(source):
            raise BundleError(
                f"{source}: missing: the vocabulary of {field!r}. "
                "Give the folder `vocabulary` that `ham-dist prepare` wrote."
            )
        with writing(partial / path):
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            files[path] = _copy(source, partial / path)
        wanted = files[path].sha256 if vocabulary.sha256 is None else vocabulary.sha256[field]
        if files[path].sha256 != wanted:
            raise BundleError(
                f"{source}: has sha256 {files[path].sha256[:12]}..., "
                f"but the data's manifest has {wanted[:12]}...: the file was changed.\n"
                "  Copy the data again from where it was prepared, or prepare it again."
            )
        copies[field] = path
    return copies


def hash_vocabulary(
    partial: Path,
    copies: Mapping[str, str],
    fields: Sequence[FieldEntry],
    recipe: Mapping[str, Any] | None,
    files: dict[str, FileEntry],
) -> str | None:
    """Write the hashed vocabulary of the fields in `copies`, for serving.

    Args:
        copies: Paths of the Parquet vocabularies in the bundle, by field.
        recipe: Recipe of the data; its hashed fields need no vocabulary.
        files: The bundle's files; this one is added.
    Returns:
        Path of the file in the bundle; None without vocabularies.
    Raises:
        BundleError: A vocabulary has a value or an id twice, or an id outside the table.
    """
    settings = {} if recipe is None else recipe.get("fields", {})
    sources = {
        field.name: Source(partial / copies[field.name], field.num_embeddings)
        for field in fields
        if field.name in copies and not settings.get(field.name, {}).get("hash")
    }
    if not sources:
        return None
    with new_bundle_file(partial, HASHED, files) as path:
        try:
            build_vocabulary(path, sources)
        except DataError as error:
            raise BundleError(str(error).replace(f"{partial}/", "")) from None
    return HASHED


def _copy(source: str, target: Path) -> FileEntry:
    """Copy a file, and hash the bytes that are written, so that the hash is that of the copy."""
    with open_file(source, "rb") as read, target.open("wb") as written:
        size, sha256 = copy_and_hash(read, written)
    return FileEntry(size=size, sha256=sha256)
