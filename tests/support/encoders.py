"""Encoders of serving for vocabularies of prepared data, and their ids as lists."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.recipe.fields import Categorical
from ham_dist.data.recipe.load import Recipe
from ham_dist.serving.build import PART_KEYS, Source, build_vocabulary
from ham_dist.serving.fields_encoder import FieldIds, FieldsEncoder
from ham_dist.serving.vocabulary import Vocabulary


def vocabulary_of(folder: Path, values: Mapping[str, list[str]], part_keys: int = PART_KEYS) -> Vocabulary:
    """A vocabulary in which value i of each field has id i + 1; its files are in `folder`."""
    sources = {}
    for field, known in values.items():
        sources[field] = Source(folder / f"{field}.parquet", len(known) + 1)
        write_parquet_vocabulary(sources[field].path, known)
    build_vocabulary(folder / "hashed", sources, part_keys)
    return Vocabulary(folder / "hashed")


def write_parquet_vocabulary(path: Path, values: list[Any], ids: list[int] | None = None) -> None:
    """Writes a vocabulary as `prepare` does; value i has id i + 1, or those of `ids`."""
    ids = list(range(1, len(values) + 1)) if ids is None else ids
    path.parent.mkdir(exist_ok=True)
    columns = [pa.array(values, pa.string()), pa.array(ids, pa.int64()), pa.array([1] * len(ids), pa.int64())]
    pq.write_table(pa.table(columns, names=["value", "id", "count"]), path)


def fields_encoder(recipe: Recipe, vocabulary: Path, hashed: Path, **options: Any) -> FieldsEncoder:
    """The encoder of all fields of `recipe`, with the vocabularies that `prepare` wrote to `vocabulary`.

    Args:
        hashed: File to write the hashed vocabulary to.
        options: `fields`, the names of some fields, and options of FieldsEncoder.
    """
    fields = options.pop("fields", list(recipe.fields))
    rows, sources = {}, {}
    for name in fields:
        field, path = recipe.fields[name], vocabulary / f"{name}.parquet"
        if isinstance(field, Categorical) and field.hash:
            rows[name] = recipe.max_rows_of(name) or 0
        else:
            rows[name] = pq.read_metadata(path).num_rows + 1
            sources[name] = Source(path, rows[name])
    build_vocabulary(hashed, sources)
    return FieldsEncoder(recipe, rows, Vocabulary(hashed), **options)


def as_lists(ids: Mapping[str, FieldIds]) -> dict[str, list[Any]]:
    """One id, or one list of ids, per record and field."""
    found: dict[str, list[Any]] = {}
    for name, of_field in ids.items():
        if isinstance(of_field, tuple):
            values, offsets = (part.tolist() for part in of_field)
            found[name] = [values[start:end] for start, end in pairwise(offsets)]
        else:
            found[name] = of_field.tolist()
    return found
