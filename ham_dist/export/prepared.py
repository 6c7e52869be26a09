"""Comparison of prepared data with a bundle: an id must have the same meaning in both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ham_dist.data.format.manifest import FILE_NAME, DataField, Manifest
from ham_dist.data.recipe.fields import Categorical
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.manifest import MANIFEST, FieldEntry


def data_folder(shard: Path) -> Path | None:
    """Returns the folder of prepared data that the shard `shard` is in; None if that has no manifest."""
    folder = shard.parent.parent
    return folder if (folder / FILE_NAME).is_file() else None


def bundle_recipe(bundle: Bundle) -> Recipe | None:
    """Returns the recipe in a bundle; None for generated data."""
    settings = bundle.manifest.recipe
    return None if settings is None else parse_recipe(settings, where=str(bundle.root / MANIFEST))


def require_same_ids(bundle: Bundle, data: Path, fields: Sequence[FieldEntry]) -> None:
    """Check that the ids of `fields` have the same meaning in the prepared data in `data` as in the bundle.

    A field is compared by its number of rows, its settings in the recipe, and the sha256 of its vocabulary. A
    hashed field has no vocabulary: only its rows and settings are compared.

    Raises:
        DataError: They have not; the message names each such field.
    """
    manifest = Manifest.load(data)
    stored = {field.name: field for field in manifest.fields}
    recipes = (
        bundle_recipe(bundle),
        None if manifest.recipe is None else parse_recipe(manifest.recipe, where=str(data / FILE_NAME)),
    )
    other = [
        f"{field.name} ({difference})"
        for field in fields
        if (difference := _difference(bundle, field, stored.get(field.name), *recipes))
    ]
    if other:
        raise DataError(
            f"{data}: its ids have other meanings than the bundle's: {'; '.join(other)}\n"
            "  Score the raw records, or data prepared from the files and with the recipe "
            "that the model was trained on."
        )


def _difference(
    bundle: Bundle,
    field: FieldEntry,
    stored: DataField | None,
    trained: Recipe | None,
    prepared: Recipe | None,
) -> str | None:
    """The first difference of a field; None if there is none."""
    if stored is None:
        return "the data lacks it"
    if stored.rows != field.num_embeddings:
        return f"{stored.rows:,} rows, the bundle has {field.num_embeddings:,}"
    if stored.multi_valued != field.multi_valued:
        return "several values per record in one of the two"
    wanted, found = id_settings(trained, field.name), id_settings(prepared, field.name)
    if wanted.get("hash") or (trained is not None and prepared is not None):
        differing = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        if differing:
            key = differing[0]
            return f"recipe with {key} = {found.get(key)!r}, the bundle's has {wanted.get(key)!r}"
    path = bundle.manifest.vocabulary.get(field.name)
    if path is not None and stored.vocabulary.sha256 != bundle.manifest.files[path].sha256:
        return "another vocabulary"
    return None


def id_settings(recipe: Recipe | None, name: str) -> dict[str, Any]:
    """Returns the settings that decide which value has which id.

    Limits of counts are left out: their effect is in the vocabulary.
    """
    if recipe is None or name not in recipe.fields:
        return {}
    field = recipe.fields[name]
    settings = field.model_dump(mode="json", exclude={"min_count", "max_rows"}) | {
        "column": recipe.column(name)
    }
    if isinstance(field, Categorical) and field.hash:
        settings |= {"max_rows": recipe.max_rows_of(name), "format.null": list(recipe.format.null)}
    return settings
