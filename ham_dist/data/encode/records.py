"""Encodes raw records as ids for scoring, with the same expressions as the training data, without torch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import ibis
import numpy as np
import pyarrow as pa

from ham_dist.data.encode.columns import Kind, kinds_of
from ham_dist.data.encode.encoder import Encoder, Made
from ham_dist.data.encode.expressions import ROW, Sides
from ham_dist.data.encode.record_files import (
    CARRIED,
    RecordFile,
    lacking_columns,
    open_records,
    refuse_rejected,
    require_columns,
)
from ham_dist.data.engines.base import Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.format.shards import VOCABULARY_SCHEMA, id_columns
from ham_dist.data.raw.blocks import COMPRESSED
from ham_dist.data.raw.files import find_raw, sample_blocks
from ham_dist.data.raw.parse import parse
from ham_dist.data.raw.sides import refuse_repeated
from ham_dist.data.recipe.fields import AnyField, Categorical, Format, Join, MultiValued
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.paths import exists, local_path

# Text format of records for generated data, which has no recipe.
_CSV = Format(separator=",", header=True, quote='"')


def encode_blocks(
    recipe: Recipe | None,
    vocabulary: str | Path | Mapping[str, Path],
    raw: str | Path,
    *,
    fields: Sequence[str] | None = None,
    carried: str | None = None,
    machine: Machine | None = None,
) -> Iterator[pa.Table]:
    """Encodes raw records as ids, block by block, in the order of `raw`.

    The label is not read, and no record is skipped. A value that is missing or not in the vocabulary has id
    0.

    Args:
        recipe: Recipe of the training data; None for generated data, whose fields all have one value per
            record.
        vocabulary: Folder with the files <field>.parquet that `prepare` writes, or the file of each field.
        raw: A folder with the raw files of the recipe, or one file of any name. The file is text in the
            recipe's format (for generated data: CSV with a header), plain or compressed, or Parquet with
            text, integers, lists of these for multi-valued fields, and numbers for numeric fields. Text may
            lack the label. Columns of side files that the file lacks are joined from the side files in the
            same folder.
        fields: Names of fields, in the order of the returned columns; None for all.
        carried: A column of the records that is returned unchanged, as column CARRIED.
        machine: Limits of memory and threads.
    Returns:
        Tables with one int32 column per field (a list of int32 for a multi-valued field), and CARRIED.
        Without records, one empty table.
    Raises:
        DataError: A file, line, column or value cannot be read; the message has its position.
    """
    if not exists(raw):
        raise DataError(f"{raw}: no such file or folder")
    raw = local_path(raw)
    known: dict[str, AnyField] = (
        dict(recipe.fields)
        if recipe is not None
        else {n: Categorical(kind="categorical") for n in _names(vocabulary)}
    )
    names = list(known) if fields is None else list(fields)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"no field is called {', '.join(unknown)}; the fields are {', '.join(known)}")
    made: dict[str, Made] = {
        name: (known[name].column or name, known[name], recipe.max_rows_of(name) if recipe else None)
        for name in names
    }
    files = _open_files(recipe, raw, made)
    schema = pa.schema(id_columns({name: isinstance(known[name], MultiValued) for name in names}))
    with DuckDB(machine or Machine()) as engine:
        tables = {
            name: _read_vocabulary(engine, _vocabulary_file(vocabulary, name))
            for name in names
            if not _is_hashed(known[name])
        }
        side_files = _SideFiles(engine, recipe, raw)
        for file in files:
            kinds, sides = side_files.plan(file, made)
            encoder = Encoder(engine, made, tables, sides)
            for table in file.tables(kinds, carried):
                ids = pa.table(encoder.encode(Records(engine, table.select(list(kinds))))).cast(schema)
                yield ids if carried is None else ids.append_column(CARRIED, table[CARRIED])


def _open_files(recipe: Recipe | None, raw: Path, made: Mapping[str, Made]) -> list[RecordFile]:
    if recipe is None:
        if raw.is_dir():
            columns = ", ".join(column for column, _, _ in made.values())
            raise DataError(
                f"{raw}: is a folder, and generated data has no raw files\n"
                f"  Give a CSV or Parquet file with the columns {columns}."
            )
        return [open_records(raw, _CSV, (), None)]
    if raw.is_dir():
        found = find_raw(recipe, raw)
        paths = [found[name] for name in recipe.samples.files]
    else:
        paths = [raw]
    return [open_records(path, recipe.format, recipe.samples.columns, recipe.label.column) for path in paths]


def _is_hashed(field: AnyField) -> bool:
    return isinstance(field, Categorical) and field.hash


def _names(vocabulary: str | Path | Mapping[str, Path]) -> list[str]:
    if isinstance(vocabulary, Mapping):
        return list(vocabulary)
    names = sorted(path.stem for path in local_path(vocabulary).glob("*.parquet"))
    if not names:
        raise DataError(
            f"{vocabulary}: has no vocabulary (<field>.parquet)\n"
            "  Give the folder `vocabulary` that `ham-dist prepare` wrote."
        )
    return names


def _vocabulary_file(vocabulary: str | Path | Mapping[str, Path], field: str) -> Path:
    if not isinstance(vocabulary, Mapping):
        return local_path(vocabulary) / f"{field}.parquet"
    if field not in vocabulary:
        raise DataError(
            f"field {field}: has no vocabulary\n  Export the run again, with the data that it was trained on."
        )
    return vocabulary[field]


def _read_vocabulary(engine: DuckDB, path: Path) -> ibis.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such vocabulary file")
    try:
        return _checked_vocabulary(engine, path)
    except duckdb.Error as error:
        raise DataError(
            f"{path}: cannot be read ({str(error).splitlines()[0]})\n"
            "  Copy it again from where it was written."
        ) from None


def _checked_vocabulary(engine: DuckDB, path: Path) -> ibis.Table:
    table = engine.read_parquet([path])
    missing = [name for name in VOCABULARY_SCHEMA.names if name not in table.columns]
    if missing:
        raise DataError(f"{path}: is not a vocabulary: it lacks the column {', '.join(missing)}")
    schema = table.schema()
    if not (schema["value"].is_string() and schema["id"].is_integer()):
        raise DataError(
            f"{path}: has values of type {schema['value']} and ids of type {schema['id']}; "
            "expected text and integers\n"
            "  Copy it again from where it was written."
        )
    table = engine.keep(table.select("value", "id", "count"))
    found = engine.query(
        table.aggregate(
            rows=table.count(),
            values=table.value.nunique(),
            ids=table.id.nunique(),
            least=table.id.min(),
            most=table.id.max(),
        )
    )().to_pylist()[0]
    rows = found["rows"]
    if rows and not (
        found["values"] == found["ids"] == rows and 1 <= found["least"] <= found["most"] < 2**31
    ):
        raise DataError(
            f"{path}: has {rows:,} rows with {found['values']:,} different values and {found['ids']:,} "
            f"different ids from {found['least']} to {found['most']}; expected each once, and ids from 1\n"
            "  Copy it again from where it was written."
        )
    return table


class Records:
    """Consecutive records in memory, as `RawSamples` of an encoder.

    Attributes:
        columns: Raw columns that the fields are made from.
        rows: Positions of the records in the block, (n,) int64.
    """

    def __init__(self, engine: DuckDB, table: pa.Table) -> None:
        self._engine, self._table = engine, table
        self.columns: Collection[str] = table.column_names
        self.rows = np.arange(table.num_rows)

    def cells(self, column: str) -> pa.Array:
        """Returns a column of the records."""
        return self._table[column].combine_chunks()

    def view(self) -> ibis.Table:
        """Returns all columns and ROW as a view of the engine."""
        return self._engine.show_arrow(Encoder.VIEW, self._table.append_column(ROW, pa.array(self.rows)))


class _SideFiles:
    """The side files of a recipe. Each is read once, when a file of records lacks a column of it."""

    def __init__(self, engine: DuckDB, recipe: Recipe | None, raw: Path) -> None:
        self._engine, self._recipe = engine, recipe
        self._folder = raw if raw.is_dir() else raw.parent
        self._kept: dict[tuple[str, tuple[str, ...]], ibis.Table] = {}

    def plan(self, file: RecordFile, made: Mapping[str, Made]) -> tuple[dict[str, Kind], Sides]:
        """Returns the columns to read from `file`, and the side files that have the others.

        Raises:
            DataError: A column is in neither, or a side file cannot be read.
        """
        kinds = kinds_of((column, field) for column, field, _ in made.values())
        lacking = [column for column in kinds if column not in file.columns]
        joins: list[tuple[Join, list[str]]] = []
        for join in reversed(self._recipe.joins if self._recipe is not None else ()):
            columns = [column for column in join.columns if column in lacking and column != join.key]
            if columns:
                lacking = [column for column in lacking if column not in columns]
                if join.key not in file.columns:
                    lacking.append(join.key)
                joins.append((join, [join.key, *columns]))
        require_columns(file.path, file.columns, lacking)
        read = {column: kind for column, kind in kinds.items() if column in file.columns}
        for join, _ in joins:
            if join.key in file.columns:
                read.setdefault(join.key, "text")
        return read, [(join, self._side(file, join, columns)) for join, columns in reversed(joins)]

    def _side(self, file: RecordFile, join: Join, columns: list[str]) -> ibis.Table:
        key = (join.file, tuple(columns))
        if key not in self._kept:
            assert self._recipe is not None, "joins come from a recipe"
            candidates = [self._folder / f"{join.file}{suffix}" for suffix in ("", *COMPRESSED)]
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                raise DataError(
                    f"{lacking_columns(file.path, file.columns, columns)}\n"
                    f"  The recipe takes these from {join.file}: put that file into {self._folder}, "
                    "or give Parquet that has them."
                )
            self._kept[key] = _read_side(self._engine, path, join, columns, self._recipe.format)
        return self._kept[key]


def _read_side(engine: DuckDB, path: Path, join: Join, wanted: Sequence[str], format: Format) -> ibis.Table:
    tables = [pa.schema([*((name, pa.string()) for name in wanted), (ROW, pa.int64())]).empty_table()]
    for block in sample_blocks(path, join.columns, format):
        rows = parse(block, join.columns, dict.fromkeys(wanted, "string"), format)
        refuse_rejected(path, block, rows, columns=len(join.columns))
        tables.append(rows.table.append_column(ROW, pa.array(rows.lines)))
    side = engine.keep(engine.show_arrow("side", pa.concat_tables(tables)))
    refuse_repeated(engine, side, join.key, path)
    return side.drop(ROW)
