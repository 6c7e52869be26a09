"""Raw records -> ids, for scoring: by the expressions that prepared the training data, without torch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ham_dist.data.encode.encoder import Encoder, Made
from ham_dist.data.encode.expressions import ROW, Sides
from ham_dist.data.engines.base import Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.format.shards import VOCABULARY_SCHEMA, id_columns
from ham_dist.data.raw.blocks import COMPRESSED, read_blocks
from ham_dist.data.raw.files import Rejections, find_raw, read_side, sample_blocks
from ham_dist.data.raw.parse import Rows, parse
from ham_dist.data.recipe.fields import AnyField, Categorical, Format, MultiValued, Numeric
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.paths import exists, local_path

# Of a file of records with a header and a column for each field.
_CSV = Format(separator=",", header=True, quote='"')
_CSV_NAMES = tuple(f".csv{suffix}" for suffix in ("", *COMPRESSED))


def encode_raw(
    recipe: Recipe | None,
    vocabulary: str | Path | Mapping[str, Path],
    raw: str | Path,
    *,
    fields: Sequence[str] | None = None,
    machine: Machine | None = None,
) -> pa.Table:
    """The ids of raw records: one int32 column a field (a list of int32 where the field is multi-valued), rows in the order of `raw`.

    recipe:     of the data that the model was trained on; None for generated data, whose fields all have one value a record.
    vocabulary: folder of <field>.parquet as `prepare` writes them, or the file of each field.
    raw:        a folder of raw files as the recipe names them (no sample is dropped; the label is not looked at), or a .csv, .csv.gz or .parquet file
                with each column that the fields are made from: text or whole numbers; a multi-valued field as text with the recipe's separator, or as
                a list; a numeric field as numbers.
    fields:     which ones, in which order; None takes all.
    returns:    a value that is missing or not in the vocabulary has id 0.
    raises:     DataError naming the file, and the line or column, of what cannot be read: a record that is rejected would have no probability.
    """
    if not exists(raw):
        raise DataError(f"{raw}: no such file or folder")
    known: dict[str, AnyField] = (
        dict(recipe.fields)
        if recipe is not None
        else {n: Categorical(kind="categorical") for n in _names(vocabulary)}
    )
    names = list(known) if fields is None else list(fields)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"no field is called {', '.join(unknown)}; the fields are {', '.join(known)}")
    raw = local_path(raw)
    if recipe is not None and raw.is_dir():
        find_raw(recipe, raw)
    made = {
        name: (known[name].column or name, known[name], recipe.max_rows_of(name) if recipe else None)
        for name in names
    }
    with DuckDB(machine or Machine()) as engine:
        tables = {
            name: engine.keep(_read_vocabulary(engine, _vocabulary_file(vocabulary, name)))
            for name, field in known.items()
            if name in made and not (isinstance(field, Categorical) and field.hash)
        }
        sides = _sides(engine, recipe, raw, names) if recipe is not None and raw.is_dir() else []
        encoder = Encoder(engine, made, tables, sides)
        schema = pa.schema(id_columns({name: isinstance(known[name], MultiValued) for name in names}))
        blocks = [
            pa.table(encoder.encode(records)).cast(schema) for records in _records(engine, recipe, raw, made)
        ]
        return pa.concat_tables([schema.empty_table(), *blocks]).combine_chunks()


def _names(vocabulary: str | Path | Mapping[str, Path]) -> list[str]:
    if isinstance(vocabulary, Mapping):
        return list(vocabulary)
    names = sorted(path.stem for path in local_path(vocabulary).glob("*.parquet"))
    if not names:
        raise DataError(
            f"{vocabulary}: holds no vocabulary (<field>.parquet). Give the folder `vocabulary` that `ham-dist prepare` wrote"
        )
    return names


def _vocabulary_file(vocabulary: str | Path | Mapping[str, Path], field: str) -> Path:
    if not isinstance(vocabulary, Mapping):
        return local_path(vocabulary) / f"{field}.parquet"
    if field not in vocabulary:
        raise DataError(
            f"field {field}: there is no vocabulary of it. Export the run again, from the data that it was trained on"
        )
    return vocabulary[field]


def _read_vocabulary(engine: DuckDB, path: Path) -> ibis.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such vocabulary")
    table = engine.read_parquet([path])
    missing = [name for name in VOCABULARY_SCHEMA.names if name not in table.columns]
    if missing:
        raise DataError(f"{path}: is no vocabulary: it lacks the column {', '.join(missing)}")
    return table


class Records:
    """Neighbouring records in memory, as the Samples of an encoder.

    table: the columns that the fields are made from.
    """

    def __init__(self, engine: DuckDB, table: pa.Table) -> None:
        self._engine, self._table = engine, table
        self.columns: Collection[str] = table.column_names
        self.rows = np.arange(table.num_rows)

    def cells(self, column: str) -> pa.Array:
        """A column of the records."""
        return self._table[column].combine_chunks()

    def view(self) -> ibis.Table:
        """All of them."""
        return self._engine.show_arrow(Encoder.VIEW, self._table.append_column(ROW, pa.array(self.rows)))


def _records(engine: DuckDB, recipe: Recipe | None, raw: Path, made: Mapping[str, Made]) -> Iterator[Records]:
    """The records of a file or folder, in blocks."""
    if raw.is_dir():
        if recipe is None:
            columns = ", ".join(column for column, _, _ in made.values())
            raise DataError(
                f"{raw}: is a folder, and generated data has no raw files\n  Give a .csv or .parquet file with the columns {columns}."
            )
        return _raw_records(engine, recipe, raw, list(made))
    if raw.name.endswith(".parquet"):
        return _parquet_records(engine, raw, made)
    if raw.name.endswith(_CSV_NAMES):
        return _csv_records(engine, raw, made)
    raise DataError(f"{raw}: must be a folder of raw files, or a file that ends in .csv, .csv.gz or .parquet")


def _sides(engine: DuckDB, recipe: Recipe, raw: Path, fields: Sequence[str]) -> Sides:
    files = find_raw(recipe, raw)
    wanted = recipe.columns_of(fields)
    sides = []
    with TemporaryDirectory() as folder:
        for join in recipe.joins:
            path, store = files[join.file], Path(folder) / "side.parquet"
            columns = [column for column in join.columns if column in wanted]
            sides.append(
                (
                    join,
                    engine.keep(
                        read_side(
                            engine, path, join, columns, recipe.format, store, Rejections(path, allowed=0)
                        )
                    ),
                )
            )
    return sides


def _raw_records(engine: DuckDB, recipe: Recipe, raw: Path, fields: Sequence[str]) -> Iterator[Records]:
    files = find_raw(recipe, raw)
    columns = recipe.columns_of(fields)
    wanted = {name: columns[name] for name in recipe.samples.columns if name in columns}
    for name in recipe.samples.files:
        for block in sample_blocks(files[name], recipe.samples.columns, recipe.format):
            rows = parse(block, recipe.samples.columns, wanted, recipe.format)
            _refuse_rejected(files[name], rows)
            yield Records(engine, rows.table)


def _csv_records(engine: DuckDB, path: Path, made: Mapping[str, Made]) -> Iterator[Records]:
    head = next(read_blocks(path, _CSV, block_bytes=1 << 16), None)
    names = (
        []
        if head is None
        else [name.strip('"') for name in head.data.partition(b"\n")[0].decode("utf-8", "replace").split(",")]
    )
    _require_columns(path, names, made)
    wanted = {
        column: "float64" if isinstance(field, Numeric) else "string" for column, field, _ in made.values()
    }
    for block in sample_blocks(path, names, _CSV):
        rows = parse(block, names, wanted, _CSV)
        _refuse_rejected(path, rows)
        yield Records(engine, rows.table)


def _parquet_records(engine: DuckDB, path: Path, made: Mapping[str, Made]) -> Iterator[Records]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _require_columns(path, file.schema_arrow.names, made)
            for batch in file.iter_batches(
                columns=list(dict.fromkeys(column for column, _, _ in made.values()))
            ):
                table = pa.table(
                    {
                        column: _as_kind(path, column, batch.column(column), field)
                        for column, field, _ in made.values()
                    }
                )
                yield Records(engine, table)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})"
        ) from None


def _refuse_rejected(path: Path, rows: Rows) -> None:
    rejections = Rejections(path, allowed=0)
    rejections.add(len(rows.lines) + len(rows.rejected), rows.reasons(), rows.rejected)
    rejections.check()


def _require_columns(path: Path, names: Sequence[str], made: Mapping[str, Made]) -> None:
    missing = [column for column, _, _ in made.values() if column not in names]
    if missing:
        hints = [
            f" (did you mean {near[0]}?)" if (near := get_close_matches(name, names, n=1)) else ""
            for name in missing
        ]
        lacks = ", ".join(name + hint for name, hint in zip(missing, hints, strict=True))
        raise DataError(f"{path}: lacks the column {lacks}; it has {', '.join(names)}")


def _as_kind(path: Path, name: str, column: pa.Array, field: AnyField) -> pa.Array:
    """A column of records as the field wants it: text, lists of text, or float64."""
    type = column.type
    several = isinstance(field, MultiValued) and (pa.types.is_list(type) or pa.types.is_large_list(type))
    one = type.value_type if several else type
    if isinstance(field, Numeric):
        if pa.types.is_integer(one) or pa.types.is_floating(one) or pa.types.is_null(one):
            numbers = column.cast(pa.float64())
            if not pa.compute.all(pa.compute.is_finite(numbers)).as_py() and numbers.null_count < len(
                numbers
            ):
                raise DataError(
                    f"{path}: column {name} holds a number that is not finite\n  Leave it out: a missing number has a value of its own."
                )
            return numbers
        raise DataError(f"{path}: column {name} is {type}; wanted are numbers")
    # A vocabulary has "1", and 1.0 as text is "1.0": every value would be unknown without a word.
    if not (
        pa.types.is_string(one)
        or pa.types.is_large_string(one)
        or pa.types.is_integer(one)
        or pa.types.is_null(one)
    ):
        kinds = (
            "text, whole numbers or lists of them"
            if isinstance(field, MultiValued)
            else "text or whole numbers"
        )
        raise DataError(f"{path}: column {name} is {type}; wanted are {kinds}\n  Write it as text.")
    return column.cast(pa.list_(pa.string()) if several else pa.string())
