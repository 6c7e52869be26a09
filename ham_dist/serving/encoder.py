"""Raw records as ids, by a bundle alone."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle, bundle_file
from ham_dist.export.manifest import ADVICE, MANIFEST, BundleManifest, read_manifest
from ham_dist.io.cache import cache_folder
from ham_dist.io.hashing import sha256_of, sha256_of_json
from ham_dist.io.paths import local_path
from ham_dist.serving.build import Source, build_vocabulary
from ham_dist.serving.fields_encoder import FieldsEncoder
from ham_dist.serving.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class RecordEncoder(FieldsEncoder):
    """Encodes raw records as the ids of a bundle's tables. Threads can share one.

    Args:
        bundle: An open bundle, or the folder of one, of which only the manifest is read and checked.
        fields: Names of fields, in the order of the result (default: those that the model reads).
    Raises:
        BundleError: The bundle has no vocabulary, or a file of it is missing or damaged.
        DataError: There is no such field.
    """

    def __init__(self, bundle: Bundle | str | Path, fields: Sequence[str] | None = None) -> None:
        if isinstance(bundle, str | Path):
            root = local_path(bundle)
            manifest = read_manifest(root)
        else:
            root, manifest = bundle.root, bundle.manifest
        if not manifest.vocabulary:
            raise BundleError(f"{root}: has no vocabulary to encode raw values. Give ids")
        settings = manifest.recipe
        recipe = None if settings is None else parse_recipe(settings, where=str(root / MANIFEST))
        rows = {field.name: field.num_embeddings for field in manifest.fields}
        names = [name for name in rows if name in manifest.vocabulary] if fields is None else fields
        super().__init__(
            recipe,
            {name: rows.get(name, 0) for name in names},
            open_vocabulary(root, manifest, recipe),
        )


def open_vocabulary(root: Path, manifest: BundleManifest, recipe: Recipe | None) -> Vocabulary:
    """Opens the hashed vocabulary of a bundle.

    A bundle without one (of format version 1 or 2) gets one in the cache folder at its first use, which later
    uses and other processes share.

    Args:
        root: Folder of the bundle.
        manifest: Its manifest.
        recipe: Its recipe.
    Raises:
        BundleError: A file is damaged.
        DataError: A Parquet vocabulary has a value or an id twice.
    """
    if manifest.hashed_vocabulary is not None:
        return Vocabulary(bundle_file(root, manifest.hashed_vocabulary))
    rows = {field.name: field.num_embeddings for field in manifest.fields}
    known = [name for name in manifest.vocabulary if name in rows]
    names = [name for name in known if recipe is None or not recipe.is_hashed(name)]
    content = {name: [rows[name], manifest.files[manifest.vocabulary[name]].sha256] for name in names}
    path = cache_folder() / "vocabularies" / f"{sha256_of_json(content)}.safetensors"
    if (cached := _cached(path)) is not None:
        return cached
    sources = {name: _source(root, manifest, name, rows[name]) for name in names}
    log.info("%s: building the vocabulary of %s, for this and later uses", path, root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if (cached := _cached(path)) is None:  # another process may have built it
                build_vocabulary(path, sources)
        return cached or Vocabulary(path)
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s): building the vocabulary for this process alone. "
            "Set XDG_CACHE_HOME to a folder that can be written.",
            path.parent, error.strerror or error,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # the mapping outlives the file's name
        path = Path(folder) / path.name
        build_vocabulary(path, sources)
        return Vocabulary(path)


def _cached(path: Path) -> Vocabulary | None:
    """The vocabulary at `path`; None if it has to be built."""
    if not path.is_file():
        return None
    try:
        return Vocabulary(path)
    except BundleError as error:
        log.warning("%s\n  Building it again.", error)
        return None


def _source(root: Path, manifest: BundleManifest, name: str, rows: int) -> Source:
    """The Parquet vocabulary of a field, whose content is checked."""
    path, entry = bundle_file(root, manifest.vocabulary[name]), manifest.files[manifest.vocabulary[name]]
    if sha256_of(path) != entry.sha256:
        raise BundleError(f"{path}: damaged: its sha256 is not that in manifest.json. {ADVICE}")
    return Source(path, rows)
