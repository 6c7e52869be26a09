"""delta.json: the content of a delta, and its checks."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ham_dist.errors import BundleError
from ham_dist.export.manifest import FileEntry, RelativeName, mistakes
from ham_dist.export.patches import ADVICE, Patch
from ham_dist.io.hashing import sha256_of, sha256_of_json
from ham_dist.io.untrusted import inside, read_json

DELTA = "delta.json"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Same(_Entry):
    """A file of the old bundle that is the same in the new one."""

    kind: Literal["same"] = "same"


class Whole(_Entry):
    """A file that the delta holds whole."""

    kind: Literal["whole"] = "whole"
    file: RelativeName
    """The file in the delta."""


Part = Annotated[Same | Whole | Patch, Field(discriminator="kind")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DeltaManifest(_Entry):
    """The content of delta.json, except `checksum`: the sha256 of the rest, as in a bundle's manifest."""

    format: Literal["ham_dist delta"] = "ham_dist delta"
    format_version: Literal[1] = 1
    old: Sha256
    """`checksum` in the manifest.json of the bundle that the delta is applied to."""
    new: Sha256
    """`checksum` in the manifest.json of the bundle that results."""
    manifest: Whole
    """The new bundle's manifest.json."""
    parts: dict[RelativeName, Part]
    """Every file of the new bundle except manifest.json."""
    files: dict[RelativeName, FileEntry]
    """Every file of the delta except delta.json."""


def write_delta_manifest(root: Path, manifest: DeltaManifest) -> None:
    """Write delta.json with a checksum of its own content."""
    content = manifest.model_dump(mode="json")
    text = json.dumps(content | {"checksum": sha256_of_json(content)}, indent=2)
    (root / DELTA).write_text(text + "\n", encoding="utf-8")


def read_delta_manifest(root: Path) -> DeltaManifest:
    """Returns the content of delta.json; the other files are not read.

    Raises:
        BundleError: The folder is no delta, or the content is damaged.
    """
    path = root / DELTA
    if not path.is_file():
        raise BundleError(
            f"{path}: no such file, so {root} is not a delta. `ham-dist export --delta-from` writes one."
        )
    try:
        content: Any = read_json(path)
        found = content.pop("checksum", None)
        if found != sha256_of_json(content):
            raise ValueError("its content does not match its checksum")
        manifest = DeltaManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {mistakes(error)}\n  {ADVICE}") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path}: damaged: {error}. {ADVICE}") from None
    named = [manifest.manifest, *manifest.parts.values()]
    for name in (part.file for part in named if not isinstance(part, Same)):
        if name not in manifest.files:
            raise BundleError(f"{path}: `files` lacks {name}. {ADVICE}")
    return manifest


def read_delta(root: Path) -> DeltaManifest:
    """Returns the content of delta.json, after checking it and the size and sha256 of all files.

    Raises:
        BundleError: The folder is no delta, or is damaged.
    """
    manifest = read_delta_manifest(root)
    for name, entry in manifest.files.items():
        _require_file(root, name, entry)
    return manifest


def _require_file(root: Path, name: str, entry: FileEntry) -> None:
    try:
        path = inside(root, name)
        damaged = path.stat().st_size != entry.size or sha256_of(path) != entry.sha256
    except (OSError, ValueError) as error:
        raise BundleError(f"{root / name}: cannot be read: {error}. {ADVICE}") from None
    if damaged:
        raise BundleError(f"{path}: damaged: its size or sha256 is not that in {DELTA}. {ADVICE}")
