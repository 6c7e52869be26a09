"""Raw records as ids by the expressions and the engine that prepare uses: the reference for serving."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import ibis
import numpy as np
import pyarrow as pa

from ham_dist.data.encode.columns import Kind, kinds_of
from ham_dist.data.encode.encoder import Encoder, Made
from ham_dist.data.encode.expressions import ROW, Sides
from ham_dist.data.encode.record_files import RecordFile, open_records
from ham_dist.data.engines.base import Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.format.shards import id_columns
from ham_dist.data.raw.files import Rejections
from ham_dist.data.raw.sides import read_side
from ham_dist.data.recipe.fields import Join, MultiValued
from ham_dist.data.recipe.load import Recipe


class Records:
    """Consecutive records in memory, as `RawSamples` of an encoder."""

    def __init__(self, engine: DuckDB, table: pa.Table) -> None:
        self._engine, self._table = engine, table
        self.columns: Collection[str] = table.column_names
        self.rows = np.arange(table.num_rows)

    def cells(self, column: str) -> pa.Array:
        return self._table[column].combine_chunks()

    def view(self) -> ibis.Table:
        return self._engine.show_arrow(Encoder.VIEW, self._table.append_column(ROW, pa.array(self.rows)))


def encode_by_duckdb(
    recipe: Recipe, vocabulary: Path, path: Path, fields: Sequence[str] | None = None
) -> pa.Table:
    """Ids of the records in the file `path`; columns that it lacks come from side files in its folder.

    Args:
        vocabulary: Folder with the files <field>.parquet that `prepare` writes.
        fields: Names of fields, in the order of the columns; None for all.
    """
    names = list(recipe.fields) if fields is None else list(fields)
    made: dict[str, Made] = {
        name: (recipe.column(name), recipe.fields[name], recipe.max_rows_of(name)) for name in names
    }
    file = open_records(path, recipe.format, recipe.samples.columns, recipe.label.column)
    several = {name: isinstance(recipe.fields[name], MultiValued) for name in names}
    with TemporaryDirectory() as folder, DuckDB(Machine(), Path(folder)) as engine:
        known = {
            name: engine.keep(engine.read_parquet([vocabulary / f"{name}.parquet"]))
            for name in names
            if not recipe.is_hashed(name)
        }
        sides = _sides(engine, recipe, file, path.parent, Path(folder), made)
        encoder = Encoder(engine, made, known, sides)
        keys: dict[str, Kind] = {join.key: "text" for join, _ in sides}
        wanted = keys | kinds_of((column, field) for column, field, _ in made.values())
        kinds = {column: kind for column, kind in wanted.items() if column in file.columns}
        blocks = [pa.table(encoder.encode(Records(engine, table))) for table in file.tables(kinds, None)]
        return pa.concat_tables([block.cast(pa.schema(id_columns(several))) for block in blocks])


def _sides(
    engine: DuckDB,
    recipe: Recipe,
    file: RecordFile,
    folder: Path,
    store: Path,
    made: Mapping[str, Made],
) -> Sides:
    """The side files that have columns of fields, or keys, which the file lacks."""
    sides: list[tuple[Join, ibis.Table]] = []
    if {column for column, _, _ in made.values()} <= set(file.columns):
        return sides
    for join in recipe.joins:
        wanted = [column for column in join.columns if column not in file.columns or column == join.key]
        path = folder / join.file
        rejections = Rejections(path, allowed=0)
        table = read_side(engine, path, join, wanted, recipe.format, store / join.file, rejections)
        sides.append((join, table))
    return sides
