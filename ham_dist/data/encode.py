"""Raw records -> ids, for scoring: by the expressions that prepared the training data, without torch."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import ibis
import pyarrow as pa

from ham_dist.config.paths import exists, local_path
from ham_dist.data.engine import DuckDB
from ham_dist.data.expressions import ROW, encoded
from ham_dist.data.raw import find_raw, read_samples
from ham_dist.data.recipe import Recipe
from ham_dist.data.shards import VOCABULARY_SCHEMA, id_columns
from ham_dist.errors import DataError


def encode_raw(
    recipe: Recipe | None,
    vocabulary: str | Path | Mapping[str, Path],
    raw: str | Path,
    *,
    fields: Sequence[str] | None = None,
    threads: int | None = None,
) -> pa.Table:
    """The ids of raw records: one int32 column a field (a list of int32 where the field is multi-valued), rows in the order of `raw`.

    recipe:     of the data that the model was trained on; None for generated data, whose fields all have one value a record.
    vocabulary: folder of <field>.parquet as `prepare` writes them, or the file of each field.
    raw:        a folder of raw files as the recipe names them (no sample is dropped; the label is not looked at), or a .csv, .csv.gz or .parquet file
                with a column for each field: text or whole numbers; a multi-valued field as text with the recipe's separator, or as a list.
    fields:     which ones, in which order; None takes all.
    returns:    a value that is missing or not in the vocabulary has id 0.
    raises:     DataError naming the file, and the line or column, of what cannot be read.
    """
    if not exists(raw):
        raise DataError(f"{raw}: no such file or folder")
    separators = recipe.separators() if recipe is not None else dict.fromkeys(_vocabulary_names(vocabulary))
    names = list(separators) if fields is None else list(fields)
    unknown = [name for name in names if name not in separators]
    if unknown:
        raise DataError(f"no field is called {', '.join(unknown)}; the fields are {', '.join(separators)}")
    separators = {name: separators[name] for name in names}
    with DuckDB(threads=threads) as engine:
        records = _records(engine, recipe, local_path(raw), separators)
        vocabularies = {name: _read_vocabulary(engine, _vocabulary_file(vocabulary, name)) for name in names}
        ids = encoded(records, vocabularies, separators, keep=[ROW]).order_by(ROW)
        return ids.select(*names).to_pyarrow().cast(pa.schema(id_columns({name: separator is not None for name, separator in separators.items()})))


def _vocabulary_names(vocabulary: str | Path | Mapping[str, Path]) -> list[str]:
    if isinstance(vocabulary, Mapping):
        return list(vocabulary)
    names = sorted(path.stem for path in local_path(vocabulary).glob("*.parquet"))
    if not names:
        raise DataError(f"{vocabulary}: holds no vocabulary (<field>.parquet). Give the folder `vocabulary` that `ham-dist prepare` wrote")
    return names


def _vocabulary_file(vocabulary: str | Path | Mapping[str, Path], field: str) -> Path:
    if not isinstance(vocabulary, Mapping):
        return local_path(vocabulary) / f"{field}.parquet"
    if field not in vocabulary:
        raise DataError(f"field {field}: there is no vocabulary of it. Export the run again, from the data that it was trained on")
    return vocabulary[field]


def _read_vocabulary(engine: DuckDB, path: Path) -> ibis.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such vocabulary")
    table = engine.read_parquet(path)
    missing = [name for name in VOCABULARY_SCHEMA.names if name not in table.columns]
    if missing:
        raise DataError(f"{path}: is no vocabulary: it lacks the column {', '.join(missing)}")
    return table


def _records(engine: DuckDB, recipe: Recipe | None, raw: Path, separators: dict[str, str | None]) -> ibis.Table:
    """One row a record: the fields as strings or lists, and ROW."""
    if raw.is_dir():
        if recipe is None:
            raise DataError(
                f"{raw}: is a folder, and generated data has no raw files\n  Give a .csv or .parquet file with the columns {', '.join(separators)}."
            )
        return engine.keep(read_samples(engine, recipe, find_raw(recipe, raw), with_label=False))
    if raw.name.endswith(".parquet"):
        table = engine.read_parquet(raw)
    elif raw.name.endswith((".csv", ".csv.gz")):
        table = engine.read_csv(raw)
    else:
        raise DataError(f"{raw}: must be a folder of raw files, or a file that ends in .csv, .csv.gz or .parquet")
    missing = [name for name in separators if name not in table.columns]
    if missing:
        hints = [f" (did you mean {near[0]}?)" if (near := get_close_matches(name, table.columns, n=1)) else "" for name in missing]
        lacks = ", ".join(name + hint for name, hint in zip(missing, hints, strict=True))
        raise DataError(f"{raw}: lacks the column {lacks}; it has {', '.join(name for name in table.columns if name != ROW)}")
    return table.select(ROW, **{name: _as_text(raw, table[name], separator is not None) for name, separator in separators.items()})


def _as_text(raw: Path, column: ibis.Column, multi_valued: bool) -> ibis.Column:
    type = column.type()
    if type.is_array() and multi_valued:
        type = type.value_type
    # A vocabulary has "1", and 1.0 as text is "1.0": every value would be unknown without a word.
    if not (type.is_string() or type.is_integer() or type.is_null()):
        kinds = "text, whole numbers or lists of them" if multi_valued else "text or whole numbers"
        raise DataError(f"{raw}: column {column.get_name()} is {column.type()}; wanted are {kinds}\n  Write it as text.")
    return column if column.type().is_array() or column.type().is_string() else column.cast("string")
