"""Comparison of two bundles of one model: the later one may have other weights and more vocabulary values."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.prepared import bundle_recipe, id_settings


def require_growth(old: Bundle, new: Bundle) -> None:
    """Check that a bundle is a later state of another one.

    Model, fields, kept columns, codecs and the settings by which values get ids must be the same. Old
    vocabulary values must have their ids, and tables may have more rows.

    Raises:
        BundleError: It is not; the message names every difference.
    """
    if differences := list(_differences(old, new)):
        raise BundleError(
            f"{new.root}: is not a later state of {old.root}, so there is no delta between them:\n"
            + "\n".join(f"  {difference}" for difference in differences)
            + "\n  Deploy the whole bundle."
        )


def _differences(old: Bundle, new: Bundle) -> Iterator[str]:
    before, after = old.manifest, new.manifest
    if (before.kind, before.model) != (after.kind, after.model):
        yield f"model: {before.model or before.kind} became {after.model or after.kind}"
    old_fields, new_fields = ({field.name: field for field in each.fields} for each in (before, after))
    if list(old_fields) != list(new_fields):
        yield f"fields: {', '.join(old_fields)} became {', '.join(new_fields)}"
        return
    for name, field in old_fields.items():
        for what, was, now in _of_field(field, new_fields[name]):
            yield f"{name}: {what} {was} became {now}"
    for kind in ("tables", "first_order"):
        codecs = [{table.field: table.codec for table in getattr(each, kind)} for each in (before, after)]
        for name in codecs[0] | codecs[1]:
            was, now = (each.get(name, "none") for each in codecs)
            if was != now:
                yield f"{name}: codec of {kind} {was} became {now}"
    recipes = bundle_recipe(old), bundle_recipe(new)
    for name in old_fields:
        was, now = (id_settings(recipe, name) for recipe in recipes)
        for key in was | now:
            if was.get(key) != now.get(key):
                yield f"{name}: {key} of the recipe {was.get(key)!r} became {now.get(key)!r}"
    if list(before.vocabulary) != list(after.vocabulary):
        yield f"vocabularies: {', '.join(before.vocabulary)} became {', '.join(after.vocabulary)}"
        return
    for name in before.vocabulary:
        if difference := _of_vocabulary(old, new, name):
            yield f"{name}: {difference}"


def _of_field(old: FieldEntry, new: FieldEntry) -> Iterator[tuple[str, object, object]]:
    if old.embedding_dim != new.embedding_dim:
        yield "kept columns", old.embedding_dim, new.embedding_dim
    if old.num_embeddings > new.num_embeddings:
        yield "rows", old.num_embeddings, new.num_embeddings
    for key in ("multi_valued", "keeps_slot"):
        if getattr(old, key) != getattr(new, key):
            yield key, getattr(old, key), getattr(new, key)


def _of_vocabulary(old: Bundle, new: Bundle, field: str) -> str | None:
    """Compares the values of the old ids."""
    files = [bundle.manifest.files[bundle.manifest.vocabulary[field]] for bundle in (old, new)]
    if files[0] == files[1]:
        return None
    before, after = (_by_id(bundle, field) for bundle in (old, new))
    if len(before) > len(after):
        return f"{len(before):,} vocabulary values became {len(after):,}"
    if not before["id"].equals(after["id"].slice(0, len(before))):
        return "ids of its vocabulary are gone"
    kept = after["value"].slice(0, len(before))
    if before["value"].equals(kept):
        return None
    place = pc.index(pc.equal(before["value"], kept), False).as_py()
    id, was, now = (column[place].as_py() for column in (before["id"], before["value"], kept))
    return f"the vocabulary value of id {id} {was!r} became {now!r}"


def _by_id(bundle: Bundle, field: str) -> pa.Table:
    path = bundle.root / bundle.manifest.vocabulary[field]
    try:
        return pq.read_table(path, columns=["id", "value"]).sort_by("id").combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
