"""Raw files -> Parquet shards, vocabularies and manifest.json, as a recipe says."""

from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa

from ham_dist.config.paths import local_path
from ham_dist.data.engine import DuckDB
from ham_dist.data.expressions import ROW, encoded, label_of, split_of, vocabulary_of
from ham_dist.data.folder import already_there, staged
from ham_dist.data.manifest import FORMAT_VERSION, SPLITS, FieldEntry, Manifest
from ham_dist.data.raw import find_raw, read_samples, stamp
from ham_dist.data.recipe import Recipe
from ham_dist.data.shards import LABEL, split_schema, write_split, write_vocabulary
from ham_dist.errors import DataError

_SPLIT = "_split"


def prepare(
    recipe: Recipe, raw: str | Path, out: str | Path, *, seed: int = 0, rows_per_shard: int = 250_000, threads: int | None = None
) -> Manifest:
    """Write the raw files in the folder `raw` as prepared data into the new folder `out`, and give its manifest.

    The same recipe, raw files, seed and rows_per_shard give the same bytes, whatever `threads` (of DuckDB; None: as many as cores). Where `out` holds
    that already it is left alone. `out` is there whole or not at all.
    raises: DataError naming file and line of what cannot be read, or the folder that is in the way.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard = {rows_per_shard}: must be at least 1")
    out = Path(out)
    files = find_raw(recipe, local_path(raw))
    planned = {
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "settings": None,
        "seed": seed,
        "rows_per_shard": rows_per_shard,
        "raw": tuple(map(stamp, files.values())),
    }
    there = already_there(out, planned)
    if there is not None:
        return there
    with staged(out) as folder, DuckDB(folder / "spill", threads) as engine:
        manifest = _write(engine, recipe, files, folder, planned)
        manifest.save(folder)
    return manifest


def _write(engine: DuckDB, recipe: Recipe, files: dict[str, Path], folder: Path, planned: dict[str, Any]) -> Manifest:
    samples = read_samples(engine, recipe, files, with_label=True)
    rows_in = samples.count().to_pyarrow().as_py()
    # Kept before it is filtered: the raw column may be called Label, which DuckDB takes for LABEL, and is out of the way only in the result.
    made = {LABEL: label_of(samples[recipe.label.column], recipe.label), _SPLIT: split_of(samples[ROW], planned["seed"])}
    labelled = engine.keep(samples.select(ROW, *recipe.fields, **made))
    labelled = engine.keep(labelled.filter(labelled[LABEL].notnull()).select(ROW, _SPLIT, LABEL, *recipe.fields))
    empty = set(SPLITS) - set(labelled.select(_SPLIT).distinct().to_pyarrow()[_SPLIT].to_pylist())
    if empty:
        where = f"{files[recipe.samples.file]}: of its {rows_in:,} samples none that has a label"
        raise DataError(f"{where} falls into {', '.join(sorted(empty))}\n  Give more samples.")
    vocabularies, entries = _vocabularies(engine, recipe, labelled, folder)
    ids = engine.keep(encoded(labelled, vocabularies, recipe.separators(), keep=[ROW, _SPLIT, LABEL]))
    splits = {}
    schema = split_schema({entry.name: entry.multi_valued for entry in entries})
    for split in SPLITS:
        rows = ids.filter(ids[_SPLIT] == split).order_by(ROW).select(*schema.names)
        splits[split] = write_split(folder, split, engine.batches(rows), schema, planned["rows_per_shard"])
    return Manifest(
        format_version=FORMAT_VERSION,
        fields=tuple(entries),
        splits=splits,
        rows_in=rows_in,
        rows_dropped=rows_in - sum(entry.rows for entry in splits.values()),
        engine=engine.versions | {"pyarrow": pa.__version__},
        truth=None,
        **planned,
    )


def _vocabularies(engine: DuckDB, recipe: Recipe, labelled: ibis.Table, folder: Path) -> tuple[dict[str, ibis.Table], list[FieldEntry]]:
    """The vocabulary of each field, kept and written.

    Only training samples are counted: a value that training never saw has no trained row, so it is unknown (id 0) wherever it comes later, and
    nothing of the validation and test samples leaks into the model.
    """
    train = labelled.filter(labelled[_SPLIT] == "train")
    tables, entries = {}, []
    for field, separator in recipe.separators().items():
        tables[field] = engine.keep(vocabulary_of(train, field, separator, recipe.min_count))
        stored = write_vocabulary(folder, field, tables[field].order_by("id").to_pyarrow())
        if stored.rows == 0:
            raise DataError(
                f"field {field}: none of its values is there {recipe.min_count} times or more in the training split, so all would be unknown\n"
                "  Check that the side files have the samples' keys, and the recipe's min_count."
            )
        entries.append(FieldEntry(name=field, rows=stored.rows + 1, multi_valued=separator is not None, vocabulary=stored))
    return tables, entries
